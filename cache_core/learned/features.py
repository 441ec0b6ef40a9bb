"""What a learned step adds to the newest velocity, and the normal equations that its weights solve."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

STATE, NEWEST, FIRST, SECOND, THIRD, DELTA, DELTA_CHANGE = FEATURES = (
    "x",
    "w",
    "w0-w1",
    "w1-w2",
    "w2-w3",
    "delta",
    "delta0-delta1",
)
"""The state, the newest velocity, differences of the last velocities, and with guidance the difference of
the conditional and the unconditional velocity and its change."""
CHUNK = 1 << 20
"""Values of a tensor that are taken in double precision at once."""
FLOOR = 1e-9
"""Mean squared residual below which a caption does not weigh more."""
RIDGES = (1e-6, 1e-4, 1e-2, 1.0)
"""Of which the one with the least error on captions left out is taken, relative to the features' energies."""


class Past:
    """Velocities [B, ...] of a run, newest first: guided ones, and with guidance conditional minus
    unconditional."""

    def __init__(self):
        self.velocities: list[torch.Tensor] = []
        self.deltas: list[torch.Tensor] = []

    def push(self, velocity: torch.Tensor, delta: torch.Tensor | None = None) -> None:
        self.velocities = [velocity, *self.velocities][:4]
        self.deltas = [] if delta is None else [delta, *self.deltas][:2]

    def features(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """By name, those that the run has by now."""
        w, d = self.velocities, self.deltas
        found = {STATE: x, NEWEST: w[0]}
        found.update(
            {name: w[j] - w[j + 1] for j, name in enumerate((FIRST, SECOND, THIRD)) if j + 1 < len(w)}
        )
        if d:
            found[DELTA] = d[0]
        if len(d) > 1:
            found[DELTA_CHANGE] = d[0] - d[1]
        return found


def combined(velocity: torch.Tensor, weights: Sequence[float], features: dict[str, torch.Tensor], rows=None):
    """The velocity that a learned step goes along: the newest one plus features by their weights in the order
    of FEATURES.

    rows: weights [B, len(FEATURES)] of every sample in place of `weights`."""
    total = velocity
    shape = [-1] + [1] * (velocity.ndim - 1)
    for m, name in enumerate(FEATURES):
        if name not in features:
            continue
        if rows is not None:
            total = total + rows[:, m].to(velocity).view(shape) * features[name]
        elif weights[m]:
            total = total + weights[m] * features[name]
    return total


def products(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Inner products [B, m, m] of m tensors [B, ...] per value, in double precision."""
    flat = [t.reshape(len(t), -1) for t in tensors]
    total = torch.zeros(len(flat[0]), len(flat), len(flat), dtype=torch.float64)
    size = flat[0].shape[1]
    for at in range(0, size, CHUNK):
        part = torch.stack([f[:, at : at + CHUNK].double() for f in flat], 1)
        total += (part @ part.transpose(1, 2)).cpu()
    return total / size


class Equations:
    """Normal equations of one step over all captions: of each of them a matrix of the features that the run
    has by now, and of the residual.

    names: of these features."""

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self._parts: list[torch.Tensor] = []

    def add(self, gram: torch.Tensor) -> None:
        """[B, m + 1, m + 1]: features and then the residual."""
        self._parts.append(gram)

    def weights(self, prior: torch.Tensor, power: float = 0.0, ridges: Sequence[float] = RIDGES):
        """Weights [len(FEATURES)] of all captions, those [C, len(FEATURES)] of all but each, and the ridge.

        prior: [len(FEATURES)], what ridges pull towards. power: how much more captions of a large residual
            weigh, 0 for no more (each counts by its relative residual). The ridge is the one whose weights of
            all but one caption leave the least relative squared residual on that one; with one caption, the
            second smallest."""
        gram = torch.cat(self._parts)
        own = torch.tensor([FEATURES.index(n) for n in self.names])
        matrix, right, square = gram[:, :-1, :-1], gram[:, :-1, -1], gram[:, -1, -1]
        start = prior[own]
        # In terms of what is beyond the prior.
        right = right - matrix @ start
        square = square - 2 * gram[:, :-1, -1] @ start + ((matrix @ start) * start).sum(-1)
        scale = 1 / square.clamp_min(FLOOR)
        if power:
            scale = scale * (square / square.mean().clamp_min(FLOOR)).clamp(0.01, 100) ** power
        weighted, aims = matrix * scale[:, None, None], right * scale[:, None]
        total, aim = weighted.sum(0), aims.sum(0)
        count, best = len(gram), None
        for ridge in ridges if count > 1 else ridges[1:2]:
            pull = torch.diag(ridge * total.diagonal() + 1e-12 * total.diagonal().mean() + 1e-300)
            every = _solved(total + pull, aim)
            if count > 1:
                others = _solved(total - weighted + pull, aim - aims)
                loss = (
                    square
                    + ((matrix @ others[..., None])[..., 0] * others).sum(-1)
                    - 2 * (right * others).sum(-1)
                )
                loss = float((loss * scale).mean())
            else:
                others, loss = every[None], 0.0
            if best is None or loss < best[0]:
                best = loss, every, others, ridge
        assert best is not None, "every ridge gives a loss"
        _, every, others, ridge = best
        whole, each = torch.zeros(len(FEATURES)).double(), torch.zeros(count, len(FEATURES)).double()
        whole[own], each[:, own] = start + every, start + others
        if not torch.isfinite(whole).all() or not torch.isfinite(each).all():
            raise ValueError(
                "the weights of a step are not finite: a recorded run holds numbers that are not."
            )
        return whole, each, ridge


def _solved(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Solutions of symmetric systems; not a number where there is none."""
    found, failed = torch.linalg.solve_ex(matrix, right)
    return torch.where((failed != 0)[..., None], torch.nan, found)


def known_weights(sigmas: Sequence[float], k: int, reach: float) -> torch.Tensor:
    """Weights [len(FEATURES)] with which step k of these noise levels is DPM-Solver++(2M)'s, to first order
    in what came before; Euler's at the first and at a last step to 0.

    reach: how far the next state moves per unit of added velocity."""
    weights = torch.zeros(len(FEATURES), dtype=torch.float64)
    if k and sigmas[k + 1] > 0 and reach:
        now, after = math.log(sigmas[k - 1] / sigmas[k]), math.log(sigmas[k] / sigmas[k + 1])
        along = -(sigmas[k] - sigmas[k + 1]) * after / (2 * now)
        weights[FEATURES.index(FIRST)] = along / reach
    return weights
