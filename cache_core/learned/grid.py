"""Which evaluations a learned plan keeps: dynamic programming over how well single steps can be fitted."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from ..calibration.planner import plan_full_steps
from .reference import Trajectory

RIDGE = 1e-4
LONGEST_GAP = 2.0
"""Longest way from one full step to the next, in even ones: longer ones were fitted well and broke pictures
of other captions."""
GROWTHS = (0.5, 1.5)
"""How fast an error grows over a whole run, as candidates: exp(a t)."""


def segment_errors(trajectories: Iterable[Trajectory], relative: bool = False) -> torch.Tensor:
    """E [N, N, N + 1]: for full steps i <= j and then k, the mean squared residual of x_k - x_j fitted by
    x_j, w_j and w_i - w_j over all captions, relative to the energy of the end, or to |x_k - x_j|^2.

    i = j stands for no earlier velocity. Infinite where the order is not kept."""
    grams = torch.cat([t.gram() for t in trajectories])
    steps = grams.shape[1] // 2
    out = torch.full((steps, steps, steps + 1), math.inf, dtype=torch.float64)
    eye = torch.eye(2 * steps + 1, dtype=torch.float64)
    energy = grams[:, steps, steps]  # of the end
    for j in range(steps):
        older = eye[steps + 1 : steps + 2 + j] - eye[steps + 1 + j]  # [i <= j], the last one 0
        basis = torch.stack(
            [eye[j].expand(j + 1, -1), eye[steps + 1 + j].expand(j + 1, -1), older], 1
        )  # [i, 3, P]
        aims = eye[j + 1 : steps + 1] - eye[j]  # [K, P]
        size = torch.einsum("kp,cpq,kq->ck", aims, grams, aims).clamp_min(1e-30)
        weight = 1 / size
        matrix = torch.einsum("iap,cpq,ibq->ciab", basis, grams, basis)
        right = torch.einsum("iap,cpq,kq->ciak", basis, grams, aims)
        total = torch.einsum("ck,ciab->kiab", weight, matrix)
        aim = torch.einsum("ck,ciak->kia", weight, right)
        diagonal = total.diagonal(dim1=-2, dim2=-1)
        pull = torch.diag_embed(RIDGE * diagonal + 1e-12 * diagonal.mean(-1, keepdim=True))
        weights = torch.linalg.solve(total + pull, aim)  # [K, i, 3]
        fitted = torch.einsum("kia,ciab,kib->cki", weights, matrix, weights)
        crossed = torch.einsum("kia,ciak->cki", weights, right)
        residual = (size[:, :, None] - 2 * crossed + fitted).clamp_min(0)
        out[: j + 1, j, j + 1 :] = (
            (residual / (size[:, :, None] if relative else energy[:, None, None])).mean(0).T
        )
    return out


def choose_steps(errors: torch.Tensor, budget: int, growth: float, adjacent: bool = False) -> tuple[int, ...]:
    """The `budget` full steps of N with the least sum of errors, each grown until the end by exp(2 a t).

    errors: of `segment_errors`. growth: a. adjacent: whether a step right before the next one costs nothing,
        as under a sampler that takes it itself. ValueError where the budget cannot be met."""
    steps = errors.shape[0]
    left = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    costs = errors * torch.exp(2 * growth * left)
    gap = -torch.arange(steps)[:, None] + torch.arange(steps + 1)
    costs = costs.masked_fill(gap > math.ceil(LONGEST_GAP * steps / budget), math.inf)
    if adjacent:
        for j in range(steps):
            costs[: j + 1, j, j + 1] = 0.0
    return plan_full_steps(costs, budget)
