"""Named methods as data: each preset names its parts, its source, and builds `Settings`.

A preset is what the nodes offer. The generator's fields are those of `schedule.from_generator`; everything else names a registered part.
"""

from __future__ import annotations

from dataclasses import replace

from .predictors import predictor
from .schedule import CacheSchedule
from .selectors import Selector
from .settings import Settings

PRESETS: dict[str, dict] = {
    "balanced": {
        "about": "Aggressive steps with a linear forecast of the final hidden state; every third step in full.",
        "generator": {"type": "uniform", "interval": 3, "warmup": 3, "tail": 1},
        "predictor": {"name": "linear", "gain": 0.9},
    },
    "quality": {
        "about": "Every second step in full, a linear forecast between.",
        "generator": {"type": "uniform", "interval": 2, "warmup": 3, "tail": 1},
        "predictor": {"name": "linear", "gain": 0.9},
    },
    "fast": {
        "about": "Every fifth step in full, a linear forecast between.",
        "generator": {"type": "uniform", "interval": 5, "warmup": 3, "tail": 1},
        "predictor": {"name": "linear", "gain": 0.8},
    },
    "duca": {
        "about": "Dual caching: conservative and aggressive steps take turns; a tenth of the tokens is refreshed at random.",
        "source": "Zou et al., DuCa, arXiv 2412.18911; cycle of the published FLUX figures",
        "generator": {"type": "dual", "interval": 5, "order": "CA", "ratio": 0.1, "warmup": 3},
    },
    "duca + forecast": {
        "about": "Dual caching with a linear forecast of the final hidden state on aggressive steps.",
        "source": "Zou et al., DuCa, arXiv 2412.18911; forecast under the mixed-age rule",
        "generator": {"type": "dual", "interval": 5, "order": "CA", "ratio": 0.1, "warmup": 3},
        "predictor": {"name": "linear", "gain": 0.9},
    },
    "toca": {
        "about": "Token-wise caching: every step between full ones refreshes a tenth of the tokens, those with the largest values.",
        "source": "Zou et al., ToCa, ICLR 2025, arXiv 2410.05317; value norms in place of attention maps",
        "generator": {"type": "dual", "interval": 4, "order": "C", "ratio": 0.1, "warmup": 3},
        "selector": {"score": "value_norm_high"},
    },
    "fora": {
        "about": "Plain reuse of the final hidden state, every third step in full.",
        "source": "Selvaraju et al., FORA, arXiv 2407.01425; at the final hidden state",
        "generator": {"type": "uniform", "interval": 3},
    },
    "off": {"about": "Every step in full.", "generator": {"type": "full"}},
}


def preset_names() -> list[str]:
    """Names of the presets, the recommended one first."""
    return list(PRESETS)


def from_preset(name: str, schedule: CacheSchedule | None = None, **changes) -> Settings:
    """Settings of a preset, with its plan replaced by `schedule` when one is given, and any field of Settings by `changes`.

    Raises ValueError for an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {name!r}.")
    recipe = PRESETS[name]
    settings = Settings(
        method=name, schedule=schedule, generator=recipe["generator"],
        predictor=predictor(**recipe.get("predictor", {"name": "reuse"})),
        module_predictor=predictor(**recipe.get("module_predictor", {"name": "reuse"})),
        selector=Selector(**recipe.get("selector", {"score": "random"})),
        attention=recipe.get("attention", "frozen"))
    return replace(settings, **changes)
