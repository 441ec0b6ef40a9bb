"""What a user asked for, as one immutable value that nodes build and the controller reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from .base.names import LEVELS, STREAMS
from .cache.feature_predictor import FeaturePredictor
from .cache.observer import Observer
from .predictors.extrapolation import predictor
from .schedule.masks import Mask
from .schedule.plan import CacheSchedule, from_generator
from .selectors.token_selection import Selector

_REUSE = predictor("reuse")


@dataclass(frozen=True)
class CacheConfig:
    """The parts of a caching method.

    schedule: an explicit plan, or None to make one from `generator` for the run's number of steps.
    mask: which modules conservative steps compute, on all tokens; the plan is then the mask's own, whatever
        schedule and generator say.
    level: where aggressive steps put features back, one of `LEVELS`. first: level stack only, how many blocks
        run on every step, or the
        kind of block with which the skipped run begins.
    predictor: of the features at that level. module_predictor: of the module outputs that conservative steps
        replay, None for reuse; at
        level module they are one and the same.
    selector: which tokens a conservative step refreshes; ratio: their share, None for the schedule's.
        attention: "frozen" replays attention
        outputs (DuCa), "live" recomputes it for the refreshed rows against kept keys and values. text_ratio:
        share of text tokens refreshed, None for the step's own ratio. seed: of the token choice.
    speedup: for hosts that keep profiles: steps over full steps that a plan from a matching profile is made
        for, None for no such plan.
    detect: whether the blocks of a model that the registry does not have are looked for (experimental).
    streams: "reuse" by the name of a stream ("img", "audio") that is put back as it last was, not forecast,
        at the levels final, stack and output.
    least_steps: in shorter runs nothing is skipped, unless an explicit plan says so.
    observer: sees the features of full steps, also where nothing is skipped; no part of a recipe.
    families: other settings for models of a family, by its name in the registry.
    """

    method: str = "custom"
    schedule: CacheSchedule | None = None
    generator: dict = field(default_factory=lambda: {"type": "full"})
    mask: Mask | None = None
    level: str = "final"
    first: int | str = 0
    predictor: FeaturePredictor = _REUSE
    module_predictor: FeaturePredictor | None = None
    selector: Selector = field(default_factory=lambda: Selector("random"))
    ratio: float | None = None
    attention: str = "frozen"
    text_ratio: float | None = None
    seed: int = 0
    speedup: float | None = None
    detect: bool = False
    streams: Mapping[str, str] = field(default_factory=dict)
    least_steps: int = 0
    observer: Observer | None = None
    families: Mapping[str, CacheConfig] = field(default_factory=dict)

    def __post_init__(self):
        if self.attention not in ("frozen", "live"):
            raise ValueError(f"attention must be 'frozen' or 'live', not {repr(self.attention)[:40]}.")
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}, not {repr(self.level)[:40]}.")
        if (
            isinstance(self.first, bool)
            or not isinstance(self.first, (int, str))
            or (isinstance(self.first, int) and self.first < 0)
        ):
            raise ValueError(
                f"first must be a number of blocks or a kind of block, not {repr(self.first)[:40]}."
            )
        if self.predictor.probe == "latent":
            if self.level != "output":
                raise ValueError(
                    f"predictor {self.predictor.name} is of the model's output, so level must be output, "
                    f"not {self.level}."
                )
        elif self.predictor.probe and self.level not in ("final", "stack"):
            raise ValueError(
                f"predictor {self.predictor.name} needs a probe, so level must be final or stack, not "
                f"{self.level}."
            )
        if self.modules.probe:
            raise ValueError(f"module_predictor cannot be {self.modules.name}, which looks at a probe.")
        if self.speedup is not None and not 1 <= self.speedup <= 100:
            raise ValueError(f"speedup must lie between 1 and 100, not {self.speedup}.")
        if not isinstance(self.detect, bool):
            raise ValueError(f"detect must be true or false, not {repr(self.detect)[:40]}.")
        if not isinstance(self.streams, Mapping) or any(
            name not in STREAMS or rule != "reuse" for name, rule in self.streams.items()
        ):
            raise ValueError('streams must be an object such as {"audio": "reuse"}, of img and audio.')
        if (
            isinstance(self.least_steps, bool)
            or not isinstance(self.least_steps, int)
            or self.least_steps < 0
        ):
            raise ValueError(f"least_steps must be a whole number of at least 0, not {self.least_steps!r}.")
        for name in ("ratio", "text_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {value}.")

    @property
    def modules(self) -> FeaturePredictor:
        """The predictor of module outputs."""
        if self.level == "module":
            return self.predictor
        return _REUSE if self.module_predictor is None else self.module_predictor

    def blocks_run(self, kinds: Sequence[str]) -> tuple[int, int]:
        """Of a model with blocks of these kinds: how many stand before the run that aggressive steps skip,
        and how many more a probe runs.

        At least one block is skipped. A kind that the model lacks stands for its first half.
        """
        if self.level not in ("final", "stack"):
            return 0, 0
        first, last = self.first if self.level == "stack" else 0, max(len(kinds) - 1, 0)
        if isinstance(first, str):
            first = kinds.index(first) if first in kinds else len(kinds) // 2
        first = min(first, last)
        return first, min(self.predictor.probe_blocks, last - first)

    def skips_nothing_in(self, steps: int) -> bool:
        """Whether the settings leave a run of so many steps alone because it is short."""
        return self.mask is None and self.schedule is None and steps < self.least_steps

    def for_family(self, name: str) -> CacheConfig:
        """The settings for models of a family."""
        return self.families.get(name, self)

    def schedule_for(self, steps: int) -> CacheSchedule:
        """The plan for a run of `steps` steps: the mask's or the explicit one, scaled if need be, or a
        generated one."""
        if self.mask is not None:
            return self.mask.scaled(steps).schedule()
        if self.schedule is not None:
            plan = self.schedule.scaled(steps)
        else:
            generator = {"type": "full"} if self.skips_nothing_in(steps) else self.generator
            plan = from_generator(generator, steps)
        if self.ratio is not None:
            plan = replace(plan, ratios=(self.ratio,) * steps)
        return plan
