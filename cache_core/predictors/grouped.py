"""Weights that differ between parts of a feature: per channel cluster, per band of spatial frequency, per
token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import cast

import torch

from ..base.coordinates import Node
from ..cache.feature_cache import Site
from ..cache.feature_predictor import FeaturePredictor
from ..cache.transfers import upload
from ..cache.weighted_sums import PIECE, cut, pieces, weighted_sum
from .extrapolation import Predictor

SAMPLE = 2000
"""Tokens that channels are judged by."""


def descriptors(sequence: torch.Tensor) -> torch.Tensor:
    """What tells channels apart, [d,6], from features [T,n,d] at T >= 4 steps, oldest first (HyCa, arXiv
    2510.04188).

    Size of the first and of the second difference, energy, ratio of third to second (jerk) and of second to
    first difference (curvature), and flatness of the spectrum over steps; logarithms, each with mean 0 and
    deviation 1 over the channels. ValueError for fewer steps."""
    if len(sequence) < 4:
        raise ValueError(f"sequence must hold at least 4 steps, not {len(sequence)}.")
    x = sequence.float()
    sizes = [x.diff(n, dim=0).square().mean((0, 1)).sqrt() + 1e-12 for n in (1, 2, 3)]
    spectrum = torch.fft.rfft(x - x.mean(0), dim=0).abs()[1:].square().mean(1) + 1e-12
    flatness = spectrum.log().mean(0).exp() / spectrum.mean(0)
    energy = x.square().mean((0, 1)).sqrt() + 1e-12
    columns = torch.stack(
        [sizes[0], sizes[1], energy, sizes[2] / sizes[1], sizes[1] / sizes[0], flatness], -1
    ).log()
    return (columns - columns.mean(0)) / columns.std(0).clamp_min(1e-6)


def k_means(points: torch.Tensor, clusters: int, rounds: int = 20) -> torch.Tensor:
    """Labels [m] of points [m,f] by Lloyd's algorithm from farthest-point centres, the same for the same
    points; no random numbers."""
    # Rows are taken by `index_select`, because an index of one number would be read by the host.
    first = (points - points.mean(0)).square().sum(1).argmax()
    centre = points.index_select(0, first.view(1))
    while len(centre) < min(clusters, len(points)):
        farthest = torch.cdist(points, centre).amin(1).argmax()
        centre = torch.cat((centre, points.index_select(0, farthest.view(1))))
    for _ in range(rounds):
        member = _members(torch.cdist(points, centre).argmin(1), len(centre), points.dtype)
        total = member.sum(0)[:, None]
        centre = torch.where(total > 0, member.T @ points / total.clamp_min(1), centre)
    return torch.cdist(points, centre).argmin(1)


def _by_channel(x: torch.Tensor) -> torch.Tensor:
    """A sample as [n,d] in float32: of tokens [n,d], or of a picture, whose channels come first."""
    return (x.flatten(1).T if x.ndim > 2 else x.reshape(-1, x.shape[-1])).float()


def _members(labels: torch.Tensor, clusters: int, dtype: torch.dtype) -> torch.Tensor:
    """[m,clusters], 1 where a point of labels [m] belongs; `one_hot` would read its labels on the host."""
    return (labels[:, None] == torch.arange(clusters, device=labels.device)).to(dtype)


def _sample(x: torch.Tensor) -> torch.Tensor:
    """About 2,000 of the tokens of [n,d], which tell as much about channels as all; a picture as it is."""
    return x[:: max(1, x.shape[0] // SAMPLE)] if x.ndim == 2 else x


@lru_cache(maxsize=8)
def _rows(pool: tuple[Predictor, ...], nodes: tuple[Node, ...], node: Node) -> tuple[tuple[float, ...], ...]:
    """One row of weights per member, all as long as the history; every site of a step asks for the same."""
    rows = [p.weights([n.at(p.coordinate) for n in nodes], node.at(p.coordinate)) for p in pool]
    return tuple((*r, *[0.0] * (len(nodes) - len(r))) for r in rows)


def _weights_at(pool, site: Site, node: Node) -> tuple[tuple[float, ...], ...]:
    return _rows(pool, tuple(site.nodes), node)


@lru_cache(maxsize=8)
def _table(rows: tuple[tuple[float, ...], ...], device: torch.device) -> torch.Tensor:
    """Weights [snapshots, members]."""
    return upload(torch.tensor(rows).T.contiguous(), device)


def _chosen(rows, site: Site, which: torch.Tensor, shape, out: torch.Tensor | None) -> torch.Tensor:
    """The site's value with a row of weights of its own for each part; `which` becomes one that broadcasts to
    a snapshot by `shape`."""
    used = [i for i, column in enumerate(zip(*rows)) if any(column)]
    table = _table(tuple(tuple(row[i] for i in used) for row in rows), which.device)
    weights = table[:, which]
    return weighted_sum([site.snapshots[i] for i in used], [w.view(shape) for w in weights], out)


@dataclass(frozen=True)
class _Pool(FeaturePredictor):
    """What the parts with a pool of members share."""

    pool: tuple[Predictor, ...]

    def _check(self, by):
        if not self.pool or not all(isinstance(p, Predictor) for p in self.pool):
            raise ValueError(f"pool of a forecast by {by} must hold plain predictors.")

    @property
    def needs(self) -> int:
        return max(p.needs for p in self.pool)

    def without_probe(self) -> Predictor:
        return self.pool[0]

    def over_run(self, first: Node, last: Node):
        return replace(self, pool=tuple(p.over_run(first, last) for p in self.pool))


@dataclass(frozen=True)
class ByChannel(_Pool):
    """HyCa (arXiv 2510.04188): channels are clustered once by how they move, and each cluster takes the
    member that predicts it best.

    pool: the members. clusters: their number. steps: full steps that the probe looks at, at least 4: the
        run's own first ones, per sample; before that every channel goes by the first member."""

    pool: tuple[Predictor, ...]
    clusters: int = 2
    steps: int = 4

    def __post_init__(self):
        self._check("channel")
        for name, least in (("clusters", 1), ("steps", 4)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 64:
                raise ValueError(
                    f"{name} of a forecast by channel must be a whole number from {least} to 64, not "
                    f"{value!r}."
                )

    @property
    def name(self) -> str:
        return f"{len(self.pool)} rules by channel"

    @property
    def needs(self) -> int:
        return max(self.steps - 1, super().needs)

    def learn(self, site: Site, truth: torch.Tensor, node: Node) -> None:
        if "member" in site.learned or len(site.snapshots) < self.steps - 1:
            return
        rows = _weights_at(self.pool, site, node)
        member = []
        for b in range(truth.shape[0]):
            own, *past = (_by_channel(_sample(s[b])) for s in (truth, *site.snapshots))
            labels = k_means(descriptors(torch.stack([own, *past[: self.steps - 1]]).flip(0)), self.clusters)
            errors = torch.stack([(weighted_sum(past, r) - own).square().mean(0) for r in rows], -1)
            one_hot = _members(labels, self.clusters, errors.dtype)
            member.append((one_hot.T @ errors).argmin(1)[labels])
        site.learned["member"] = torch.stack(member)

    def forecast(self, site: Site, node: Node, out: torch.Tensor | None = None) -> torch.Tensor:
        member = site.learned.get("member")
        if member is None:
            return self.pool[0].forecast(site, node, out)
        newest = site.snapshots[0]
        shape = [newest.shape[0], *[1] * (newest.ndim - 1)]
        shape[1 if newest.ndim > 3 else -1] = -1
        return _chosen(_weights_at(self.pool, site, node), site, member, shape, out)

    def to_dict(self) -> dict:
        return {
            "by": "channel",
            "pool": [p.to_dict() for p in self.pool],
            "clusters": self.clusters,
            "steps": self.steps,
        }


@dataclass(frozen=True)
class ByBand(_Pool):
    """FreqCa (arXiv 2510.08669): low spatial frequencies of the image tokens go by one rule, the rest and all
    text tokens by another.

    pool: (low, high). cut: share of the frequencies of each axis that count as low, by a discrete cosine
        transform over the token grid, over the sequence where the grid is not known, or over a picture
        [B,C,H,W]."""

    pool: tuple[Predictor, Predictor]
    cut: float = 0.25

    by_token = False

    def __post_init__(self):
        self._check("band")
        if len(self.pool) != 2:
            raise ValueError("a forecast by band must have two rules, low and high.")
        if isinstance(self.cut, bool) or not isinstance(self.cut, (int, float)) or not 0 <= self.cut <= 1:
            raise ValueError(f"cut must lie between 0 and 1, not {self.cut!r}.")

    @property
    def name(self) -> str:
        return f"{self.pool[0].name} low, {self.pool[1].name} high"

    def forecast(self, site: Site, node: Node, out: torch.Tensor | None = None) -> torch.Tensor:
        low, high = _weights_at(self.pool, site, node)
        base = weighted_sum(site.snapshots, high, out)
        apart = [a - b for a, b in zip(low, high)]
        if not any(apart) or base.ndim not in (3, 4):
            return base
        if base.ndim == 4:
            pixels = weighted_sum([s.flatten(2).mT for s in site.snapshots], apart)
            return base.add_(
                low_band(pixels, self.cut, (base.shape[2], base.shape[3])).mT.reshape(base.shape)
            )
        first = site.text_tokens
        if first >= base.shape[1]:
            return base
        # A channel's band depends on that channel alone, so large features are worked on in parts.
        width = base.shape[2]
        length = width if base.numel() <= PIECE else max(1, PIECE * width // base.numel())
        for start in range(0, width, length):
            channels = slice(start, start + length)
            difference = weighted_sum([s[:, first:, channels] for s in site.snapshots], apart)
            grid = site.evidence.grid if site.evidence else None
            base[:, first:, channels] += low_band(difference, self.cut, grid)
        return base

    def to_dict(self) -> dict:
        return {"by": "band", "low": self.pool[0].to_dict(), "high": self.pool[1].to_dict(), "cut": self.cut}


def cosines(size: int, keep: int, like: torch.Tensor) -> torch.Tensor:
    """The lowest `keep` rows of the orthonormal discrete cosine transform (type II) of a length, [keep,
    size]."""
    place = (torch.arange(size, device=like.device, dtype=torch.float32) + 0.5) * torch.pi / size
    rows = (
        torch.cos(torch.arange(keep, device=like.device, dtype=torch.float32)[:, None] * place)
        * (2 / size) ** 0.5
    )
    rows[:1] *= 0.5**0.5
    return rows


def low_band(x: torch.Tensor, cut: float, grid: tuple[int, int] | None = None) -> torch.Tensor:
    """The part of tokens x [b,n,d] below a share `cut` of the frequencies; a projection, so that the bands
    sum to x."""
    sizes = grid if grid and grid[0] * grid[1] == x.shape[1] else (1, x.shape[1])
    y = x.float().reshape(x.shape[0], *sizes, x.shape[2])
    for axis, size in enumerate(sizes, 1):
        keep = round(cut * size) if size > 1 else 1
        rows = cosines(size, keep, y)
        dims = cast(int, ([1], [axis]))  # torch leaves its overload for pairs of dimensions untyped
        y = torch.tensordot(rows.T @ rows, y, dims)
        y = torch.movedim(y, 0, axis)
    return y.reshape(x.shape).to(x.dtype)


def _likeness(guess: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """The cosine of each token, but for the length of `now`, which all guesses share."""
    return torch.linalg.vecdot(guess, now) / torch.linalg.vector_norm(guess, dim=-1).clamp_min(1e-12)


@dataclass(frozen=True)
class ByToken(_Pool):
    """TAP (CVPR 2026): every token takes the rule that best forecasts a cheap probe of it, the first block's
    modulated input.

    pool: the rules to choose from, such as reuse, linear and newton of order 2. Best is the highest cosine
        with the probe of the current step."""

    pool: tuple[Predictor, ...]

    def __post_init__(self):
        self._check("token")

    probe = "input"

    @property
    def name(self) -> str:
        return f"{len(self.pool)} rules by token"

    def forecast(self, site: Site, node: Node, out: torch.Tensor | None = None) -> torch.Tensor:
        seen = site.evidence
        past = seen.past if seen else None
        if (
            past is None
            or seen is None
            or seen.now is None
            or len(past.nodes) < 2
            or past.nodes != site.nodes[: len(past.nodes)]
            or past.snapshots[0].shape[:2] != site.snapshots[0].shape[:2]
            or past.snapshots[0].shape != seen.now.shape
        ):
            return self.pool[0].forecast(site, node, out)
        rows, found = _weights_at(self.pool, site, node), []
        for where in pieces(seen.now):
            then, now = past.part(where), cut(seen.now, where).float()
            found.append(torch.stack([_likeness(then.combine(r).float(), now) for r in rows], -1).max(-1))
        best, which = (p[0] if len(p) == 1 else torch.cat(p, 1) for p in zip(*found))
        some = seen.now[:, ::8].float()  # tells as much as all tokens
        site.learned["indicator"] = (
            best[:, ::8] / torch.linalg.vector_norm(some, dim=-1).clamp_min(1e-12)
        ).mean()
        return _chosen(rows, site, which, (*which.shape, 1), out)

    def to_dict(self) -> dict:
        return {"by": "token", "pool": [p.to_dict() for p in self.pool]}
