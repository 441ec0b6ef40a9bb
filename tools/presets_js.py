"""Writes what the schedule plot takes from Python, so that the two can never disagree: web/presets.js and
tests/fixtures/builder.json.

presets.js holds the tables that the plot needs. builder.json holds widget values of Cache Schedule Builder
with the plan that the node makes of them, its speed-up and memory, or with the sentence that refuses them.
Run `python -m tools.regenerate` from the project's folder after a deliberate change; a test compares the
committed files with the result."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from functools import cache
from itertools import groupby
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock, patch

from cache_core import recipes
from cache_core.predictors.build import NAMES, forecast
from cache_core.report import diagnosis as reasons
from cache_core.schedule import cost, generators
from cache_core.schedule import plan as schedule
from tools import help_tables

ROOT = Path(__file__).parents[1]
PRESETS = ROOT / "web" / "presets.js"
BUILDER = ROOT / "tests" / "fixtures" / "builder.json"
HEAD = """// Tables of the Python side, written by python -m tools.regenerate. Do not edit.

"""

NEEDS_COMFYUI = ("executing", "patching", "requests", "samplers")
"""Modules of nodes/comfy/ that the nodes with tables import; empty ones replace them here."""


def _held(part) -> int:
    """Tensors that a forecast holds: its snapshots, and as many of its probe."""
    return part.needs * (2 if part.probe else 1)


def _presets() -> dict:
    """Per preset: its text, its plan, where it puts features back and how many snapshots its forecast
    keeps."""
    made = {}
    for name, recipe in recipes.PRESETS.items():
        settings = recipes.from_preset(name)
        plan = {"kinds": recipe["kinds"]} if "kinds" in recipe else {"generator": settings.generator}
        if settings.least_steps:
            plan["least_steps"] = settings.least_steps
        run = sum(settings.blocks_run(["double"] * cost.FLUX_DEV.double + ["single"] * cost.FLUX_DEV.single))
        made[name] = {
            "about": help_tables.about(name),
            **plan,
            "level": settings.level,
            "snapshots": _held(settings.predictor),
            "aggressive": run / (cost.FLUX_DEV.double + cost.FLUX_DEV.single),
        }
    return made


@cache
def nodes_module(name: str) -> ModuleType:
    """A module of nodes/ that needs nothing of ComfyUI but the node API, for which a stand-in serves."""
    names = (
        "dual_cache_pack",
        "dual_cache_pack.nodes",
        "dual_cache_pack.nodes.comfy",
        *(f"dual_cache_pack.nodes.comfy.{name}" for name in NEEDS_COMFYUI),
        "comfy_api",
        "comfy_api.latest",
    )
    made = {name: ModuleType(name) for name in names}
    made["dual_cache_pack"].__path__, made["dual_cache_pack.nodes"].__path__ = (
        [str(ROOT)],
        [str(ROOT / "nodes")],
    )
    made["dual_cache_pack.nodes.comfy"].__path__ = []
    for module in NEEDS_COMFYUI:
        setattr(made["dual_cache_pack.nodes.comfy"], module, made[f"dual_cache_pack.nodes.comfy.{module}"])
    made["comfy_api.latest"].io = SimpleNamespace(ComfyNode=object, Custom=MagicMock())
    with patch.dict(sys.modules, made):
        return importlib.import_module(f"dual_cache_pack.nodes.{name}")


def build() -> dict:
    """The exported names with their values."""
    builder = nodes_module("schedule_builder")
    window = {
        name: {key: value for key, value in settings.items() if value is not generators._REQUIRED}
        for name, settings in generators.GENERATORS.items()
    }
    return {
        "FORMAT": schedule.FORMAT,
        "KIND": schedule.KIND,
        "MAX_STEPS": schedule.MAX_STEPS,
        "DEFAULT_RATIO": generators.DEFAULT_RATIO,
        "GENERATORS": {name: list(settings) for name, settings in generators.GENERATORS.items()},
        "GENERATOR_DEFAULTS": window,
        "LAYOUTS": {name: list(rows) for name, rows in cost.LAYOUTS.items()},
        "FLUX_DEV": asdict(cost.FLUX_DEV),
        "LATENT_VALUES": cost.LATENT_VALUES,
        "PRESETS": _presets(),
        "CUSTOM": builder.CUSTOM,
        "PATTERNS": builder.PATTERNS,
        "FROM_PRESET": nodes_module("dual_cache").FROM_PRESET,
        "FROM_RECIPE": nodes_module("feature_forecast").FROM_RECIPE,
        "RECIPE": {"format": recipes.FORMAT, "kind": recipes.KIND},
        "FORECASTS": {name: _held(forecast({"name": name})) for name in NAMES},
        "LOW_STEPS": reasons.LOW_STEPS,
        "REASONS": {name: what for name, (what, _) in reasons.REASONS.items()},
    }


def render(tables: dict) -> str:
    """A JavaScript module with one exported constant per table."""
    return HEAD + "\n".join(
        f"export const {name} = {json.dumps(value, indent=2, allow_nan=False)};\n"
        for name, value in tables.items()
    )


def _builder_values():
    """Widget values of Cache Schedule Builder: its defaults with some of them changed."""
    default = {
        "preset": "balanced",
        "steps": 30,
        "interval": 5,
        "pattern": "conservative, aggressive",
        "ratio": 0.1,
        "warmup": 3,
        "tail": 1,
        "start": 0.0,
        "end": 1.0,
        "explicit": "",
    }
    changes = [{"preset": name, "steps": steps} for name in recipes.PRESETS for steps in (1, 4, 8, 30, 50)]
    custom = {"preset": "custom"}
    patterns = nodes_module("schedule_builder").PATTERNS
    changes += [
        {**custom, "pattern": pattern, "interval": interval} for pattern in patterns for interval in (1, 3, 4)
    ]
    changes += [
        {**custom, **change}
        for change in (
            {"warmup": 0},
            {"warmup": 1, "tail": 0},
            {"steps": 5, "warmup": 100, "tail": 100},
            {"start": 0.25, "end": 0.75},
            {"start": 0.6, "end": 0.5},
            {"ratio": 0.0, "interval": 4},
            {"ratio": 0.37},
            {"steps": 1000, "interval": 50},
        )
    ]
    listed = schedule.explicit("FFFCACAF", [0.1, 0.1, 0.1, 0.3, 0.1, 0.5, 0.1, 0.1]).to_json()
    made = schedule.dual(30, 4, warmup=2).to_json()
    texts = ("FFFCACAF", " fff cca\tfca F ", listed, made, f"  {made}")
    changes += [{"explicit": text, "steps": steps} for text in texts for steps in (8, 20)]
    changes += [{"explicit": text} for text in ("   ", "CFF", "FXA", "{", '{"format": 1}', '"F"', "F,C,A")]
    changes += [{"explicit": "FCAF", "ratio": 0.25}, {"explicit": "FCAF", "preset": "custom", "steps": 4}]
    return [{**default, **change} for change in changes]


def builder_cases() -> list[dict]:
    """What the node makes of each: kinds, ratios, generator, speed-up and bytes for FLUX.1-dev, or the
    error."""
    cases = []
    for values in _builder_values():
        renamed = {("text" if name == "explicit" else name): value for name, value in values.items()}
        try:
            plan = nodes_module("schedule_builder").build(**renamed)
        except ValueError as error:
            cases.append({"values": values, "error": str(error)})
            continue
        runs = [(kind, len(list(group))) for kind, group in groupby(plan.kinds)]
        ratio = plan.ratios[0] if len(set(plan.ratios)) == 1 else list(plan.ratios)
        cases.append(
            {
                "values": values,
                "runs": runs,
                "ratio": ratio,
                "generator": plan.generator,
                "speedup": cost.estimated_speedup(plan, cost.FLUX_DEV),
                "bytes": cost.peak_bytes(plan, cost.FLUX_DEV),
            }
        )
    return cases


def render_cases(cases: list[dict]) -> str:
    """JSON with one case per line."""
    return "[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n"


FILES = {PRESETS: lambda: render(build()), BUILDER: lambda: render_cases(builder_cases())}

if __name__ == "__main__":
    for path, content in FILES.items():
        path.write_text(content(), encoding="utf-8")
