"""The stress run: `bash scripts/stress.sh`, or `python -m stress --comfyui FOLDER --comfyui-python PYTHON` in
the repository's environment.

Every question is asked in a process of its own. Where all are asked, results go to
stress/results/stress.json, question by question, and from there to docs/stress.md, else to out/stress.json;
the exit status is 1 where a promise was broken."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from demo.run import machine

from .ask import IN_CORE, QUESTIONS
from .page import PAGE, RESULTS, page, tally

ROOT = Path(__file__).resolve().parents[1]
SHARES = {
    "samplers": 8,
    "branches": 2,
    "lifecycle": 4,
    "others": 4,
    "hostile": 3,
    "paths": 1,
    "soak": 8,
    "determinism": 1,
}
"""Of the time, by question."""


def ask(question: str, seconds: float, comfyui: Path, comfyui_python: str, packs: Path | None) -> dict:
    """Asks a question in a process of its own; what it had found when it ended badly is kept, with a row that
    says so."""
    environment = {
        **os.environ,
        "COMFYUI_UNDER_TEST": str(comfyui),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
    }
    if packs is not None:
        environment["DUAL_CACHE_STRESS_PACKS"] = str(packs.resolve())
    python = sys.executable if question in IN_CORE else comfyui_python
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [python, "-m", "stress.ask", question, "--seconds", str(seconds), "--out", str(out)]
        code = subprocess.run(command, cwd=ROOT, env=environment, timeout=2 * seconds + 900).returncode
        data = (
            json.loads(out.read_text(encoding="utf-8"))
            if out.exists()
            else {"about": QUESTIONS[question], "rows": []}
        )
    if code:
        data["rows"].append({"name": "the process", "ok": False, "said": f"ended with status {code}"})
        data["complete"] = False
    return data


def main() -> int:
    parser = argparse.ArgumentParser(prog="stress", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--comfyui-python", required=True)
    parser.add_argument("--minutes", type=float, default=30, help="time for all of it")
    parser.add_argument("--only", default=",".join(QUESTIONS), help="questions, with commas between")
    parser.add_argument(
        "--packs", type=Path, help="a folder with other cache packs, to be tried on the same model"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="JSON; when left out, the committed one and docs/stress.md where all questions are "
        "asked, else out/stress.json",
    )
    asked = parser.parse_args()
    questions = [q.strip() for q in asked.only.split(",")]
    unknown = [q for q in questions if q not in QUESTIONS]
    if unknown:
        parser.error(f"--only knows {', '.join(QUESTIONS)}, not {unknown[0]}.")
    if asked.out is None:  # the committed table is replaced as a whole or not at all
        asked.out = RESULTS if set(questions) == set(QUESTIONS) else ROOT / "out" / "stress.json"
    data = (
        json.loads(asked.out.read_text(encoding="utf-8"))
        if asked.out.exists()
        else {"format": 1, "kind": "stress", "questions": {}}
    )
    shares = sum(SHARES[q] for q in questions)
    for question in questions:
        print(f"\n== {QUESTIONS[question]} ==", flush=True)
        found = ask(
            question,
            60 * asked.minutes * SHARES[question] / shares,
            asked.comfyui,
            asked.comfyui_python,
            asked.packs,
        )
        data["questions"][question] = {
            **found,
            "machine": {k: machine()[k] for k in ("cpu", "cores", "date")},
        }
        data["questions"] = {q: data["questions"][q] for q in QUESTIONS if q in data["questions"]}
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if asked.out.resolve() == RESULTS.resolve() and set(questions) == set(QUESTIONS):
        PAGE.write_text(page(data), encoding="utf-8")
    print("\n" + tally({**data, "questions": {q: data["questions"][q] for q in questions}}))
    return int(any(not row["ok"] for q in questions for row in data["questions"][q]["rows"]))


if __name__ == "__main__":
    sys.exit(main())
