"""Writes docs/gpu.md from bench/results/gpu.json."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "bench" / "results" / "gpu.json", ROOT / "docs" / "gpu.md"
KINDS = "FCA"
REALISED, F_MOST, MEMORY_OFF = 0.9, 0.01, 0.05
"""Aims: realised over ideal speed-up at least, F over plain at most, memory off the estimate at most."""
TITLES = {
    "flux": "FLUX.1-dev, 1024 x 1024, 16 steps",
    "wan": "Wan 14B, 480p, 81 frames, 6 steps",
    "qwen": "Qwen-Image, 1328 x 1328, 6 steps",
}
HEAD = """\
# On a GPU

Written by `python -m bench.gpu` from `bench/results/gpu.json`; do not edit.

Everything runs inside ComfyUI with its Euler sampler, with random weights at the models' real sizes. *F*, *C*
and *A* are medians of milliseconds on the device's clock, from the beginning of one evaluation to that of the
next, without a run's first. *Speed-up* is that of the whole run, *ideal* the number of steps over the number
of full steps. *Added* is the run's peak of device memory over that of plain sampling, *estimate* what the
pack said before sampling. Aims: speed-up at least 90 % of the ideal, F at most 1 % over plain, memory within
5 % of the estimate, and no call that makes the host wait on F and A.
"""


def write() -> None:
    PAGE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


def page(results: dict) -> str:
    """The page as Markdown, the newest run first."""
    return (
        "\n".join([HEAD, *(line for run in reversed(results["runs"]) for line in _run(run))]).rstrip() + "\n"
    )


def _run(run: dict) -> list[str]:
    sections = run["sections"]
    about = sections["environment"]
    lines = [
        f"## {about['device']}, {run['date']}",
        "",
        f"{about['device']}, {about['dtype']}, torch {about['torch']}, {about['comfyui']}, "
        f"{about['attention']}, {about['memory_mode']}.",
        "",
    ]
    if run.get("note"):
        lines += [run["note"], ""]
    for key, title in TITLES.items():
        if "runs" in sections.get(key, {}):
            lines += _timed(title, sections[key])
    for name, part in PARTS.items():
        found = sections.get(name)
        if found and not {"skipped", "error"} & set(found):
            lines += part(found)
    lines += ["### What is short of the aims", "", *(f"- {s}" for s in short(run) or ["Nothing."]), ""]
    missing = [
        f"{n}: {s.get('skipped') or 'failed'}" for n, s in sections.items() if {"skipped", "error"} & set(s)
    ]
    return [*lines, *(["Not measured: " + "; ".join(missing) + ".", ""] if missing else [])]


def _timed(title: str, found: dict) -> list[str]:
    plain = found["plain_step_ms"]
    rows = [
        f"### {title}",
        "",
        f"Plain step {plain:.1f} ms, weights {found['weights_mb']} MB.",
        "",
        "| preset | steps | F | C | A | speed-up | ideal | added MB | estimate MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in found["runs"].items():
        if name == "plain" or "ms" not in r:
            continue
        ms = " | ".join(f"{r['ms'][k]:.1f}" if k in r["ms"] else "" for k in KINDS)
        speed = f"{r['speedup']:.2f} | {r['ideal']:.2f}" if "speedup" in r else " | "
        rows.append(
            f"| {name} | {r['kinds']} | {ms} | {speed} | {r.get('added_peak_mb', '')} | {r['estimate_mb']} |"
        )
    return [*rows, ""]


def _correct(found: dict) -> list[str]:
    exact = [n for n, r in found.items() if isinstance(r, dict) and r.get("equal")]
    close = [
        f"{n} (off by {r['off_by']:.1e})"
        for n, r in found.items()
        if isinstance(r, dict) and not r.get("equal")
    ]
    yes = {
        "plain_repeats": "plain sampling repeats itself",
        "off_equals_plain": "the preset off equals plain sampling",
        "cached_repeats": "a cached run repeats itself",
    }
    said = [f"{text}: {'yes' if found[key] else 'NO'}" for key, text in yes.items() if key in found]
    left = found.get("left_behind")
    said.append(f"shims left on the model: {', '.join(left) if left else 'none'}")
    return [
        "### Exactness",
        "",
        f"{'; '.join(said).capitalize()}. At the noise level of the full step before, equal to it: "
        f"{', '.join(exact)}. Not equal: {', '.join(close) or 'none'}.",
        "",
    ]


def _counts(title: str, keys, found: dict) -> list[str]:
    rows = [
        f"### {title}",
        "",
        "| preset | kind | " + " | ".join(keys.values()) + " |",
        "|---" * (2 + len(keys)) + "|",
    ]
    for name, kinds in found.items():
        if isinstance(kinds, dict):
            rows += [
                f"| {name} | {kind} | {' | '.join(str(r.get(k, 0)) for k in keys)} |"
                for kind, r in kinds.items()
                if isinstance(r, dict) and "evaluations" in r
            ]
    return [*rows, ""]


def _synchronising(found: dict) -> list[str]:
    return _counts("Calls that make the host wait", {"per_evaluation": "per evaluation"}, found)


def _launches(found: dict) -> list[str]:
    keys = {"launches": "launches", "copies": "copies", "waits": "waits", "allocations": "allocations"}
    return _counts("Launches per evaluation", keys, found)


def _guidance(found: dict) -> list[str]:
    real = found["plain_s"] / found["cached_s"]
    return [
        "### Guidance (two branches, balanced)",
        "",
        f"{found['plain_s']:.2f} s plain, {found['cached_s']:.2f} s cached: {real:.2f} of "
        f"{found['ideal']:.2f}; added {found['added_peak_mb']} MB, estimate {found['estimate_mb']} MB.",
        "",
    ]


def _ms(figures: dict) -> str:
    return ", ".join(f"{k} {v:.1f}" for k, v in figures.get("ms", {}).items())


def _offloaded(found: dict) -> list[str]:
    rows = [
        "### Snapshots in main memory (taylorseer on FLUX)",
        "",
        "| allowed | equal | seconds | ms |",
        "|---|---|---|---|",
    ]
    rows.append(f"| all on the device | | {found['on_device']['wall_s']:.2f} | {_ms(found['on_device'])} |")
    for name, part in found.items():
        rows += [
            f"| {name} | {'yes' if part['equal'] else 'NO'} | {r['wall_s']:.2f} | {_ms(r)} |"
            for r in (part["runs"] if isinstance(part, dict) and "runs" in part else ())
        ]
    return [*rows, ""]


def _out_of_memory(found: dict) -> list[str]:
    rows = [
        f"- {name}: {r['kinds']}, {'equal to' if r['equals_plain'] else 'NOT equal to'} plain sampling."
        for name, r in found.items()
        if isinstance(r, dict) and "kinds" in r
    ]
    return ["### Out of memory, with so much beyond what plain sampling takes", "", *rows, ""]


def _streamed(found: dict) -> list[str]:
    rows = [
        f"### Weights in main memory (--novram, {found['weights_mb']} MB)",
        "",
        f"Plain step {median(found['plain']):.1f} ms"
        + (f", at the end {median(found['plain_last']):.1f} ms." if "plain_last" in found else "."),
        "",
    ]
    rows += [f"- {n}: {_ms(r)}." for n, r in found.items() if isinstance(r, dict) and "ms" in r]
    return [*rows, ""]


def _dynamic(found: dict) -> list[str]:
    rows = ["### DynamicVRAM, with memory for a part of the weights", ""]
    for model in ("flux", "ltx2"):
        part = found.get(model, {})
        if "plain" in part:
            steps = ", ".join(f"{v:.0f}" for v in part["plain"])
            rows.append(f"- {model}, plain steps: {steps} ms.")
            rows += [f"- {model}, {n}: {_ms(r)}." for n, r in part.items() if isinstance(r, dict)]
    return [*rows, ""]


def _compiled(found: dict) -> list[str]:
    rows = [
        "### torch.compile (6 blocks, balanced)",
        "",
        "| mode | plain step | F | A | 9 steps cached / plain |",
        "|---|---|---|---|---|",
    ]
    for name, r in found.items():
        if not isinstance(r, dict) or "plain" not in r:
            continue
        steps = r.get("step_ms") or r["cached"]
        ms = r.get("ms") or {
            "F": median([steps[i] for i in (1, 2, 5, 8)]),
            "A": median([steps[i] for i in (3, 4, 6, 7)]),
        }
        plain = median(r["plain"][1:])
        rows.append(
            f"| {name} | {plain:.1f} | {ms['F']:.1f} | {ms['A']:.1f} | {sum(steps):.0f} / {9 * plain:.0f} |"
        )
    return [*rows, ""]


PARTS = {
    "correct": _correct,
    "synchronising": _synchronising,
    "launches": _launches,
    "guidance": _guidance,
    "offloaded": _offloaded,
    "out_of_memory": _out_of_memory,
    "streamed": _streamed,
    "dynamic": _dynamic,
    "compiled": _compiled,
}


def short(run: dict) -> list[str]:
    """Sentences about what is short of the aims, from the numbers alone."""
    sections, said = run["sections"], []
    for key, title in TITLES.items():
        found, model = sections.get(key, {}), title.split(",")[0]
        plain = found.get("plain_step_ms")
        for name, r in found.get("runs", {}).items():
            if name == "plain" or "ms" not in r:
                continue
            if r.get("speedup", REALISED * r.get("ideal", 0)) < REALISED * r.get("ideal", 0):
                said.append(f"{model}, {name}: {r['speedup']:.2f} of an ideal {r['ideal']:.2f}.")
            if "F" in r["ms"] and r["ms"]["F"] > (1 + F_MOST) * plain:
                said.append(
                    f"{model}, {name}: F takes {r['ms']['F'] / plain - 1:.1%} more than a plain step."
                )
            added, expected = r.get("added_peak_mb"), r["estimate_mb"]
            if added is not None and expected and abs(added - expected) > max(MEMORY_OFF * expected, 8):
                said.append(f"{model}, {name}: {added} MB added where {expected} MB were estimated.")
    for name, kinds in sections.get("synchronising", {}).items():
        for kind, r in kinds.items() if isinstance(kinds, dict) and name != "plain" else ():
            if kind in KINDS and r["per_evaluation"]:
                said.append(f"{name}: {r['per_evaluation']} waits of the host per {kind} step.")
    for name, r in sections.get("compiled", {}).items():
        if isinstance(r, dict) and "plain" in r and sum(r.get("step_ms", ())) > 9 * median(r["plain"][1:]):
            said.append(f"torch.compile, {name}: slower with caching than without.")
    ltx = sections.get("dynamic", {}).get("ltx2", {})
    said += [
        f"LTX-2 with DynamicVRAM: A takes {r['ms']['A']:.0f} ms where F takes {r['ms']['F']:.0f}."
        for r in ltx.values()
        if isinstance(r, dict) and "A" in r.get("ms", {}) and r["ms"]["A"] > 0.5 * r["ms"]["F"]
    ]
    return said


if __name__ == "__main__":
    write()
