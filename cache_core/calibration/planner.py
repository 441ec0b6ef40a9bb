"""Plans from a profile: the best weights for any full steps, and the full steps of least cost for a budget.

All errors are quadratic forms of the profile's Gram matrices. With Euler a step's velocity error moves the
end of the path by the step's
length in sigma, so what a plan does to the result is the length of one sum: over the skipped steps, step
    length times forecast error."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from ..base.coordinates import Node
from ..base.limits import DIGITS
from ..predictors.extrapolation import Predictor
from ..predictors.solved_weights import ClusterWeights, SolvedWeights
from ..schedule.plan import CacheSchedule, explicit
from .profile import Profile

OBJECTIVES = ("sum", "power", "minimax")
POWER = 4.0
"""Exponent of the objective "power", which suppresses peaks (MeanCache uses 4 to 5)."""
WINDOW, RIDGE = 3, 1e-3
NOISE = 2.0**-18
"""Differences of features below this share of their energy are rounding (bfloat16 keeps 8 bits), and no
ground to extrapolate from."""
MOST_STEPS = 200
"""Of a run that is planned: the cost table grows with their cube."""


@dataclass(frozen=True)
class Plan:
    """A solved plan: the schedule, per skipped step its weights over earlier full steps {step: {full step:
    weight}}, and what to expect.

    expected: relative error of each step's forecast, 0 at full steps. final: relative length of the summed
        error at the end. The table is empty where clusters of channels have weights of their own."""

    schedule: CacheSchedule
    table: dict[int, dict[int, float]]
    expected: tuple[float, ...]
    final: float


def solve(profile: Profile, target: int, nodes: Sequence[int], ridge: float = RIDGE) -> list[float]:
    """Weights of the full steps `nodes` (newest first) for step `target`: sum 1, least mean square error over
    the samples plus ridge.

    The ridge pulls towards reuse of the newest: `ridge` of the energy of the differences, and the energy of
        rounding. This is L2P (arXiv 2604.26365) in closed form."""
    if not nodes:
        raise ValueError("nodes must hold at least one full step.")
    return _solve(profile.grams.mean(0), target, nodes, ridge)


def _solve(gram: torch.Tensor, target: int, nodes: Sequence[int], ridge: float) -> list[float]:
    """`solve` on a mean Gram matrix [T, T]."""
    if len(nodes) == 1:
        return [1.0]
    places = [*nodes, target]
    own = gram[places][:, places]
    products = (own - own[0] - own[:, :1] + own[0, 0])[1:, 1:]  # of the differences to the newest
    a, b = products[:-1, :-1], products[:-1, -1]
    a = a + torch.diag(ridge * a.diagonal() + NOISE * gram.diagonal().mean())
    older = torch.linalg.solve(a, b).tolist()
    return [1.0 - sum(older), *older]


def magnitude_ratios(profile: Profile) -> tuple[float, ...]:
    """How much longer the features are at each step than at the step before, mean over the samples; 1 at step
    0.

    MagCache's ratios (NeurIPS 2025), the mean of the tokens' own, but of what the profile holds, where
    MagCache looks at the residual of the stack. Ratios of whole lengths where the profile does not know the
    tokens' own."""
    if profile.tokens is not None:
        return tuple(profile.tokens[:, :, 2].mean(0).tolist())
    lengths = profile.grams.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()
    return 1.0, *(lengths[:, 1:] / lengths[:, :-1]).mean(0).tolist()


def errors(profile: Profile, combination: torch.Tensor) -> torch.Tensor:
    """Length [samples, ...] of combinations [..., T] of the features, relative to a feature's mean length."""
    return _squares(profile.grams, combination).sqrt()


def _squares(grams: torch.Tensor, combination: torch.Tensor) -> torch.Tensor:
    """Squared lengths [samples, ...] of combinations [..., T] of features with these Gram matrices [samples,
    T, T]."""
    return torch.einsum("...i,sij,...j->s...", combination, grams, combination).clamp_min(0)


def _parts(profile: Profile, clusters: bool) -> list[torch.Tensor]:
    """Gram matrices [samples, T, T] of all channels, or of each cluster of them."""
    if not clusters:
        return [profile.grams]
    if profile.clusters is None:
        raise ValueError("the profile holds no clusters of channels; record it with them.")
    return list(profile.clusters.grams.unbind(1))


def step_lengths(profile: Profile) -> torch.Tensor:
    """Step lengths [T] in sigma."""
    return torch.tensor([a - b for a, b in zip(profile.sigmas, profile.sigmas[1:])], dtype=torch.float64)


def solved(
    profile: Profile, full: Sequence[int], window: int = WINDOW, ridge: float = RIDGE, clusters: bool = False
) -> Plan:
    """The plan with full steps at `full` (beginning with 0) and its best weights over the newest `window` of
    them.

    clusters: with weights of their own for each cluster of channels. The forecast has weights for the full
        steps too, so that a run can measure there what the plan would have forecast."""

    def weigh(part: int, gram: torch.Tensor, t: int, nodes: Sequence[int]) -> list[float]:
        return _solve(gram, t, nodes, ridge)

    return _planned(profile, full, window, clusters, weigh)


def pooled(profile: Profile, full: Sequence[int], pool: Sequence[Predictor]) -> Plan:
    """HyCa's plan (ICLR 2026, arXiv 2510.04188) with full steps at `full`: each cluster of channels goes by
    the rule of the pool that forecasts it best from one step to the next, over the recorded runs."""
    at, needs = [Node(float(t), profile.sigmas[t]) for t in range(profile.steps)], max(p.needs for p in pool)

    def weights(rule: Predictor, t: int, nodes: Sequence[int]) -> list[float]:
        return list(rule.weights([at[n].at(rule.coordinate) for n in nodes], at[t].at(rule.coordinate)))

    def missed(grams: torch.Tensor, rule: Predictor) -> float:
        miss = -torch.eye(profile.steps, dtype=torch.float64)[needs:]
        for row, t in enumerate(range(needs, profile.steps)):
            nodes = list(range(t - 1, t - 1 - rule.needs, -1))
            miss[row, nodes] = torch.tensor(weights(rule, t, nodes), dtype=torch.float64)
        return float(_squares(grams, miss).sum())

    best = [min(pool, key=lambda rule, grams=grams: missed(grams, rule)) for grams in _parts(profile, True)]
    return _planned(
        profile,
        full,
        needs,
        True,
        lambda part, gram, t, nodes: weights(best[part], t, nodes[: best[part].needs]),
    )


def _planned(profile: Profile, full: Sequence[int], window: int, clusters: bool, weigh: Callable) -> Plan:
    """The plan with full steps at `full` and the weights weigh(part, gram, step, nodes) of each part of the
    channels."""
    steps, full = profile.steps, sorted(set(full))
    if not full or full[0] != 0 or full[-1] >= steps:
        raise ValueError(f"full steps must begin with 0 and lie below {steps}.")
    lengths, tables = step_lengths(profile), []
    single = summed = torch.zeros((), dtype=torch.float64)
    for part, grams in enumerate(_parts(profile, clusters)):
        gram = grams.mean(0)
        rows, misses = {}, torch.zeros(steps, steps, dtype=torch.float64)
        for t in range(1, steps):
            nodes = [f for f in reversed(full) if f < t][:window]
            rows[t] = dict(zip(nodes, weigh(part, gram, t, nodes)))
            if t not in full:
                misses[t, list(rows[t])] = torch.tensor(list(rows[t].values()), dtype=torch.float64)
                misses[t, t] -= 1.0
        tables.append(rows)
        single = single + _squares(grams, misses)
        summed = summed + _squares(grams, (lengths[:, None] * misses).sum(0))
    final = summed.sqrt().mean() / lengths.abs().sum().clamp_min(1e-30)
    kinds = "".join("F" if t in full else "A" for t in range(steps))
    solved_for = tuple(SolvedWeights.of(steps, rows, profile.sigmas) for rows in tables)
    rule = solved_for[0]
    if clusters:
        assert profile.clusters is not None  # `_parts` has read them
        rule = ClusterWeights("".join(DIGITS[i] for i in profile.clusters.labels.tolist()), solved_for)
    schedule = replace(
        explicit(kinds), name="planned", forecast=json.dumps(rule.to_dict()) if "A" in kinds else None
    )
    table = {} if clusters else {t: row for t, row in tables[0].items() if t not in full}
    return Plan(schedule, table, tuple(single.sqrt().mean(0).tolist()), float(final))


def segment_costs(
    profile: Profile, ridge: float = RIDGE, window: int = WINDOW, clusters: bool = False
) -> torch.Tensor:
    """Cost [T, T, T + 1] of having full steps i < j and then k next: length of the summed error of the steps
    between j and k.

    Forecast along the best line through i and j; reuse of j where i = j, which stands for no earlier full
    step, and at window 1. k = T is the end. Infinite where the order is not kept. clusters: along a line of
    its own for each cluster of channels. ValueError above `MOST_STEPS` steps."""
    if profile.steps > MOST_STEPS:
        raise ValueError(f"plans can be made for at most {MOST_STEPS} steps, not {profile.steps}.")
    lengths = step_lengths(profile)
    squares = (_segment_squares(grams.mean(0), lengths, ridge, window) for grams in _parts(profile, clusters))
    return cast(torch.Tensor, sum(squares)).sqrt()


def _segment_squares(gram: torch.Tensor, lengths: torch.Tensor, ridge: float, window: int) -> torch.Tensor:
    """Squares of `segment_costs` for a mean Gram matrix [T, T] and step lengths [T]."""
    steps = len(gram)
    costs = torch.full((steps, steps, steps + 1), math.inf, dtype=torch.float64)
    energy = gram.diagonal()
    floor = NOISE * energy.mean()
    for j in range(steps):
        # The line's direction is older minus newest, one row per i <= j; i = j has none.
        along = gram[: j + 1] - gram[j]
        size = (along.diagonal() - along[:, j]).clamp_min(0)
        share = (along - along[:, j : j + 1]) / (size * (1 + ridge) + floor)[:, None]
        if window < 2:
            share = torch.zeros_like(share)
        costs[: j + 1, j, j + 1] = 0.0
        if j + 1 == steps:
            break
        # The summed error is a d + b f_j - sum of l f, all along the steps behind j; its square is written
        # out.
        own = lengths[j + 1 :]
        a, b = (share[:, j + 1 :] * own).cumsum(1), own.cumsum(0)
        weighted = own[:, None] * gram[j + 1 :, j + 1 :] * own
        square = (2 * weighted.tril().sum(1) - weighted.diagonal()).cumsum(0)
        line, newest = (along[:, j + 1 :] * own).cumsum(1), (gram[j, j + 1 :] * own).cumsum(0)
        total = (
            a**2 * size[:, None]
            + b**2 * energy[j]
            + square
            + 2 * a * b * along[:, j : j + 1]
            - 2 * a * line
            - 2 * b * newest
        )
        costs[: j + 1, j, j + 2 :] = total.clamp_min(0)
    return costs


def plan_full_steps(
    costs: torch.Tensor, budget: int, objective: str = "sum", warmup: int = 1
) -> tuple[int, ...]:
    """The `budget` full steps of least cost, the first `warmup` of them at the beginning: exact dynamic
    programming over (previous, last).

    objective: "sum" of the segments' costs, "power": sum of their 4th powers (MeanCache), "minimax": the
        largest (LeMiCa). costs: of `segment_costs`. ValueError where the budget cannot be met."""
    steps = costs.shape[0]
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, not {objective!r}.")
    if not 1 <= warmup <= budget <= steps:
        raise ValueError(
            f"budget must lie between the {warmup} steps of warm-up and the {steps} steps of the run, "
            f"not {budget}."
        )
    if objective == "power":
        costs = costs**POWER
    join = torch.maximum if objective == "minimax" else torch.add
    # best[i, j]: least cost so far with j the newest full step and i the one before it (i = j: none).
    best = torch.full((steps, steps), math.inf, dtype=torch.float64)
    best[max(warmup - 2, 0), warmup - 1] = 0.0
    came: list[torch.Tensor] = []
    for _ in range(budget - warmup):
        reached = join(best[:, :, None], costs[:, :, :steps])  # [i, j, k]
        best, frm = reached.min(0)  # [j, k]
        came.append(frm)
    ends = join(best, costs[:, :, steps])
    at = int(ends.argmin())
    i, j = divmod(at, steps)
    if not math.isfinite(float(ends.flatten()[at])):
        raise ValueError(f"no plan has {budget} full steps of {steps}.")
    tail = [j]
    for frm in reversed(came):
        tail.append(i)
        i, j = int(frm[i, j]), i
    return tuple(sorted({*range(warmup), *tail}))


def plan(
    profile: Profile,
    budget: int,
    objective: str = "sum",
    warmup: int = 1,
    window: int = WINDOW,
    ridge: float = RIDGE,
    costs: torch.Tensor | None = None,
    clusters: bool = False,
) -> Plan:
    """The solved plan for a number of full steps, those of least cost by `segment_costs` (which may be
    given).

    clusters: solved, and costed, for each cluster of channels.

    That cost counts every segment for itself, forecast along one line. Moving single steps on until the error
    at the end with all weights
    is least, lowered that number and not the error of the pictures: forecasts change the path they are made
        on, early ones most."""
    costs = segment_costs(profile, ridge, window, clusters) if costs is None else costs
    return solved(profile, plan_full_steps(costs, budget, objective, warmup), window, ridge, clusters)


def plan_for_speedup(profile: Profile, sigmas: Sequence[float], speedup: float) -> Plan:
    """The plan for a run of these noise levels with 1/speedup of its steps full. ValueError where the profile
    does not reach them.

    The objective "power" is the one that served best on the embedded model over all budgets
    (docs/profiles.md)."""
    steps = len(sigmas) - 1
    budget = min(max(round(steps / speedup), 1), steps)
    return plan(profile.at(sigmas), budget, "power")


def refine(candidates: Sequence[Plan], measure: Callable[[Plan], float]) -> tuple[Plan, list[float]]:
    """The candidate with the least measured loss and all losses: closed-loop selection (BudCache), since
    one-step errors miss drift."""
    losses = [measure(c) for c in candidates]
    return candidates[min(range(len(losses)), key=losses.__getitem__)], losses
