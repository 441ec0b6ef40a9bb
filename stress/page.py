"""docs/stress.md from the JSON of a stress run."""

from __future__ import annotations

from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "stress" / "results" / "stress.json", ROOT / "docs" / "stress.md"
LEFT_OUT = "left out"

INTRODUCTION = """# Promises under stress

Made by `bash scripts/stress.sh` from `stress/results/stress.json`. Each question has a file in `stress/` and was asked in a process of its
own; ordinary tests ask a short cut of each. The model is the embedded one at 64 x 64 pixels. A case that is not `ok` broke a promise. Where
the time was too short, the table says what was left out."""

POLICY = """How samplers are treated:

- One evaluation per step (euler, dpmpp_2m, uni_pc and most others): each step runs as planned.
- Several per step (heun, dpm_2, dpmpp_2s_ancestral, dpmpp_sde, exp_heun_2_x0, seeds_2, seeds_3, sa_solver_pece): every evaluation of a step
  runs as the step does and has a cache of its own.
- Looking ahead (heunpp2): its number of evaluations falls in the last steps, which is known. After looking ahead it goes back to a higher
  noise level, and that evaluation runs in full.
- Going back to a noise level more than 1 % higher: in full, with any sampler.
- Adaptive and unknown ones (dpm_adaptive): evaluations are counted as steps; what lies beyond the plan runs in full.
- Adding fresh noise (ancestral ones, SDE, lcm, ddpm, seeds, sa_solver): the plan runs, and the report says that the picture strays further
  from the uncached one, as the PSNR below shows.
- CFG++ (names that end in cfg_pp): with Euler's method the plan runs, and the report says that the picture strays further. The others of
  them made broken pictures of forecasts, so they are sampled plainly, and the report says so.

PSNR in dB of the latents to those of plain sampling, preset `balanced`, 12 steps, over the schedulers tried."""


def tally(data: dict) -> str:
    """One line per question."""
    return "\n".join(f"{q:12} {_counts(found)}" for q, found in data["questions"].items())


def _counts(found: dict) -> str:
    ran = [row for row in found["rows"] if row["name"] != LEFT_OUT]
    left = sum(row.get("left_out", 0) for row in found["rows"])
    return f"{sum(row['ok'] for row in ran)} of {len(ran)} cases ok" + (
        f", {left} left out for lack of time" if left else ""
    )


def _versions(found: dict) -> str:
    where = found["machine"]
    parts = [f"{name} {number}" for name, number in found.get("versions", {}).items()]
    return ", ".join(
        [*parts, f"{where['cpu']} ({where['cores']} cores)", where["date"], f"{found.get('seconds', 0)} s"]
    )


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _samplers(rows: list[dict]) -> list[str]:
    by_sampler: dict[str, list[dict]] = {}
    for row in rows:
        if " / " in row["name"]:
            by_sampler.setdefault(row["name"].split(" / ")[0], []).append(row)
    lines = [
        "| sampler | schedulers | failed | evaluations | skipped | PSNR, median | worst |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, own in by_sampler.items():
        ran = [row for row in own if "psnr" in row]
        numbers = ["", "", "", ""]
        if ran:
            values = [float(row["psnr"]) for row in ran]
            numbers = [f"{median(row[key] for row in ran):g}" for key in ("evaluations", "skipped")]
            numbers += [f"{value:.1f}" for value in (median(values), min(values))]
        lines.append(f"| {name} | {len(own)} | {sum(not row['ok'] for row in own)} | {' | '.join(numbers)} |")
    lines += [
        f"\n- {row['name']}: {_cell(row['said'])}" for row in rows if not row["ok"] or row["name"] == LEFT_OUT
    ]
    return lines


def _table(rows: list[dict]) -> list[str]:
    numbers = list(
        dict.fromkeys(k for row in rows for k in row if k not in ("name", "ok", "said", "left_out"))
    )
    lines = [
        f"| case | ok | what happened | {' | '.join(numbers)} |"
        if numbers
        else "| case | ok | what happened |",
        "|" + "---|" * (3 + len(numbers)),
    ]
    for row in rows:
        cells = [
            row["name"],
            "ok" if row["ok"] else "**broken**",
            row["said"],
            *(row.get(k, "") for k in numbers),
        ]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return lines


def page(data: dict) -> str:
    """The page as Markdown."""
    lines = [INTRODUCTION, "", "| question | result |", "|---|---|"]
    lines += [f"| {found['about']} | {_counts(found)} |" for found in data["questions"].values()]
    for question, found in data["questions"].items():
        lines += ["", f"## {found['about']}", "", f"{_versions(found)}.", ""]
        if question == "samplers":
            lines += [POLICY, "", *_samplers(found["rows"])]
        else:
            lines += _table(found["rows"])
    return "\n".join(lines) + "\n"
