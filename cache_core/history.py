"""What is remembered of one cached tensor, and how its value at another step is rebuilt.

The mixed-age rule: snapshots come from full steps only. What a conservative step computes afresh goes into an additive
correction that lives until the next full step. With the reuse predictor this is DuCa's in-place scatter.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from .predictors import Predictor
from .sites import CacheMismatch


@dataclass(frozen=True)
class Node:
    """Where on the sampling path a tensor was computed: the step `index` and the noise level `sigma`."""

    index: float
    sigma: float

    def at(self, coordinate: str) -> float:
        return self.sigma if coordinate == "sigma" else self.index


def take_rows(x: torch.Tensor, rows: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Rows of x [B,...] along `dim`; rows [1,k] are the same for the whole batch, rows [B,k] one choice per sample."""
    if rows.shape[0] == 1:
        return x.index_select(dim, rows[0])
    return x.gather(dim, _spread(rows, x, dim))


def put_rows_(x: torch.Tensor, rows: torch.Tensor, fresh: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Writes `fresh` into the chosen rows of x, in place; x must be owned by the caller."""
    if rows.shape[0] == 1:
        return x.index_copy_(dim, rows[0], fresh)
    return x.scatter_(dim, _spread(rows, x, dim), fresh)


def _spread(rows, x, dim):
    shape = [1] * x.ndim
    shape[0], shape[dim] = rows.shape
    size = list(x.shape)
    size[dim] = rows.shape[1]
    return rows.view(shape).expand(size)


class Site:
    """One cached tensor of one branch: snapshots of full steps, newest first, and the correction since the last one."""

    def __init__(self):
        self.nodes: list[Node] = []
        self.snapshots: list[torch.Tensor] = []
        self.correction: torch.Tensor | None = None

    def record(self, tensor: torch.Tensor, node: Node, keep: int) -> None:
        """Stores a full step's tensor (which must never be written to again), keeping the newest `keep`."""
        self.nodes = [node, *self.nodes][:keep]
        self.snapshots = [tensor, *self.snapshots][:keep]
        self.correction = None

    def forecast(self, predictor: Predictor, node: Node, out: torch.Tensor | None = None) -> torch.Tensor:
        """The predictor's value at `node`; without `out` it may be a snapshot itself: do not write to it."""
        weights = predictor.weights([n.at(predictor.coordinate) for n in self.nodes], node.at(predictor.coordinate))
        if len(weights) == 1 or not any(weights[1:]):
            return self.snapshots[0] if out is None else out.copy_(self.snapshots[0])
        if len(weights) == 2:
            # Weights sum to 1, so one fused lerp with a single rounding does it, also in bfloat16.
            return torch.lerp(self.snapshots[0], self.snapshots[1], weights[1], out=out)
        total = sum(w * s.float() for w, s in zip(weights, self.snapshots)).to(self.snapshots[0].dtype)
        return total if out is None else out.copy_(total)

    def value(self, predictor: Predictor, node: Node, out: torch.Tensor | None = None) -> torch.Tensor:
        """Forecast plus correction; the same rule about writing as `forecast`."""
        base = self.forecast(predictor, node, out)
        if self.correction is None:
            return base
        return base + self.correction if out is None else base.add_(self.correction)

    def correct(self, fresh: torch.Tensor, predictor: Predictor, node: Node, rows: torch.Tensor | None = None) -> None:
        """Keeps `fresh` minus forecast as correction, on the given rows ([1,k] or [B,k]) or on all."""
        base = self.forecast(predictor, node)
        if rows is None:
            self.correction = fresh - base
            return
        if self.correction is None:
            self.correction = torch.zeros_like(base)
        put_rows_(self.correction, rows, fresh - take_rows(base, rows))

    @property
    def bytes(self) -> int:
        tensors = [*self.snapshots] + ([self.correction] if self.correction is not None else [])
        return sum(t.numel() * t.element_size() for t in tensors)


class Branch:
    """Everything remembered of one branch (one conditioning entry, one phase, one shape) of a run."""

    def __init__(self):
        self.sites: dict[Hashable, Site] = {}
        self.kept: dict[Hashable, torch.Tensor] = {}
        """Working tensors refreshed in place: keys and values for live attention, and value norms."""
        self.refreshed: dict[Hashable, torch.Tensor] = {}
        """At which step each token [b,N] was last computed, by block and stream, since the last full step."""
        self.refusal: str | None = None
        """Why rows of this branch cannot be refreshed alone, or None."""

    def site(self, name: Hashable) -> Site:
        return self.sites.setdefault(name, Site())

    def forget_choices(self) -> None:
        """A full step computes every token, so none is older than another."""
        self.refreshed.clear()

    @property
    def bytes(self) -> int:
        return sum(s.bytes for s in self.sites.values()) + sum(t.numel() * t.element_size() for t in self.kept.values())


class Batch:
    """The branches that one model call evaluates together, in batch order; tensors are [len(branches) * b, ...]."""

    def __init__(self, branches: list[Branch], node: Node):
        self.branches, self.node = branches, node

    def record(self, name: Hashable, tensor: torch.Tensor, keep: int) -> None:
        for branch, part in zip(self.branches, tensor.chunk(len(self.branches))):
            branch.site(name).record(part, self.node, keep)

    def value(self, name: Hashable, predictor: Predictor, owned: bool = False) -> torch.Tensor:
        """The site's value for the whole batch; `owned` promises a tensor that the caller may write to."""
        sites = self._sites(name)
        if len(sites) == 1 and not owned:
            return sites[0].value(predictor, self.node)
        first = sites[0].snapshots[0]
        out = torch.empty((first.shape[0] * len(sites), *first.shape[1:]), dtype=first.dtype, device=first.device)
        for site, part in zip(sites, out.chunk(len(sites))):
            site.value(predictor, self.node, out=part)
        return out

    def correct(self, name: Hashable, fresh: torch.Tensor, predictor: Predictor, rows: torch.Tensor | None = None) -> None:
        n = len(self.branches)
        own_rows = [rows] * n if rows is None or rows.shape[0] == 1 else rows.chunk(n)
        for site, part, r in zip(self._sites(name), fresh.chunk(n), own_rows):
            site.correct(part, predictor, self.node, r)

    def _sites(self, name: Hashable) -> list[Site]:
        """The site in every branch; CacheMismatch where a block did not run on the last full step, as other nodes may have it."""
        if any(name not in b.sites for b in self.branches):
            raise CacheMismatch("A block that runs now did not run on the last full step, so this call ran in full.")
        return [b.sites[name] for b in self.branches]

    def keep(self, name: Hashable, tensor: torch.Tensor) -> None:
        for branch, part in zip(self.branches, tensor.chunk(len(self.branches))):
            branch.kept[name] = part

    def kept(self, name: Hashable) -> torch.Tensor | None:
        parts = [b.kept.get(name) for b in self.branches]
        if any(p is None for p in parts):
            return None
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def refreshed(self, name: Hashable) -> torch.Tensor | None:
        parts = [b.refreshed.get(name) for b in self.branches]
        return None if any(p is None for p in parts) else torch.cat(parts)

    def note_refreshed(self, name: Hashable, steps: torch.Tensor) -> None:
        for branch, part in zip(self.branches, steps.chunk(len(self.branches))):
            branch.refreshed[name] = part

    def refuse(self, reason: str) -> None:
        for branch in self.branches:
            branch.refusal = reason
