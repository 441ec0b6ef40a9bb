"""What gives way when the caches of a run would not fit into memory: milder settings, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..base.names import NAMES
from ..config import CacheConfig
from ..predictors.extrapolation import predictor
from .budget import Memory, Wanted
from .estimate import Footprint

if TYPE_CHECKING:
    from ..hooks.model_binding import Model


@dataclass(frozen=True)
class Step:
    """One way to need less: the settings and kinds of steps, and what it means as text. settings None:
    nothing is cached."""

    settings: CacheConfig | None
    kinds: str
    words: str


def steps_down(settings: CacheConfig, kinds: str, blocks: bool) -> Iterator[Step]:
    """Ways to need less, from the mildest; each holds what those before it changed.

    Conservative steps go first: they need the most and gave the least wherever they were measured. blocks:
        whether the model has any."""
    words: dict[str, str] = {}

    def step(part: str, what: str) -> Step:
        words[part] = what
        return Step(settings, kinds, ", ".join(words.values()))

    if "C" in kinds:
        kinds = kinds.replace("C", "A" if settings.mask is None else "F")
        yield step(
            "steps", f"conservative steps run as {'aggressive' if settings.mask is None else 'full'} ones"
        )
    if settings.level in ("module", "block") and blocks:
        settings = replace(settings, level="final", module_predictor=None)
        yield step("level", f"aggressive steps put back {NAMES['final']}")
    if settings.predictor.needs > 2 or settings.predictor.probe:
        settings = replace(settings, predictor=predictor("linear", gain=0.9))
        yield step("forecast", "forecasts follow a line through two snapshots")
    if settings.predictor.needs > 1:
        settings = replace(settings, predictor=predictor("reuse"))
        yield step("forecast", "one snapshot is kept and reused")
    if settings.level != "output":
        settings = replace(settings, level="output", first=0)
        yield step("level", f"aggressive steps put back {NAMES['output']}")
    yield Step(None, "F" * len(kinds), "nothing is cached")


def first_that_fits(
    memory: Memory,
    settings: CacheConfig,
    kinds: str,
    models: Mapping[int, Model],
    wanted: Callable[[Model, str], Wanted],
) -> tuple[Step, list[Model], Footprint]:
    """The mildest step down that fits the budget, the models lowered to it, and what they then need.

    kinds: of the run's steps, as they are in force. wanted: what a model's branches are cached by.
    """
    for step in steps_down(settings, kinds, any(m.blocks for m in models.values())):
        if step.settings is None:
            break
        lowered = {i: m.lowered(step.settings, step.kinds, "C" in kinds) for i, m in models.items()}
        less = memory.needs({i: wanted(m, step.kinds) for i, m in lowered.items()})
        if memory.fits(less, False):
            return step, list(lowered.values()), less
    return step, [], Footprint()
