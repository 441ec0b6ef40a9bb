"""Which step and which evaluation phase a model call belongs to.

Samplers call the model several times per step, at sigmas off the schedule and sometimes at rising sigmas, so
evaluations are counted; a sigma is never mapped back to a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RISE = 1.01
"""A sigma more than 1 % above the previous one means the sampler went back: what was cached is older than it
looks."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the sampler: its running `index`, the schedule `step` and `phase` it belongs to, its
    `sigma`, whether sigma is `rising`, and whether the sampler went `beyond` the planned steps."""

    index: int
    step: int
    phase: int
    sigma: float
    rising: bool
    beyond: bool


class EvaluationCounter:
    """Counts evaluations of a run of `steps` steps with `stages` evaluations each, or one number per step."""

    def __init__(self, steps: int, stages: int | Sequence[int] = 1):
        self.steps = steps
        self._places, self._stages = None, 1
        if isinstance(stages, int):
            self._stages = stages
        else:
            self._places = [(step, phase) for step, count in enumerate(stages) for phase in range(count)]
        self._index, self._sigma = 0, None

    def tick(self, sigma: float) -> Evaluation:
        """The next evaluation, at noise level `sigma`."""
        rising = self._sigma is not None and sigma > self._sigma * RISE
        if self._places is None:
            step, phase = divmod(self._index, self._stages)
        else:
            step, phase = (
                self._places[self._index]
                if self._index < len(self._places)
                else (self.steps, self._index - len(self._places))
            )
        now = Evaluation(self._index, step, phase, sigma, rising, step >= self.steps)
        self._index, self._sigma = self._index + 1, sigma
        return now
