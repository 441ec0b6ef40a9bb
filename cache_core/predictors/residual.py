"""Reuse of what the model adds to its input, its output minus the latent, with an affine correction per step:
EasyCache, ERTACache."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..base.coordinates import Node
from ..base.json_values import read_number, read_sigmas, read_step
from ..base.limits import LARGEST, MAX_STEPS
from ..cache.feature_cache import Site
from ..cache.feature_predictor import FeaturePredictor, SolvedRun
from ..cache.weighted_sums import weighted_sum


@dataclass(frozen=True)
class Residual(FeaturePredictor):
    """Forecast of the model's output: the latent of now plus output minus latent at the last full step
    (EasyCache, arXiv 2507.02860).

    For level "output" only. steps, sigmas: of the run that the rectifier was fitted to, 0 and empty where it
    has none.
    rectifier: ((step, (full step, slope, offset)), ...): at this step, behind this full step, slope * value +
        offset is the expected error and is taken off (ERTACache, arXiv 2508.21091). Raises ValueError naming
        the field."""

    steps: int = 0
    rectifier: tuple[tuple[int, tuple[int, float, float]], ...] = ()
    sigmas: tuple[float, ...] = ()

    probe, needs = "latent", 1

    def __post_init__(self):
        if (
            isinstance(self.steps, bool)
            or not isinstance(self.steps, int)
            or not 0 <= self.steps <= MAX_STEPS
        ):
            raise ValueError(
                f"steps of a residual must be a whole number from 0 to {MAX_STEPS}, not {self.steps!r}."
            )
        for step, (full, *numbers) in self.rectifier:
            if not 0 <= full < step < self.steps:
                raise ValueError(f"rectifier.{step} must lean on an earlier step of the {self.steps}.")
            if not all(math.isfinite(n) and abs(n) <= LARGEST for n in numbers):
                raise ValueError(
                    f"rectifier.{step} must hold a slope and an offset between -{LARGEST} and {LARGEST}."
                )
        if self.sigmas and (len(self.sigmas) != self.steps + 1 or not all(map(math.isfinite, self.sigmas))):
            raise ValueError(f"sigmas of a residual must be {self.steps + 1} finite noise levels.")

    @property
    def name(self) -> str:
        return "rectified residual" if self.rectifier else "residual"

    @property
    def solved_for(self) -> SolvedRun | None:
        return SolvedRun(self.steps, self.sigmas, Residual()) if self.rectifier else None

    def forecast(self, site: Site, node: Node, out=None):
        seen, newest = site.evidence, site.snapshots[0]
        past = seen.past if seen else None
        if (
            past is None
            or seen is None
            or seen.now is None
            or not past.nodes
            or past.nodes[0] != site.nodes[0]
            or not seen.now.shape == newest.shape == past.snapshots[0].shape
        ):
            return site.combine([1.0], out)
        full, slope, offset = dict(self.rectifier).get(int(node.index), (None, 0.0, 0.0))
        if full != site.nodes[0].index:
            slope = offset = 0.0
        made = weighted_sum(
            [seen.now, past.snapshots[0], newest], [1 - slope, slope - 1, 1 - slope], out
        )  # exact where nothing moved
        return made.sub_(offset) if offset else made

    def to_dict(self) -> dict:
        fitted = (
            {"steps": self.steps, "rectifier": {str(step): list(row) for step, row in self.rectifier}}
            if self.rectifier
            else {}
        )
        return {"name": "residual", **fitted, **({"sigmas": list(self.sigmas)} if self.sigmas else {})}

    @classmethod
    def read(cls, steps=0, rectifier=None, sigmas=()) -> Residual:
        """From JSON; ValueError in one sentence."""
        rectifier = {} if rectifier is None else rectifier
        sigmas = read_sigmas("a residual", sigmas)
        if not isinstance(rectifier, Mapping) or len(rectifier) > MAX_STEPS:
            raise ValueError("rectifier must be an object of steps.")
        rows = []
        for step, row in rectifier.items():
            at = read_step("rectifier", step)
            if (
                not isinstance(row, (list, tuple))
                or len(row) != 3
                or isinstance(row[0], bool)
                or not isinstance(row[0], int)
            ):
                raise ValueError(f"rectifier.{at} must be a list of a full step, a slope and an offset.")
            rows.append((at, (row[0], *(read_number(f"rectifier.{at}", n) for n in row[1:]))))
        return cls(steps, tuple(rows), sigmas)
