"""Gains that follow the data: of the last forecast that can be judged, or of a cheap probe of the current
step.

All of them stay on the device as one number per sample, so that nothing waits for the host and a batch equals
its images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch

from ..base.coordinates import Node
from ..cache.feature_cache import Site
from ..cache.feature_predictor import FeaturePredictor
from ..cache.weighted_sums import cut, pieces
from .extrapolation import Predictor

ADAPTATIONS = ("least_squares", "back_off")


def _per_sample(gain: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Gains [b] shaped to scale snapshots [b,...]."""
    return gain.view(-1, *[1] * (like.ndim - 1))


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner products [b] of samples, in float32."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))


def _products(rows, truth: torch.Tensor, *snapshots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inner products of the directions with each other [b,k,k] and with what the newest snapshot misses of
    `truth` [b,k]; rows: weights of the directions.

    In float32, because the differences are small beside the features."""
    newest = snapshots[0].float()
    sums = [sum(w * (s.float() - newest) for s, w in zip(snapshots, r) if w) for r in rows]
    steps = cast("list[torch.Tensor]", sums)  # no row is empty
    miss = truth.float() - newest
    gram = torch.stack([torch.stack([_inner(a, b) for b in steps], -1) for a in steps], -2)
    return gram, torch.stack([_inner(a, miss) for a in steps], -1)


def _moves(now: torch.Tensor, newest: torch.Tensor, older: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean absolute differences [b] of a probe and of the newest one to the older one, in float32."""
    parts = []
    for where in pieces(now):
        a, b, c = (cut(x, where).float().flatten(1) for x in (now, newest, older))
        share = a.shape[1] / now[0].numel()
        parts.append(((a - c).abs().mean(1) * share, (b - c).abs().mean(1) * share))
    moved, known = zip(*parts)
    return torch.stack(moved).sum(0), torch.stack(known).sum(0)


@dataclass(frozen=True)
class Adaptive(FeaturePredictor):
    """A predictor whose orders are weighed at every full step by how well they would have predicted it, for
    the interval that follows.

    rule: the predictor; what each of its orders adds to the one below is a direction with a gain of its own.
        how: "least_squares" solves for the gains that would have given the truth, "back_off" keeps the orders
        up to the one that came closest (none: reuse). ridge: pull towards the rule's own gain, relative to
        the directions' energy. limit: largest gain either way.
    Source: online form of the closed solution behind L2P (arXiv 2604.26365); the order test is SpeCa's
        verification without its threshold."""

    rule: Predictor
    how: str = "least_squares"
    ridge: float = 0.05
    limit: float = 1.5

    def __post_init__(self):
        if self.how not in ADAPTATIONS:
            raise ValueError(f"adapt must be one of {', '.join(ADAPTATIONS)}, not {repr(self.how)[:40]}.")
        if not self.rule.order:
            raise ValueError(f"{self.rule.name} has no gain to adapt.")

    @property
    def name(self) -> str:
        return f"{self.rule.name}, {self.how.replace('_', ' ')}"

    @property
    def needs(self) -> int:
        return self.rule.needs

    def _directions(self, site: Site, node: Node) -> list[list[float]]:
        """Weights that each order adds at gain 1: rows that sum to 0."""
        nodes = [n.at(self.rule.coordinate) for n in site.nodes]
        target = node.at(self.rule.coordinate)
        rows, below = [], [1.0] + [0.0] * (len(nodes) - 1)
        for p in self.rule.lower():
            if p.order == 0:
                continue
            weights = list(_unit(p).weights(nodes, target))
            weights += [0.0] * (len(nodes) - len(weights))
            rows.append([a - b for a, b in zip(weights, below)])
            below = weights
        return rows

    def learn(self, site: Site, truth: torch.Tensor, node: Node) -> None:
        rows = [r for r in self._directions(site, node) if any(r)]
        if not rows:
            return
        products = [_products(rows, *(cut(x, p) for x in (truth, *site.snapshots))) for p in pieces(truth)]
        gram, against = products[0]
        for more, beside in products[1:]:
            gram, against = gram + more, against + beside
        count, prior = len(rows), self.rule.gain
        if self.how == "least_squares":
            pull = self.ridge * torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1)) + 1e-12 * torch.eye(
                count, device=gram.device
            )
            gains = torch.linalg.solve_ex(gram + pull, against + pull.diagonal(dim1=-2, dim2=-1) * prior)[0]
        else:
            tries = torch.tril(torch.ones(count + 1, count, device=gram.device), -1) * prior
            errors = torch.einsum("ti,bij,tj->bt", tries, gram, tries) - 2 * against @ tries.T
            gains = tries[errors.argmin(-1)]
        site.learned["gains"] = gains.clamp(-self.limit, self.limit).nan_to_num(0.0)

    def forecast(self, site: Site, node: Node, out: torch.Tensor | None = None) -> torch.Tensor:
        gains, rows = site.learned.get("gains"), [r for r in self._directions(site, node) if any(r)]
        if gains is None or not rows:
            return self.rule.forecast(site, node, out)
        site.learned["indicator"] = gains.mean()
        weights: list = [0.0] * len(site.nodes)
        for i, row in enumerate(rows):
            if i < gains.shape[1]:  # an order that has not been tried yet on this sample is not trusted
                weights = [w + gains[:, i] * r for w, r in zip(weights, row)]
        weights[0] = weights[0] + 1.0
        return site.combine(
            [_per_sample(w, site.snapshots[0]) if isinstance(w, torch.Tensor) else w for w in weights], out
        )

    def to_dict(self) -> dict:
        return {
            **self.rule.to_dict(),
            "adapt": self.how,
            **_changed(self, ("ridge", "limit"), {"ridge": "pull", "limit": "limit"}),
        }


def _unit(p: Predictor) -> Predictor:
    return p if p.gain == 1 else Predictor(**{**p.__dict__, "gain": 1.0})


def _changed(part, names, keys) -> dict:
    plain = type(part).__dataclass_fields__
    return {keys[n]: getattr(part, n) for n in names if getattr(part, n) != plain[n].default}


@dataclass(frozen=True)
class ProbeGain(FeaturePredictor):
    """DiCache (ICLR 2026): R2 + g (R1 - R2) with R1, R2 the last two full steps' features and g = mean|p -
    P2| / mean|P1 - P2|.

    p, P1, P2: the residual of the first `blocks` blocks now and at those steps; the blocks run on every step
        for it. low, high: bounds of g; the published code clips to 1..1.5, the paper does not (None)."""

    blocks: int = 1
    low: float | None = 1.0
    high: float | None = 1.5

    def __post_init__(self):
        if isinstance(self.blocks, bool) or not isinstance(self.blocks, int) or not 1 <= self.blocks <= 64:
            raise ValueError(
                f"blocks of probe_gain must be a whole number from 1 to 64, not {self.blocks!r}."
            )
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise ValueError(f"low of probe_gain must not be above high, not {self.low!r}.")

    name, probe, needs = "probe_gain", "block", 2

    @property
    def probe_blocks(self) -> int:
        return self.blocks

    def forecast(self, site: Site, node: Node, out: torch.Tensor | None = None) -> torch.Tensor:
        seen = site.evidence
        past = seen.past if seen else None
        if (
            len(site.nodes) < 2
            or past is None
            or past.nodes[:2] != site.nodes[:2]
            or seen is None
            or seen.now is None
            or seen.now.shape != past.snapshots[0].shape
        ):
            return site.combine([1.0], out)
        moved, before = _moves(seen.now, *past.snapshots[:2])
        gain = (moved / before).nan_to_num(1.0, 1.0, 1.0)
        if (self.low, self.high) != (None, None):
            gain = gain.clamp(self.low, self.high)
        site.learned["indicator"] = gain.mean()
        gain = _per_sample(gain, site.snapshots[0])
        return site.combine([gain, 1 - gain], out)

    def to_dict(self) -> dict:
        return {
            "name": self.name,
            **_changed(self, ("blocks", "low", "high"), {"blocks": "blocks", "low": "low", "high": "high"}),
        }
