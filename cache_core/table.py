"""Weights per target step, as a plan has solved them (L2P, arXiv 2604.26365, without training)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .history import Node, Site
from .predictors import Predictor, predictor
from .schedule import MAX_STEPS

_LINE = predictor("linear")
LARGEST = 100
TOLERANCE = 1e-3
"""How far noise levels may lie apart, by the largest of them, to count as equal."""


def same_levels(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two lists of noise levels are those of one run."""
    return len(one) == len(other) and all(abs(a - b) <= TOLERANCE * max(map(abs, one)) for a, b in zip(one, other))


@dataclass(frozen=True)
class Table:
    """A forecast whose weights stand in a table: for each skipped step the full steps it leans on and their weights, newest first.

    steps: of the run it was made for. sigmas: its steps + 1 noise levels, or empty where any will do.
    rows: ((step, ((full step, weight), ...)), ...). A step whose full steps are not those of the run, or that the table lacks, goes by
    `fallback`. Raises ValueError naming the field.
    """

    steps: int
    rows: tuple[tuple[int, tuple[tuple[int, float], ...]], ...]
    sigmas: tuple[float, ...] = ()
    fallback: Predictor = _LINE

    def __post_init__(self):
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"steps of a table must be a whole number from 1 to {MAX_STEPS}, not {self.steps!r}.")
        for step, weights in self.rows:
            if not 0 <= step < self.steps or not weights or any(not 0 <= full < step for full, _ in weights):
                raise ValueError(f"table.{step} must lean on earlier steps of the {self.steps}.")
            if not all(math.isfinite(w) and abs(w) <= LARGEST for _, w in weights):
                raise ValueError(f"table.{step} must hold weights between -{LARGEST} and {LARGEST}.")
            if abs(sum(w for _, w in weights) - 1) > 1e-3:
                raise ValueError(f"table.{step} must hold weights that sum to 1.")
        if self.sigmas and (len(self.sigmas) != self.steps + 1 or not all(map(math.isfinite, self.sigmas))):
            raise ValueError(f"sigmas of a table must be {self.steps + 1} finite noise levels.")

    probe, gain, name = None, 1.0, "table"

    @property
    def needs(self) -> int:
        return max([self.fallback.needs, *(len(weights) for _, weights in self.rows)])

    def over_run(self, first: Node, last: Node) -> Table:
        return self

    def learn(self, site: Site, truth, node: Node) -> None:
        """Nothing: all was learned before."""

    def forecast(self, site: Site, node: Node, out=None):
        weights = dict(self.rows).get(int(node.index), ())
        held = [int(n.index) for n in site.nodes]
        if not weights or [full for full, _ in weights] != held[: len(weights)]:
            return self.fallback.forecast(site, node, out)
        return site.combine([w for _, w in weights], out)

    def to_dict(self) -> dict:
        levels = {"sigmas": list(self.sigmas)} if self.sigmas else {}
        table = {str(step): {str(f): w for f, w in weights} for step, weights in self.rows}
        return {"by": "step", "steps": self.steps, **levels, "table": table}

    @classmethod
    def of(cls, steps: int, table: Mapping[int, Mapping[int, float]], sigmas: Sequence[float] = ()) -> Table:
        return cls(steps, tuple((step, tuple(weights.items())) for step, weights in table.items()), tuple(sigmas))

    @classmethod
    def read(cls, steps, table, sigmas=()) -> Table:
        """From JSON; ValueError in one sentence."""
        if not isinstance(sigmas, (list, tuple)) or len(sigmas) > MAX_STEPS + 1:
            raise ValueError("sigmas of a table must be a list of numbers.")
        if not isinstance(table, Mapping) or len(table) > MAX_STEPS:
            raise ValueError("table must be an object of steps.")
        rows = []
        for step, weights in table.items():
            if not isinstance(weights, Mapping) or len(weights) > 64:
                raise ValueError(f"table.{step} must be an object of full steps and weights.")
            for key in (step, *weights):
                if not isinstance(key, str) or not key.isascii() or not key.isdigit() or len(key) > 5:
                    raise ValueError(f"table must have step numbers as names, not {str(key)[:20]!r}.")
            rows.append((int(step), tuple((int(f), _number(f"table.{step}", w)) for f, w in weights.items())))
        return cls(steps, tuple(rows), tuple(_number("sigmas of a table", s) for s in sigmas))


def _number(name: str, value) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
        raise ValueError(f"{name} must hold numbers.")
    return float(value)
