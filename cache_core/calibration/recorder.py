"""Observes uncached runs and keeps what a profile holds: products of features over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch

from ..base.coordinates import Node
from ..base.handles import Handle
from ..base.names import FINAL, PATH
from ..cache.feature_cache import Branch
from ..predictors.grouped import descriptors, k_means
from .profile import MOST_CLUSTERS, Clusters, Profile

PROBED = 256
"""Tokens that channels are told apart by."""
AT_ONCE = 1 << 25
"""Values that are multiplied at a time."""


class _Seen:
    """What is kept of one site, on the CPU: features, oldest first, their products [b, 1..T] with those
    before and sizes [b, 4]."""

    def __init__(self, device: torch.device):
        self.device = device
        self.features: list[torch.Tensor] = []
        self.products: list[torch.Tensor] = []
        self.sizes: list[torch.Tensor] = []

    def add(self, truth: torch.Tensor) -> None:
        """The earlier features come back to the device one at a time."""
        before = self.features[-1].to(self.device) if self.features else truth
        self.sizes.append(_sizes(truth, before))
        self.products.append(
            torch.stack([_product(truth, x.to(self.device)) for x in (*self.features, truth)], -1).cpu()
        )
        self.features.append(truth.detach().to("cpu", copy=True))


def _product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """[b]: the inner product of each sample, some values at a time, since double precision takes four times
    the room."""
    parts = zip(*(x.flatten(1).split(max(1, AT_ONCE // len(x)), 1) for x in (one, other)))
    return cast(torch.Tensor, sum(torch.linalg.vecdot(x.double(), y.double()) for x, y in parts))


class Recorder(Handle):
    """Observer of one run: keeps the products of the final hidden state over the steps.

    It holds all features of a run on the CPU until the run ends: steps times the size of a site.

    tokens: how many rows of every module's output are kept beside them, 0 for none.
    clusters: into how many clusters the channels are put by how they move (HyCa), 0 for none.
    labels: [d], the clusters of the channels from an earlier run, instead of `clusters`.
    """

    def __init__(self, tokens: int = 0, clusters: int = 0, labels: torch.Tensor | None = None):
        if isinstance(clusters, bool) or not isinstance(clusters, int) or not 0 <= clusters <= MOST_CLUSTERS:
            raise ValueError(f"clusters must be a whole number from 0 to {MOST_CLUSTERS}, not {clusters!r}.")
        self._seen: dict[tuple, _Seen] = {}
        self._branches: list[Branch] = []  # held, so that their ids stay their own
        self._changed, self._abandoned = False, ""
        self._clusters, self._labels = clusters, labels
        self.module_recorder = ModuleRecorder(tokens) if tokens else None
        self.path = PathRecorder()

    @property
    def modules(self) -> bool:
        """Whether module outputs are recorded too."""
        return self.module_recorder is not None

    def observe(self, branch: Branch, name: tuple, truth: torch.Tensor, node: Node) -> None:
        """Keeps what `truth` [b,...] adds to the profile; see `cache.observer.Observer`."""
        if branch not in self._branches:
            self._branches.append(branch)
        key = (id(branch), name)
        if name == PATH:
            self.path.add(key, truth)
        elif name[: len(FINAL)] == FINAL:
            seen = self._seen.get(key)
            if seen is None:
                seen = self._seen[key] = _Seen(truth.device)
            self._changed |= bool(seen.features) and seen.features[0].shape != truth.shape
            if not self._changed:
                seen.add(truth)
        elif self.module_recorder is not None:
            self.module_recorder.add(key, truth)

    def abandon(self, why: str) -> None:
        """Forgets what was recorded; whoever asks for it is told why, as a ValueError."""
        self._abandoned = why
        self._seen.clear()
        self.path = PathRecorder()
        if self.module_recorder is not None:
            self.module_recorder.clear()

    def grams(self) -> torch.Tensor:
        """Gram matrices [samples, T, T] of all sites seen, oldest step first, each by its mean energy.
        ValueError before any run."""
        if self._abandoned:
            raise ValueError(f"{self._abandoned}.")
        if not any(len(seen.features) > 1 for seen in self._seen.values()):
            raise ValueError("nothing was recorded: sample at least two full steps.")
        if self._changed:
            raise ValueError("the size of the features changed during the run.")
        made = []
        for rows in (seen.products for seen in self._seen.values()):
            gram = torch.zeros(rows[0].shape[0], len(rows), len(rows), dtype=torch.float64)
            for t, row in enumerate(rows):
                gram[:, t, : t + 1] = row
            gram = gram + gram.tril(-1).mT
            made.append(_scaled(gram))
        return _joined(made)

    def clusters(self) -> Clusters | None:
        """Products by cluster of channels, in the unit of `grams`; None where none were asked for. ValueError
        as there."""
        if not self._clusters and self._labels is None:
            return None
        self.grams()  # for its errors
        runs = [seen.features for seen in self._seen.values()]
        if self._labels is None:
            probed = torch.stack([_channels(s)[0, _spread(_channels(s).shape[1])].float() for s in runs[0]])
            if len(probed) < 4:
                raise ValueError("channels are told apart by at least 4 steps.")
            self._labels = k_means(descriptors(probed).cpu(), self._clusters)
        labels, width = self._labels, _channels(runs[0][0]).shape[-1]
        if len(labels) != width:
            raise ValueError(f"the features have {width} channels, the clusters are of {len(labels)}.")
        made = torch.cat([_by_cluster(seen.features, labels, seen.device) for seen in self._seen.values()])
        # Sums over clusters are the whole: one unit for both.
        whole = made.sum(1).diagonal(dim1=-2, dim2=-1).mean(-1)
        return Clusters(labels.to(torch.uint8), made / whole[:, None, None, None].clamp_min(1e-300))

    def tokens(self) -> torch.Tensor:
        """`Profile.tokens` [samples, T, 4] of all sites seen."""
        return _joined([torch.stack(seen.sizes, 1) for seen in self._seen.values()])

    def profile(self, sigmas: Sequence[float], identity: Mapping | None = None, prompt: str = "") -> Profile:
        """All that was recorded; prompt: a mark of the run, see `Profile.prompts`. ValueError where nothing
        was or it does not fit."""
        modules = (
            self.module_recorder.grams()
            if self.module_recorder is not None and self.module_recorder.seen
            else {}
        )
        return Profile(
            self.grams(),
            tuple(sigmas),
            identity or {},
            modules=modules,
            path=self.path.grams(),
            clusters=self.clusters(),
            tokens=self.tokens(),
            prompts=(prompt,) if prompt else (),
        )


def _channels(x: torch.Tensor) -> torch.Tensor:
    """Features as [b, n, d]: of tokens [b, n, d], or of pictures, whose channels come before their places."""
    return x if x.ndim == 3 else x.flatten(2).mT if x.ndim > 3 else x.reshape(x.shape[0], 1, -1)


def _spread(count: int) -> torch.Tensor:
    """At most `PROBED` places of `count`, evenly spread."""
    return torch.arange(min(count, PROBED)) * count // min(count, PROBED)


def _sizes(x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """[b, 4]: mean and deviation over tokens of their lengths, and of the ratio to their lengths before."""
    own, old = (_channels(t).float().norm(dim=-1) for t in (x, before))
    ratio = own / old.clamp_min(1e-12)
    return (
        torch.stack([f for t in (own, ratio) for f in (t.mean(1), t.std(1, correction=0))], -1).double().cpu()
    )


def _by_cluster(run: Sequence[torch.Tensor], labels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Products [b, K, T, T] of a run's features, oldest first, by the labels [d] of their channels; worked
    out on the device."""
    first = _channels(run[0])
    b, n, d = first.shape
    places = [(labels == k).nonzero().flatten().to(device) for k in range(int(labels.max()) + 1)]
    out = torch.zeros(b, len(places), len(run), len(run), dtype=torch.float64)
    step = max(1, AT_ONCE // (len(run) * b * d))
    for at in range(0, n, step):
        part = (
            torch.stack([_channels(s)[:, at : at + step] for s in run], 1).to(device).double()
        )  # [b, T, tokens, d]
        for k, own in enumerate(places):
            x = part.index_select(-1, own).flatten(2)
            out[:, k] += (x @ x.mT).cpu()
    return out


class PathRecorder(Handle):
    """Keeps the input and the output of the model on full steps, on the CPU, until the run ends."""

    def __init__(self):
        self._kept: dict[tuple, list[torch.Tensor]] = {}
        self._odd = False

    def add(self, key: tuple, truth: torch.Tensor) -> None:
        """truth [b, 2, ...]: input and output."""
        rows = self._kept.setdefault(key, [])
        rows.append(truth.float().cpu())
        self._odd |= rows[0].shape != truth.shape

    def grams(self) -> torch.Tensor | None:
        """Products [samples, 2 T + 1, 2 T + 1] as in `Profile.path`; None where inputs and outputs cannot be
        compared."""
        if self._odd or not self._kept:
            return None
        made = []
        for rows in self._kept.values():
            x = torch.stack(rows, 2).flatten(3).flatten(1, 2).double()  # [b, 2 T, values]
            x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
            made.append(x @ x.mT / x.shape[-1])
        return _joined(made) if len({g.shape[1] for g in made}) == 1 else None


def _scaled(gram: torch.Tensor) -> torch.Tensor:
    """Gram matrices [b,T,T], each by its mean energy."""
    return gram / gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None].clamp_min(1e-300)


def _joined(grams: list[torch.Tensor]) -> torch.Tensor:
    if len({len(g[0]) for g in grams}) > 1:
        raise ValueError(
            "branches of different lengths were recorded; use a sampler of one evaluation per step and "
            "no time ranges."
        )
    return torch.cat(grams)


class ModuleRecorder(Handle):
    """Keeps rows of module outputs on full steps, as `Recorder` does the final hidden state.

    Of every module it keeps the same `tokens` rows, chosen at random, at every step: steps * tokens * width
    values in the model's own precision, on the CPU.
    """

    def __init__(self, tokens: int, seed: int = 0):
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise ValueError(f"tokens must be a whole number of at least 1, not {tokens!r}.")
        self.tokens, self.seed = tokens, seed
        self._kept: dict[tuple, tuple[int, list[torch.Tensor]]] = {}
        self._changed = False

    @property
    def seen(self) -> bool:
        """Whether any module output was recorded."""
        return bool(self._kept)

    def add(self, key: tuple, truth: torch.Tensor) -> None:
        """key: (id of the branch, name of the site); truth [b,n,d]."""
        count, rows = self._kept.setdefault(key, (truth.shape[1], []))
        self._changed |= count != truth.shape[1]
        rows.append(self._some(truth))

    def clear(self) -> None:
        """Frees every kept row."""
        self._kept.clear()

    def _some(self, x: torch.Tensor) -> torch.Tensor:
        chosen = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(self.seed))[: self.tokens]
        return x.index_select(1, chosen.sort().values.to(x.device)).cpu()

    def grams(self) -> dict[str, torch.Tensor]:
        """Gram matrices [samples, T, T] by module in running order, as `Recorder.grams` gives them.

        The rows stand for all tokens of their stream; what text and image add to a module's products is
        summed. ValueError before any run."""
        if not any(len(rows) > 1 for _, rows in self._kept.values()):
            raise ValueError("nothing was recorded: sample at least two full steps.")
        if self._changed:
            raise ValueError("the size of the features changed during the run.")
        parts: dict[tuple[str, int], torch.Tensor] = {}
        for (branch, site), (count, rows) in self._kept.items():
            x = torch.stack(rows, 1).double().flatten(2)  # [b, T, rows * width]
            gram, key = x @ x.mT * (count / rows[0].shape[1]), (_module(site), branch)
            parts[key] = parts[key] + gram if key in parts else gram
        names = dict.fromkeys(name for name, _ in parts)
        return {
            name: _joined([_scaled(gram) for (own, _), gram in parts.items() if own == name])
            for name in names
        }


def _module(site: tuple) -> str:
    """Name of a site's module as in `schedule.masks`: the streams of text and image are one, and a fused
    block is a whole. site: (kind, index, part), or (kind, index, path, place, count)."""
    kind, index, part = site[:3]
    part = part.removeprefix("img_").removeprefix("txt_")
    return f"{kind}.{index}" if part == "out" else f"{kind}.{index}.{part}"
