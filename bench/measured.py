"""The measurement behind each preset: `python -m bench.measured` writes it into cache_core/recipes.json as
the field `measured`.

Presets sampled inside ComfyUI cite rivals.json, the others forecasts.json or quality.json, where their parts
run on a common plan."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cache_core.recipes import PRESETS

ROOT = Path(__file__).resolve().parents[1]
RECIPES, RESULTS = ROOT / "cache_core" / "recipes.json", ROOT / "bench" / "results"
FORECASTS = {
    "delta-dit": "Delta-DiT",
    "taylorseer-lite": "TaylorSeer-Lite, order 2",
    "ab-cache": "AB-Cache, output",
    "foca": "FoCa, modules",
    "hyca": "HyCa, blocks",
    "hicache": "HiCache, modules",
    "spectrum": "Spectrum",
    "spectrum corrected": "Spectrum, corrected",
    "meancache": "MeanCache, output",
    "freqca": "FreqCa",
    "tap": "TAP",
}
QUALITY = {"toca": "ToCa, value norm high", "duca + forecast": "DuCa + linear 0.9"}
"""Rows of forecasts.json and quality.json that stand for a preset, at 50 steps and every fifth in full."""
NOT_MEASURED = {"off"}


def _read(name: str) -> dict:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _likeness(row: dict) -> str:
    return " / ".join(
        "equal" if row[key] is None else f"{row[key]:.1f}" for key in ("psnr_median", "psnr_worst")
    )


def sentence(name: str) -> str:
    """Where and how a preset was measured: PSNR to plain sampling, median / worst. ValueError where it was
    not."""
    runs = {run["part"]: run for run in _read("rivals.json")["runs"]}
    found = {
        part: row
        for part, run in runs.items()
        for row in run["rows"]
        if (row["group"], row["label"]) == ("preset", name) and "seconds" in row
    }
    if "new" in found:
        run, row = runs["new"], found["new"]
        plain = next(r["seconds"] for r in run["rows"] if r["group"] == "plain")
        guided = (
            f"; at guidance {runs['guided']['guidance']:g} {_likeness(found['guided'])} dB"
            if "guided" in found
            else ""
        )
        return (
            f"rivals.json, {run['steps']} steps, guidance {run['guidance']:g}, {len(run['captions'])} "
            "captions: "
            f"{row['calls']:g} full calls, {row['seconds'] / plain:.2f} of the time, {_likeness(row)} "
            f"dB{guided}"
        )
    file, curves = ("forecasts.json", FORECASTS) if name in FORECASTS else ("quality.json", QUALITY)
    runs = _read(file)
    for run in runs.get("runs", [{**runs["settings"], "rows": runs["rows"]}] if "settings" in runs else []):
        for row in run["rows"]:
            if (row["curve"], row["steps"], row["interval"], run["guidance"]) == (curves.get(name), 50, 5, 1):
                return (
                    f"{file}, 50 steps, guidance 1, {len(run['prompts'])} captions, N = 5: "
                    f"{row['full_calls']} full calls, "
                    f"{_likeness(row)} dB"
                )
    raise ValueError(f"The preset {name} has not been measured.")


def with_measurements(text: str) -> str:
    """recipes.json with the field `measured` of every preset as it is now, its layout kept."""
    for name in PRESETS:
        if name in NOT_MEASURED or PRESETS[name].get("experimental"):
            continue
        start = text.index(f'  "{name}": {{\n')
        end = text.index("\n  }", start)
        block = re.sub(r'\n    "measured": "[^"]*",', "", text[start:end])
        head = re.match(r'.*\n    "about": "[^"]*",(\n    "source": "[^"]*",)?', block)
        block = f'{head[0]}\n    "measured": "{sentence(name)}",{block[head.end() :]}'
        text = text[:start] + block + text[end:]
    return text


if __name__ == "__main__":
    RECIPES.write_text(with_measurements(RECIPES.read_text(encoding="utf-8")), encoding="utf-8")
