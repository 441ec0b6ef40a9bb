"""What a learned plan puts back at skipped steps: a weighted sum of the outputs and the latent of full steps,
by which the sampler reaches the state that the plan was fitted to.

Guidance mixes the outputs of two branches, so a term in their difference becomes other weights in each: with
guided = uncond + g (cond - uncond), weights a_j of guided outputs and b_j of differences are a_j + b_j / g in
the conditional branch and a_j + b_j / (g - 1) in the unconditional one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..base.coordinates import Node
from ..base.json_values import read_number, read_sigmas, read_step
from ..base.limits import MAX_STEPS
from ..cache.feature_cache import Site, weighted_sum
from ..cache.feature_predictor import FeaturePredictor, SolvedRun
from .extrapolation import Predictor, predictor

_LINE = predictor("linear")
MOST_WEIGHT = 1e4
Row = tuple[float, tuple[float, ...], tuple[float, ...]]
"""Weight of the latent, of outputs and of differences cond - uncond at the last full steps, newest first."""


@dataclass(frozen=True)
class Learned(FeaturePredictor):
    """Forecast of the model's output, for level "output" only.

    steps: of the run it was fitted to. sigmas: its steps + 1 noise levels. guidance: its classifier-free
        guidance. rows: ((full step, row), ...), for the steps from one full step to the next. Where the run
        lacks what a row leans on, `fallback` serves. Raises ValueError naming the field."""

    steps: int
    sigmas: tuple[float, ...]
    guidance: float
    rows: tuple[tuple[int, Row], ...]
    fallback: Predictor = _LINE

    probe, name = "latent", "learned"

    def __post_init__(self):
        if (
            isinstance(self.steps, bool)
            or not isinstance(self.steps, int)
            or not 1 <= self.steps <= MAX_STEPS
        ):
            raise ValueError(f"steps of a learned forecast must be a whole number from 1 to {MAX_STEPS}.")
        if len(self.sigmas) != self.steps + 1 or not all(map(math.isfinite, self.sigmas)):
            raise ValueError(f"sigmas of a learned forecast must be {self.steps + 1} finite noise levels.")
        if not (math.isfinite(self.guidance) and self.guidance > 0):
            raise ValueError("guidance of a learned forecast must be a number above 0.")
        full = [step for step, _ in self.rows]
        if full != sorted(set(full)) or not all(0 <= step < self.steps for step in full):
            raise ValueError("rows of a learned forecast must be in the order of their full steps.")
        for k, (step, (latent, outputs, deltas)) in enumerate(self.rows):
            numbers = (latent, *outputs, *deltas)
            if not outputs or max(len(outputs), len(deltas)) > k + 1:
                raise ValueError(f"rows.{step} must lean on full steps up to {step}.")
            if not all(math.isfinite(n) and abs(n) <= MOST_WEIGHT for n in numbers):
                raise ValueError(
                    f"rows.{step} must hold weights between -{MOST_WEIGHT:g} and {MOST_WEIGHT:g}."
                )
            if any(deltas) and self.guidance == 1:
                raise ValueError(f"rows.{step} cannot hold weights of differences without guidance.")

    @property
    def needs(self) -> int:
        return max([self.fallback.needs, *(max(len(o), len(d)) for _, (_, o, d) in self.rows)])

    @property
    def solved_for(self) -> SolvedRun:
        return SolvedRun(self.steps, self.sigmas, self.fallback)

    def forecast(self, site: Site, node: Node, out=None):
        made = self._weights(site)
        if made is None:
            return self.fallback.forecast(site, node, out)
        latent, weights = made
        tensors, factors = site.snapshots[: len(weights)], weights
        if latent and site.evidence is not None:
            tensors, factors = [*tensors, site.evidence.past.snapshots[0]], [*weights, latent]
        return weighted_sum(tensors, factors, out)

    def _weights(self, site: Site) -> tuple[float, list[float]] | None:
        """Of the latent and of the site's snapshots in its branch; None where they are not the plan's."""
        held = [int(n.index) for n in site.nodes]
        full = [step for step, _ in self.rows]
        if not held or held[0] not in full:
            return None
        k = full.index(held[0])
        latent, outputs, deltas = self.rows[k][1]
        count = max(len(outputs), len(deltas))
        if held[:count] != full[k::-1][:count]:
            return None
        past = site.evidence.past if site.evidence else None
        if latent and (past is None or not past.nodes or past.nodes[0] != site.nodes[0]):
            return None
        if latent and past is not None and past.snapshots[0].shape != site.snapshots[0].shape:
            return None
        share = 0.0
        if any(deltas):
            share = 1 / (self.guidance - 1) if _unconditional(site) else 1 / self.guidance
        padded = [*outputs, *[0.0] * (count - len(outputs))], [*deltas, *[0.0] * (count - len(deltas))]
        return latent, [a + share * b for a, b in zip(*padded)]

    def to_dict(self) -> dict:
        return {
            "by": "learned",
            "steps": self.steps,
            "sigmas": list(self.sigmas),
            "guidance": self.guidance,
            "rows": {str(step): [latent, list(o), list(d)] for step, (latent, o, d) in self.rows},
        }

    @classmethod
    def read(cls, steps, sigmas, guidance, rows) -> Learned:
        """From JSON; ValueError in one sentence."""
        levels = read_sigmas("a learned forecast", sigmas)
        if not isinstance(rows, Mapping) or len(rows) > MAX_STEPS:
            raise ValueError("rows must be an object of full steps.")
        found = []
        for step, row in rows.items():
            at = read_step("rows", step)
            if (
                not isinstance(row, (list, tuple))
                or len(row) != 3
                or not all(isinstance(part, (list, tuple)) and len(part) <= 8 for part in row[1:])
            ):
                raise ValueError(f"rows.{at} must be a list of a weight and two lists of weights.")
            own = (
                read_number(f"rows.{at}", row[0]),
                *(tuple(read_number(f"rows.{at}", n) for n in p) for p in row[1:]),
            )
            found.append((at, own))
        return cls(steps, levels, read_number("guidance", guidance), tuple(found))


def _unconditional(site: Site) -> bool:
    """Whether a site is of the unconditional branch, by the key that the host gave it."""
    branch = site.evidence.branch if site.evidence else None
    return branch == "uncond" or (isinstance(branch, tuple) and bool(branch) and branch[0] == 1)
