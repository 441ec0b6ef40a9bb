"""What is remembered of one cached tensor, and how its value at another step is rebuilt.

The mixed-age rule: snapshots come from full steps only. What a conservative step computes afresh goes into an
additive correction that lives until the next full step. With the reuse predictor this is DuCa's in-place
scatter."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from ..base.coordinates import Node
from ..base.errors import CacheMismatch
from .feature_predictor import FeaturePredictor
from .offload import Shelf
from .rows import put_rows_, take_rows


def weighted_sum(
    snapshots: Sequence[torch.Tensor],
    weights: Sequence[float | torch.Tensor],
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum of weights times snapshots in the snapshots' dtype, accumulated in float32; a weight is a number or
    broadcasts to a snapshot."""
    first = snapshots[0]
    pairs = [(s, w) for s, w in zip(snapshots, weights) if isinstance(w, torch.Tensor) or w]
    if not pairs:
        return torch.zeros_like(first) if out is None else out.zero_()
    total = (
        out
        if out is not None and out.dtype == torch.float32
        else torch.empty_like(first, dtype=torch.float32)
    )
    if first.dtype == torch.float32:
        torch.mul(*pairs[0], out=total)
    else:
        total.copy_(pairs[0][0]).mul_(pairs[0][1])
    for snapshot, weight in pairs[1:]:
        if isinstance(weight, torch.Tensor):
            total.addcmul_(snapshot if snapshot.dtype == torch.float32 else snapshot.float(), weight)
        else:
            total.add_(snapshot, alpha=weight)
    if total.dtype == first.dtype:
        return total
    return total.to(first.dtype) if out is None else out.copy_(total)


class Site:
    """One cached tensor of one branch: snapshots of full steps, newest first, and the correction since the
    last one."""

    def __init__(
        self,
        evidence: Evidence | None = None,
        stream: str = "",
        name: Hashable = (),
        shelf: Shelf | None = None,
    ):
        self.name = name
        self.nodes: list[Node] = []
        self.kept: list[torch.Tensor] = []
        """The snapshots where they are kept, which is in main memory when there is a shelf."""
        self._shelf = shelf
        self.correction: torch.Tensor | None = None
        self.evidence = evidence
        """What the branch has seen of the current step."""
        self.stream = stream
        """"img" or "txt" for a tensor of one stream alone; others hold text and image, in this order."""
        self.learned: dict = {}
        """What a predictor remembers of this site: gains, labels."""

    @property
    def snapshots(self) -> list[torch.Tensor]:
        """On the model's device."""
        return self.kept if self._shelf is None else self._shelf.near(self, self.kept)

    def record(self, tensor: torch.Tensor, node: Node, predictor: FeaturePredictor) -> None:
        """Stores a full step's tensor (which must never be written to again), keeping as many as the
        predictor needs."""
        if self.kept and self.kept[0].shape == tensor.shape:
            predictor.learn(self, tensor, node)
        else:
            self.nodes, self.kept, self.learned = [], [], {}
        self.push(tensor, node, predictor.needs)

    def push(self, tensor: torch.Tensor, node: Node, keep: int) -> None:
        self.nodes = [node, *self.nodes][:keep]
        self.kept = [tensor if self._shelf is None else self._shelf.put(self, tensor), *self.kept][:keep]
        self.correction = None

    def combine(
        self, weights: Sequence[float | torch.Tensor], out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The snapshots by their weights; without `out` it may be a snapshot itself: do not write to it."""
        plain = not any(isinstance(w, torch.Tensor) for w in weights)
        if plain and weights[0] == 1 and not any(weights[1:]):
            return self.snapshots[0] if out is None else out.copy_(self.snapshots[0])
        if plain and len(weights) == 2 and abs(sum(weights) - 1) < 1e-9:
            # One fused lerp with a single rounding does it, also in bfloat16.
            return torch.lerp(self.snapshots[0], self.snapshots[1], weights[1], out=out)
        if (
            plain
            and len(weights) == 3
            and self.snapshots[0].dtype == torch.float32
            and abs(sum(weights) - 1) < 1e-9
            and weights[2] < 0.75
        ):
            # Two such passes take less than a product and two sums; in 16 bits the first would round what the
            # second needs.
            near = torch.lerp(self.snapshots[0], self.snapshots[1], weights[1] / (1 - weights[2]), out=out)
            return torch.lerp(near, self.snapshots[2], weights[2], out=near)
        return weighted_sum(self.snapshots, weights, out)

    def forecast(
        self, predictor: FeaturePredictor, node: Node, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The predictor's value at `node`; the same rule about writing as `combine`."""
        return predictor.forecast(self, node, out)

    def value(self, predictor: FeaturePredictor, node: Node, out: torch.Tensor | None = None) -> torch.Tensor:
        """Forecast plus correction; the same rule about writing as `forecast`."""
        base = self.forecast(predictor, node, out)
        if self.correction is None:
            return base
        return base + self.correction if out is None else base.add_(self.correction)

    def correct(
        self, fresh: torch.Tensor, predictor: FeaturePredictor, node: Node, rows: torch.Tensor | None = None
    ) -> None:
        """Keeps `fresh` minus forecast as correction, on the given rows ([1,k] or [B,k]) or on all."""
        base = self.forecast(predictor, node)
        if rows is None:
            self.correction = fresh - base
            return
        if self.correction is None:
            self.correction = torch.zeros_like(base)
        put_rows_(self.correction, rows, fresh - take_rows(base, rows))

    @property
    def text_tokens(self) -> int:
        """How many tokens at the beginning of this tensor are text."""
        if self.evidence is None or self.stream == "img":
            return 0
        return self.kept[0].shape[1] if self.stream == "txt" else self.evidence.text_tokens

    @property
    def bytes(self) -> int:
        tensors = [*self.kept] + ([self.correction] if self.correction is not None else [])
        return sum(t.numel() * t.element_size() for t in tensors)


class Evidence:
    """What a branch has seen of the current step and of the last full ones: the probe, and where the image
    tokens lie."""

    def __init__(self):
        self.past = Site()
        """The probe at full steps."""
        self.now: torch.Tensor | None = None
        self.text_tokens = 0
        self.grid: tuple[int, int] | None = None


CONTROL_CHANGE = 0.25
"""Relative change of what control networks add beyond which features of the last full step are out of
date."""


_STREAMS = {f"{stream}{part}": stream for stream in ("img", "txt") for part in ("", "_attn", "_mlp")}
"""The stream of a block's site that holds one stream alone, by the last part of its name."""


class Branch:
    """Everything remembered of one branch (one conditioning entry, one phase, one shape) of a run."""

    def __init__(self, shelf: Shelf | None = None):
        self._shelf = shelf
        self.evidence = Evidence()
        self.signature: tuple | None = None
        """Shape and dtype of the tokens of the last full step; None before one."""
        self.size = 0
        """Samples in that step."""
        self.full_at: int | None = None
        """The last full step."""
        self.input: tuple[int, torch.Size, torch.Tensor] | None = None
        """The step of the last evaluation, and of the model's input there the size of a sample and some
        values [b,k]."""
        self.control: float | None = None
        """Size of what control networks added at the last full step."""
        self.sites: dict[Hashable, Site] = {}
        self.kept: dict[Hashable, torch.Tensor] = {}
        """Working tensors refreshed in place: keys and values for live attention, and value norms."""
        self.refreshed: dict[Hashable, torch.Tensor] = {}
        """At which step each token [b,N] was last computed, by block and stream, since the last full step."""
        self.refusal: str | None = None
        """Why rows of this branch cannot be refreshed alone, or None."""

    def site(self, name: Hashable) -> Site:
        if name not in self.sites:
            stream = _STREAMS.get(name[-1], "") if isinstance(name, tuple) else ""
            self.sites[name] = Site(self.evidence, stream, name, self._shelf)
        return self.sites[name]

    def clear(self) -> None:
        """Frees every tensor."""
        self.__init__(self._shelf)

    def control_changed(self, control: float | None) -> bool:
        """Whether control networks add much more or much less than at the last full step."""
        if control is None or self.control is None:
            return control is not self.control
        return abs(control - self.control) > CONTROL_CHANGE * max(control, self.control)

    def forget_choices(self) -> None:
        """A full step computes every token, so none is older than another."""
        self.refreshed.clear()

    @property
    def bytes(self) -> int:
        sites = [*self.sites.values(), self.evidence.past]
        return sum(s.bytes for s in sites) + sum(t.numel() * t.element_size() for t in self.kept.values())


class Batch:
    """The branches that one model call evaluates together, in batch order; tensors are [len(branches) * b,
    ...].

    keeps: False where nothing of the run is ever put back, as in a run that is only observed.
    longest_gap: steps after which a snapshot is too old to be put back.
    """

    def __init__(
        self, branches: list[Branch], node: Node, keeps: bool = True, longest_gap: float = float("inf")
    ):
        self.branches, self.node, self.keeps, self.longest_gap = branches, node, keeps, longest_gap

    def record(self, name: Hashable, tensor: torch.Tensor, predictor: FeaturePredictor) -> None:
        if not self.keeps:
            return
        for branch, part in zip(self.branches, tensor.chunk(len(self.branches))):
            branch.site(name).record(part, self.node, predictor)

    def observe(self, probe: torch.Tensor) -> None:
        """The probe of this call, for forecasts that look at it."""
        for branch, part in zip(self.branches, probe.chunk(len(self.branches))):
            branch.evidence.now = part

    def value(self, name: Hashable, predictor: FeaturePredictor, owned: bool = False) -> torch.Tensor:
        """The site's value for the whole batch; `owned` promises a tensor that the caller may write to."""
        sites = self._sites(name)
        if any(self.node.index - site.nodes[0].index > self.longest_gap for site in sites):
            raise CacheMismatch(
                "A feature was older than the plan allows, as its block did not run on the last full step; "
                "this call runs in full."
            )
        if len(sites) == 1 and not owned:
            return sites[0].value(predictor, self.node)
        first = sites[0].snapshots[0]
        out = torch.empty(
            (first.shape[0] * len(sites), *first.shape[1:]), dtype=first.dtype, device=first.device
        )
        for site, part in zip(sites, out.chunk(len(sites))):
            site.value(predictor, self.node, out=part)
        return out

    def correct(
        self,
        name: Hashable,
        fresh: torch.Tensor,
        predictor: FeaturePredictor,
        rows: torch.Tensor | None = None,
    ) -> None:
        n = len(self.branches)
        own_rows = [rows] * n if rows is None or rows.shape[0] == 1 else rows.chunk(n)
        for site, part, r in zip(self._sites(name), fresh.chunk(n), own_rows):
            site.correct(part, predictor, self.node, r)

    def _sites(self, name: Hashable) -> list[Site]:
        """The site in every branch; CacheMismatch where a block did not run on the last full step, as other
        nodes may have it."""
        if any(name not in b.sites for b in self.branches):
            raise CacheMismatch(
                "A block that runs now did not run on the last full step; this call runs in full."
            )
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
