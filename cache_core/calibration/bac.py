"""Refresh steps for each module from a profile: BAC's block-wise plans (ICLR 2026, arXiv 2506.13456) with
their union, as masks.

Only what the Gram matrices of the modules say is used. What a stale module does to those behind it they do
not say: that is what the union is for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch

from ..schedule.masks import ALL, Mask
from .planner import step_lengths
from .profile import Profile

OBJECTIVES = ("cosine", "error")


def cosines(gram: torch.Tensor) -> torch.Tensor:
    """Cosine [T] of a module's output with that of the step before, mean over the samples of gram [samples,
    T, T]; 1 at step 0."""
    lengths = gram.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()
    own = gram.diagonal(offset=1, dim1=-2, dim2=-1) / (lengths[:, 1:] * lengths[:, :-1])
    return torch.cat([torch.ones(1, dtype=gram.dtype), own.mean(0)])


def distances(gram: torch.Tensor) -> torch.Tensor:
    """Squared distance [T, T] between a module's outputs at two steps, mean over the samples."""
    energy = gram.diagonal(dim1=-2, dim2=-1)
    return (energy[:, :, None] + energy[:, None, :] - 2 * gram).clamp_min(0).mean(0)


def reuse_error(gram: torch.Tensor) -> float:
    """BAC's measure of how badly a module can be reused: mean distance between its outputs at two different
    steps.

    In the Euclidean norm, relative to the module's own size; BAC takes the mean absolute difference, which a
    Gram matrix does not know."""
    steps = gram.shape[-1]
    return float(distances(gram).sqrt().sum() / max(steps * (steps - 1), 1))


def segment_costs(gram: torch.Tensor, objective: str, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """Cost [T, T + 1] of computing a module at step i and then not before step k (T: never again); infinite
    where k <= i.

    "cosine": minus the sum of the consecutive cosines between, as published. It falls apart into single
    steps, so that the best plan simply refreshes where consecutive outputs differ most. "error": the summed
    squared error of reusing step i, each step weighed by `lengths` [T] (default 1)."""
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, not {objective!r}.")
    steps = gram.shape[-1]
    if objective == "cosine":
        single = -cosines(gram).expand(steps, steps)
    else:
        single = distances(gram) * (1.0 if lengths is None else lengths)
    sums = torch.cat(
        [torch.zeros(steps, 1, dtype=gram.dtype), single.triu(1).cumsum(1)], 1
    )  # [i, k]: steps i + 1 to k - 1
    below = torch.ones(steps, steps + 1, dtype=torch.bool).tril()
    return sums.masked_fill(below, math.inf)


def refresh_steps(costs: torch.Tensor, budget: int) -> tuple[int, ...]:
    """The `budget` steps, step 0 among them, whose segments cost least in sum, exactly, by dynamic
    programming."""
    steps = costs.shape[0]
    if not 1 <= budget <= steps:
        raise ValueError(f"budget must lie between 1 and the {steps} steps of the run, not {budget}.")
    best = torch.full((steps,), math.inf, dtype=costs.dtype)
    best[0] = 0.0
    came = []
    for _ in range(budget - 1):
        best, frm = (best[:, None] + costs[:, :steps]).min(0)
        came.append(frm)
    at = int((best + costs[:, steps]).argmin())
    found = [at]
    for frm in reversed(came):
        at = int(frm[at])
        found.append(at)
    return tuple(sorted(found))


def bubbling_union(
    plans: Mapping[str, Sequence[int]], errors: Mapping[str, float], top: int
) -> dict[str, tuple[int, ...]]:
    """BAC's repair: the `top` modules of largest reuse error are also computed whenever an MLP behind them
    is.

    plans: steps by module in running order. A block that is computed as one counts as an MLP, as it holds
        one."""
    worst, names = set(sorted(plans, key=lambda n: -errors[n])[:top]), list(plans)
    mlps = [name for name in names if name.endswith(".mlp") or name.count(".") == 1]
    made = {}
    for i, name in enumerate(names):
        behind = [plans[m] for m in mlps if names.index(m) > i] if name in worst else []
        made[name] = tuple(sorted({*plans[name], *(s for steps in behind for s in steps)}))
    return made


def mask_of(steps: int, plans: Mapping[str, Sequence[int]]) -> Mask:
    """The mask that computes each module at its steps; where all of them are computed, the step is full."""
    everything = set.intersection(*map(set, plans.values())) if plans else set()
    return Mask.of(steps, {**plans, ALL: everything})


def block_mask(profile: Profile, budget: int, objective: str = "error", top: int = 0) -> Mask:
    """BAC's mask: `budget` refresh steps for every module by its own matrix, then the union for the `top`
    modules, which adds more.

    For use at level "module" with the predictor reuse. ValueError where the profile holds no modules or the
    budget is impossible."""
    _need_modules(profile)
    lengths = _lengths(profile)
    plans = {
        name: refresh_steps(segment_costs(gram, objective, lengths), budget)
        for name, gram in profile.modules.items()
    }
    return mask_of(
        profile.steps, bubbling_union(plans, {n: reuse_error(g) for n, g in profile.modules.items()}, top)
    )


def shared_mask(profile: Profile, budget: int, objective: str = "error") -> Mask:
    """One plan for all modules from the sum of their costs: what block-wise plans must beat."""
    _need_modules(profile)
    lengths = _lengths(profile)
    grams = profile.modules.values()
    costs = cast(torch.Tensor, sum(segment_costs(gram, objective, lengths) for gram in grams))
    return Mask.of(profile.steps, {ALL: refresh_steps(costs, budget)})


def _need_modules(profile: Profile) -> None:
    if not profile.modules:
        raise ValueError("the profile holds no modules; record it with their tokens.")


def _lengths(profile: Profile) -> torch.Tensor:
    """Step lengths in sigma [T], by their mean: with Euler an error moves the path by them."""
    own = step_lengths(profile).abs()
    return own / own.mean().clamp_min(1e-30)
