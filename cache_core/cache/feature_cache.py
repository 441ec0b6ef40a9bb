"""What is remembered of one cached tensor, and how its value at another step is rebuilt.

The mixed-age rule: snapshots come from full steps only. What a conservative step computes afresh goes into an
additive correction that lives until the next full step. With the reuse predictor this is DuCa's in-place
scatter."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..base.coordinates import Node
from ..base.errors import CacheMismatch
from .corrections import Correction
from .feature_predictor import FeaturePredictor
from .offload import OffloadStore
from .rows import put_rows_, take_rows
from .weighted_sums import cut, weighted_sum, within_range_


class Site:
    """One cached tensor of one branch: snapshots of full steps, newest first, and the correction since the
    last one."""

    def __init__(
        self,
        evidence: Evidence | None = None,
        stream: str = "",
        name: tuple = (),
        offloaded: OffloadStore | None = None,
    ):
        self.name = name
        self.nodes: list[Node] = []
        self.kept: list[torch.Tensor] = []
        """The snapshots where they are kept, which is in main memory when features are offloaded."""
        self._offloaded = offloaded
        self.correction: Correction | None = None
        self.evidence = evidence
        """What the branch has seen of the current step."""
        self.stream = stream
        """"img" or "txt" for a tensor of one stream alone; others hold text and image, in this order."""
        self.learned: dict = {}
        """What a predictor remembers of this site: gains, labels."""

    @property
    def snapshots(self) -> list[torch.Tensor]:
        """On the model's device."""
        return self.kept if self._offloaded is None else self._offloaded.near(self, self.kept)

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
        self.kept = [
            tensor if self._offloaded is None else self._offloaded.put(self, tensor, keep),
            *self.kept,
        ][:keep]
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
            return within_range_(torch.lerp(self.snapshots[0], self.snapshots[1], weights[1], out=out))
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
        return base if self.correction is None else self.correction.applied(base, owned=out is not None)

    def correct(
        self, fresh: torch.Tensor, predictor: FeaturePredictor, node: Node, rows: torch.Tensor | None = None
    ) -> None:
        """Keeps `fresh` minus forecast as correction, on the given rows ([1,k] or [B,k]) or on all."""
        base = self.forecast(predictor, node)
        correction = self.correction = self.correction or Correction()
        if rows is None:
            correction.set_whole(fresh - base)
        else:
            correction.add_rows(rows, fresh - take_rows(base, rows))

    def refresh(
        self,
        fresh: torch.Tensor,
        predictor: FeaturePredictor,
        node: Node,
        rows: torch.Tensor,
        out: torch.Tensor,
    ) -> torch.Tensor:
        """As `correct` and then `value`, by one forecast, which is made in `out`."""
        base = self.forecast(predictor, node, out)
        correction = self.correction = self.correction or Correction()
        difference = fresh - take_rows(base, rows)
        value = put_rows_(correction.applied(base, owned=True), rows, fresh)
        correction.add_rows(rows, difference)
        return value

    def part(self, where: slice) -> Site:
        """A view of a slice of the tokens of this site and of its evidence, for forecasts of them alone."""
        if where == slice(None):
            return self
        view = Site(self.evidence and self.evidence.part(where), self.stream, self.name)
        view.nodes, view.learned = self.nodes, self.learned
        view.kept = [cut(s, where) for s in self.snapshots]
        return view

    def sampled(self, predictor: FeaturePredictor, node: Node, stride: int) -> torch.Tensor:
        """The value at every `stride`-th token, for measures that need no more."""
        if stride == 1 or not predictor.by_token:
            return self.value(predictor, node)[:, ::stride]
        part = None if self.correction is None else self.correction.every(stride)
        if self.correction is not None and part is None:  # its rows lie anywhere
            return self.value(predictor, node)[:, ::stride]
        view = self.part(slice(None, None, stride))
        view.correction = part
        return view.value(predictor, node)

    @property
    def text_tokens(self) -> int:
        """How many tokens at the beginning of this tensor are text."""
        if self.evidence is None or self.stream == "img":
            return 0
        return self.kept[0].shape[1] if self.stream == "txt" else self.evidence.text_tokens

    @property
    def bytes(self) -> int:
        tensors = [*self.kept, *(self.correction.tensors if self.correction is not None else ())]
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
        self.branch: object = None
        """The host's key of the branch, which tells the conditional one from the unconditional one."""

    def part(self, where: slice) -> Evidence:
        """A view of a slice of the tokens."""
        view = Evidence()
        view.past = self.past.part(where)
        view.now = None if self.now is None else cut(self.now, where)
        return view


CONTROL_CHANGE = 0.25
"""Relative change of what control networks add beyond which features of the last full step are out of
date."""


_STREAMS = {f"{stream}{part}": stream for stream in ("img", "txt") for part in ("", "_attn", "_mlp")}
"""The stream of a block's site that holds one stream alone, by the last part of its name."""


class Branch:
    """Everything remembered of one branch (one conditioning entry, one phase, one shape) of a run."""

    def __init__(self, offloaded: OffloadStore | None = None):
        self._offloaded = offloaded
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
        self.sites: dict[tuple, Site] = {}
        self.kept: dict[tuple, torch.Tensor] = {}
        """Working tensors refreshed in place: keys and values for live attention, and value norms."""
        self.refreshed: dict[tuple, torch.Tensor] = {}
        """At which step each token was last computed since the last full step: [b,blocks,n] by stream, or
        [b,n] by block and stream."""
        self.refusal: str | None = None
        """Why rows of this branch cannot be refreshed alone, or None."""

    def site(self, name: tuple) -> Site:
        if name not in self.sites:
            stream = _STREAMS.get(name[-1], "") if isinstance(name, tuple) else ""
            self.sites[name] = Site(self.evidence, stream, name, self._offloaded)
        return self.sites[name]

    def clear(self) -> None:
        """Frees every tensor."""
        self.__init__(self._offloaded)

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

    def record(self, name: tuple, tensor: torch.Tensor, predictor: FeaturePredictor) -> None:
        if not self.keeps:
            return
        for branch, part in zip(self.branches, tensor.chunk(len(self.branches))):
            branch.site(name).record(part, self.node, predictor)

    def observe(self, probe: torch.Tensor) -> None:
        """The probe of this call, for forecasts that look at it."""
        for branch, part in zip(self.branches, probe.chunk(len(self.branches))):
            branch.evidence.now = part

    def value(self, name: tuple, predictor: FeaturePredictor, owned: bool = False) -> torch.Tensor:
        """The site's value for the whole batch; `owned` promises a tensor that the caller may write to."""
        sites = self._sites(name)
        if any(self.node.index - site.nodes[0].index > self.longest_gap for site in sites):
            raise CacheMismatch(
                "A feature was older than the plan allows, as its block did not run on the last full step; "
                "this call runs in full."
            )
        if len(sites) == 1 and not owned:
            return sites[0].value(predictor, self.node)
        out = self._room(sites)
        for site, part in zip(sites, out.chunk(len(sites))):
            site.value(predictor, self.node, out=part)
        return out

    def correct(
        self,
        name: tuple,
        fresh: torch.Tensor,
        predictor: FeaturePredictor,
        rows: torch.Tensor | None = None,
    ) -> None:
        n = len(self.branches)
        own_rows = [rows] * n if rows is None or rows.shape[0] == 1 else rows.chunk(n)
        for site, part, r in zip(self._sites(name), fresh.chunk(n), own_rows):
            site.correct(part, predictor, self.node, r)

    def refresh(
        self, name: tuple, fresh: torch.Tensor, predictor: FeaturePredictor, rows: torch.Tensor
    ) -> torch.Tensor:
        """The site's value with fresh rows in it, which become its correction; the caller may write to it."""
        sites, n = self._sites(name), len(self.branches)
        own_rows = [rows] * n if rows.shape[0] == 1 else rows.chunk(n)
        out = self._room(sites)
        for site, part, r, place in zip(sites, fresh.chunk(n), own_rows, out.chunk(n)):
            site.refresh(part, predictor, self.node, r, place)
        return out

    def dimensions(self, name: tuple) -> int:
        """Of a site's tensors."""
        return self._sites(name)[0].kept[0].ndim

    @staticmethod
    def _room(sites: list[Site]) -> torch.Tensor:
        first = sites[0].snapshots[0]
        return torch.empty(
            (first.shape[0] * len(sites), *first.shape[1:]), dtype=first.dtype, device=first.device
        )

    def probed(self) -> int:
        """Bytes of the probes of this call."""
        seen = [b.evidence.now for b in self.branches if b.evidence.now is not None]
        return sum(t.numel() * t.element_size() for t in seen)

    def end(self) -> None:
        """The call has ended: its probes are freed, but for those that were kept."""
        for branch in self.branches:
            branch.evidence.now = None

    def _sites(self, name: tuple) -> list[Site]:
        """The site in every branch; CacheMismatch where a block did not run on the last full step, as other
        nodes may have it."""
        if any(name not in b.sites for b in self.branches):
            raise CacheMismatch(
                "A block that runs now did not run on the last full step; this call runs in full."
            )
        return [b.sites[name] for b in self.branches]

    def keep(self, name: tuple, tensor: torch.Tensor) -> None:
        for branch, part in zip(self.branches, tensor.chunk(len(self.branches))):
            branch.kept[name] = part

    def kept(self, name: tuple) -> torch.Tensor | None:
        if any(name not in b.kept for b in self.branches):
            return None
        parts = [b.kept[name] for b in self.branches]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def refreshed(self, name: tuple) -> torch.Tensor | None:
        if any(name not in b.refreshed for b in self.branches):
            return None
        return torch.cat([b.refreshed[name] for b in self.branches])

    def note_refreshed(self, name: tuple, steps: torch.Tensor) -> None:
        for branch, part in zip(self.branches, steps.chunk(len(self.branches))):
            branch.refreshed[name] = part

    def refuse(self, reason: str) -> None:
        for branch in self.branches:
            branch.refusal = reason
