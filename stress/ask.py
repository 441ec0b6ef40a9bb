"""Asks one question in a process of its own: `python -m stress.ask QUESTION --seconds N --out FILE`, with the
Python that it needs."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import platform
import sys
import time
from pathlib import Path

from .rows import Deadline

QUESTIONS = {
    "samplers": "Every sampler with every scheduler",
    "branches": "Branches and batches",
    "lifecycle": "Lifecycle",
    "others": "Other nodes on the same model",
    "hostile": "Hostile input",
    "paths": "Names that lead out of a folder",
    "soak": "Soak",
    "determinism": "Determinism",
}
IN_CORE = ("hostile",)
"""Asked in the repository's own environment; the others need ComfyUI's."""


def versions() -> dict:
    """Of what took part in this process."""
    found = {"python": platform.python_version(), "torch": importlib.metadata.version("torch")}
    for name in ("hypothesis", "atheris"):
        if name in sys.modules or (
            name == "atheris" and importlib.util.find_spec(name) and "hypothesis" in sys.modules
        ):
            found[name] = importlib.metadata.version(name)
    if "comfyui_version" in sys.modules or "comfy" in sys.modules:
        import comfyui_version

        found["ComfyUI"] = comfyui_version.__version__
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    start, rows = time.monotonic(), []
    module = importlib.import_module(f"stress.{asked.question}")
    data = {
        "about": QUESTIONS[asked.question],
        "allowed_seconds": asked.seconds,
        "complete": False,
        "rows": rows,
    }
    for row in module.rows(Deadline(asked.seconds)):
        rows.append(row.to_dict())
        print(f"{'ok  ' if row.ok else 'FAIL'} {row.name}: {row.said}", flush=True)
        if row.name != "left out":
            asked.out.write_text(
                json.dumps(data), encoding="utf-8"
            )  # what there is, should this process be ended
    data.update(
        complete=not any(r["name"] == "left out" for r in rows),
        seconds=round(time.monotonic() - start),
        versions=versions(),
    )
    asked.out.write_text(json.dumps(data), encoding="utf-8")


if __name__ == "__main__":
    main()
