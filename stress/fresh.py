"""What a fresh process gives: `python -m stress.fresh FILE` reads a JSON list of runs and writes their
latents beside it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def latents(runs: list[dict], timeout: float = 600) -> list:
    """Latents of runs, all in one new process; a run is `preset` (None for plain sampling) and options of
    `embedded.sample`."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.json"
        path.write_text(json.dumps(runs), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "stress.fresh", str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if done.returncode:
            raise RuntimeError(f"the fresh process failed: {done.stderr[-300:]}")
        return torch.load(path.with_suffix(".pt"), weights_only=True)


def run(options: dict):
    """One such run in this process."""
    from . import embedded

    options = dict(options)
    preset, text = options.pop("preset", None), options.pop("caption", None)
    base = embedded.model() if preset is None else embedded.cached(embedded.model(), preset)
    return embedded.sample(base, None if text is None else embedded.caption(text), **options)


if __name__ == "__main__":
    from . import embedded  # noqa: F401  (before all of ComfyUI)

    import torch  # isort: skip

    file = Path(sys.argv[1])
    torch.save(
        [run(options) for options in json.loads(file.read_text(encoding="utf-8"))], file.with_suffix(".pt")
    )
