"""Weights per target step, as a plan has solved them (L2P, arXiv 2604.26365, without training)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from ..base.coordinates import Node
from ..base.json_values import read_number, read_sigmas, read_step
from ..base.limits import DIGITS, LARGEST, MAX_STEPS, MOST_CHANNELS
from ..cache.feature_cache import Site
from ..cache.feature_predictor import FeaturePredictor, SolvedRun
from ..cache.transfers import upload
from ..cache.weighted_sums import weighted_sum
from .extrapolation import Predictor, predictor

_LINE = predictor("linear")


@dataclass(frozen=True)
class SolvedWeights(FeaturePredictor):
    """A forecast whose weights stand in a table: for each skipped step the full steps it leans on and their
    weights, newest first.

    steps: of the run it was made for. sigmas: its steps + 1 noise levels, or empty where any will do.
    rows: ((step, ((full step, weight), ...)), ...). A step whose full steps are not those of the run, or that
        the table lacks, goes by `fallback`. Raises ValueError naming the field."""

    steps: int
    rows: tuple[tuple[int, tuple[tuple[int, float], ...]], ...]
    sigmas: tuple[float, ...] = ()
    fallback: Predictor = _LINE

    def __post_init__(self):
        if (
            isinstance(self.steps, bool)
            or not isinstance(self.steps, int)
            or not 1 <= self.steps <= MAX_STEPS
        ):
            raise ValueError(
                f"steps of a table must be a whole number from 1 to {MAX_STEPS}, not {self.steps!r}."
            )
        for step, weights in self.rows:
            if not 0 <= step < self.steps or not weights or any(not 0 <= full < step for full, _ in weights):
                raise ValueError(f"table.{step} must lean on earlier steps of the {self.steps}.")
            if not all(math.isfinite(w) and abs(w) <= LARGEST for _, w in weights):
                raise ValueError(f"table.{step} must hold weights between -{LARGEST} and {LARGEST}.")
            if abs(sum(w for _, w in weights) - 1) > 1e-3:
                raise ValueError(f"table.{step} must hold weights that sum to 1.")
        if self.sigmas and (len(self.sigmas) != self.steps + 1 or not all(map(math.isfinite, self.sigmas))):
            raise ValueError(f"sigmas of a table must be {self.steps + 1} finite noise levels.")

    name = "table"

    @property
    def solved_for(self) -> SolvedRun:
        return SolvedRun(self.steps, self.sigmas, self.fallback)

    @property
    def needs(self) -> int:
        return max([self.fallback.needs, *(len(weights) for _, weights in self.rows)])

    def forecast(self, site: Site, node: Node, out=None):
        weights = self.weights(site, node)
        return self.fallback.forecast(site, node, out) if weights is None else site.combine(weights, out)

    def weights(self, site: Site, node: Node) -> tuple[float, ...] | None:
        """Of the site's snapshots at a step; None where the table has none for them."""
        weights = dict(self.rows).get(int(node.index), ())
        held = [int(n.index) for n in site.nodes]
        if not weights or [full for full, _ in weights] != held[: len(weights)]:
            return None
        return tuple(w for _, w in weights)

    def to_dict(self) -> dict:
        levels = {"sigmas": list(self.sigmas)} if self.sigmas else {}
        table = {str(step): {str(f): w for f, w in weights} for step, weights in self.rows}
        return {"by": "step", "steps": self.steps, **levels, "table": table}

    @classmethod
    def of(
        cls, steps: int, table: Mapping[int, Mapping[int, float]], sigmas: Sequence[float] = ()
    ) -> SolvedWeights:
        return cls(
            steps, tuple((step, tuple(weights.items())) for step, weights in table.items()), tuple(sigmas)
        )

    @classmethod
    def read(cls, steps, table, sigmas=()) -> SolvedWeights:
        """From JSON; ValueError in one sentence."""
        sigmas = read_sigmas("a table", sigmas)
        if not isinstance(table, Mapping) or len(table) > MAX_STEPS:
            raise ValueError("table must be an object of steps.")
        rows = []
        for step, weights in table.items():
            if not isinstance(weights, Mapping) or len(weights) > 64:
                raise ValueError(f"table.{step} must be an object of full steps and weights.")
            at = read_step("table", step)
            rows.append(
                (
                    at,
                    tuple((read_step("table", f), read_number(f"table.{at}", w)) for f, w in weights.items()),
                )
            )
        return cls(steps, tuple(rows), sigmas)


@dataclass(frozen=True)
class ClusterWeights(FeaturePredictor):
    """A forecast with a table for each cluster of channels. labels: the cluster of every channel, a
    hexadecimal digit each.

    Where the features have another width, or a step is in doubt, it goes by `fallback`. Raises ValueError
    naming the field."""

    labels: str
    tables: tuple[SolvedWeights, ...]

    def __post_init__(self):
        if (
            not isinstance(self.labels, str)
            or not 1 <= len(self.labels) <= MOST_CHANNELS
            or not 1 <= len(self.tables) <= len(DIGITS)
        ):
            raise ValueError(
                f"labels must be a text of at most {MOST_CHANNELS} digits and tables a list of at most "
                f"{len(DIGITS)}."
            )
        if set(self.labels) - set(DIGITS[: len(self.tables)]):
            raise ValueError(f"labels must be digits below {len(self.tables)}, one per channel.")
        if len({(t.steps, t.sigmas) for t in self.tables}) > 1:
            raise ValueError("tables must be of one run.")

    name = "table by channel"

    @property
    def solved_for(self) -> SolvedRun:
        return self.tables[0].solved_for

    @property
    def steps(self) -> int:
        return self.tables[0].steps

    @property
    def sigmas(self) -> tuple[float, ...]:
        return self.tables[0].sigmas

    @property
    def fallback(self) -> Predictor:
        return self.tables[0].fallback

    @property
    def needs(self) -> int:
        return max(t.needs for t in self.tables)

    def forecast(self, site: Site, node: Node, out=None):
        newest = site.snapshots[0]
        axis = 1 if newest.ndim > 3 else newest.ndim - 1  # of pictures and of tokens
        found = [t.weights(site, node) for t in self.tables]
        rows = [row for row in found if row is not None]
        if len(rows) < len(found) or newest.shape[axis] != len(self.labels):
            return self.fallback.forecast(site, node, out)
        shape = [-1 if i == axis else 1 for i in range(newest.ndim)]
        longest = max(map(len, rows))
        weights = _by_channel(self.labels, [(*r, *[0.0] * (longest - len(r))) for r in rows], newest.device)
        return weighted_sum(site.snapshots, [w.view(shape) for w in weights], out)

    def to_dict(self) -> dict:
        tables = [t.to_dict() for t in self.tables]
        levels = {"sigmas": tables[0]["sigmas"]} if self.sigmas else {}
        return {
            "by": "cluster",
            "steps": self.steps,
            **levels,
            "labels": self.labels,
            "tables": [t["table"] for t in tables],
        }

    @classmethod
    def read(cls, steps, labels, tables, sigmas=()) -> ClusterWeights:
        """From JSON; ValueError in one sentence."""
        if not isinstance(tables, (list, tuple)) or len(tables) > len(DIGITS):
            raise ValueError(f"tables must be a list of at most {len(DIGITS)} objects of steps.")
        return cls(labels, tuple(SolvedWeights.read(steps, t, sigmas) for t in tables))


@lru_cache(maxsize=4)
def _clusters(labels: str) -> torch.Tensor:
    """The cluster [d] of every channel, on the CPU: what outlives a run must take no room on its device."""
    return torch.tensor([DIGITS.index(c) for c in labels])


def _by_channel(labels: str, rows: list[tuple[float, ...]], device: torch.device) -> torch.Tensor:
    """Weights [snapshots, d]."""
    return upload(torch.tensor(rows)[_clusters(labels)].T.contiguous(), device)
