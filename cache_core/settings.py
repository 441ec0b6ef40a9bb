"""What a user asked for, as one immutable value that nodes build and the controller reads."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .predictors import Predictor, predictor
from .schedule import CacheSchedule, from_generator
from .selectors import Selector


@dataclass(frozen=True)
class Settings:
    """The parts of a caching method.

    schedule: an explicit plan, or None to make one from `generator` for the run's number of steps. predictor: for the final hidden
    state, which aggressive steps put back. module_predictor: for module outputs on conservative steps. selector: which tokens a
    conservative step refreshes; ratio: their share, None for the schedule's. attention: "frozen" replays attention outputs (DuCa), "live"
    recomputes it for the refreshed rows against kept keys and values.
    text_ratio: share of text tokens refreshed, None for the step's own ratio. seed: of the token choice.
    """

    method: str = "custom"
    schedule: CacheSchedule | None = None
    generator: dict = field(default_factory=lambda: {"type": "full"})
    predictor: Predictor = field(default_factory=lambda: predictor("reuse"))
    module_predictor: Predictor = field(default_factory=lambda: predictor("reuse"))
    selector: Selector = field(default_factory=lambda: Selector("random"))
    ratio: float | None = None
    attention: str = "frozen"
    text_ratio: float | None = None
    seed: int = 0

    def __post_init__(self):
        if self.attention not in ("frozen", "live"):
            raise ValueError(f"attention must be 'frozen' or 'live', not {self.attention!r}.")
        for name in ("ratio", "text_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {value}.")

    def schedule_for(self, steps: int) -> CacheSchedule:
        """The plan for a run of `steps` steps: the explicit one, scaled if need be, or a generated one."""
        plan = self.schedule.scaled(steps) if self.schedule is not None else from_generator(self.generator, steps)
        if self.ratio is not None:
            plan = replace(plan, ratios=(self.ratio,) * steps)
        return plan
