"""Plans from a profile: the best weights for any full steps, and the full steps of least expected error for a budget.

All errors are quadratic forms of the profile's Gram matrices. With Euler a step's velocity error moves the end of the path by the step's
length in sigma, so what a plan does to the result is the length of one sum: over the skipped steps, step length times forecast error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from .profile import Profile
from .schedule import CacheSchedule, explicit
from .table import Table

OBJECTIVES = ("sum", "power", "minimax")
POWER = 4.0
"""Exponent of the objective "power", which suppresses peaks (MeanCache uses 4 to 5)."""
WINDOW, RIDGE = 3, 1e-3


@dataclass(frozen=True)
class Plan:
    """A solved plan: the schedule, per skipped step its weights over earlier full steps {step: {full step: weight}}, and what to expect.

    expected: relative error of each step's forecast, 0 at full steps. final: relative length of the summed error at the end.
    """

    schedule: CacheSchedule
    table: dict[int, dict[int, float]]
    expected: tuple[float, ...]
    final: float


def solve(profile: Profile, target: int, nodes: Sequence[int], ridge: float = RIDGE) -> list[float]:
    """Weights of the full steps `nodes` (newest first) for step `target`: sum 1, least mean square error over the samples plus ridge.

    The ridge pulls towards reuse of the newest, relative to the energy of the differences (L2P, arXiv 2604.26365, in closed form).
    """
    if not nodes:
        raise ValueError("nodes must hold at least one full step.")
    gram = profile.grams.mean(0)
    size, count = profile.steps, len(nodes) - 1
    if not count:
        return [1.0]
    rows = torch.zeros(count + 1, size, dtype=torch.float64)
    for i, n in enumerate(nodes[1:]):
        rows[i, n] += 1.0
    rows[count, target] += 1.0
    rows[:, nodes[0]] -= 1.0
    products = rows @ gram @ rows.T
    a, b = products[:count, :count], products[:count, count]
    a = a + ridge * torch.diag(a.diagonal().clamp_min(1e-30))
    older = torch.linalg.solve(a, b).tolist()
    return [1.0 - sum(older), *older]


def errors(profile: Profile, combination: torch.Tensor) -> torch.Tensor:
    """Length [samples, ...] of combinations [..., T] of the features, relative to a feature's mean length."""
    quadratic = torch.einsum("...i,sij,...j->s...", combination, profile.grams, combination)
    return quadratic.clamp_min(0).sqrt()


def solved(profile: Profile, full: Sequence[int], window: int = WINDOW, ridge: float = RIDGE) -> Plan:
    """The plan with full steps at `full` (ascending, beginning with 0) and its best weights over the newest `window` of them."""
    steps, full = profile.steps, sorted(set(full))
    if not full or full[0] != 0 or full[-1] >= steps:
        raise ValueError(f"full steps must begin with 0 and lie below {steps}.")
    lengths = torch.tensor([a - b for a, b in zip(profile.sigmas, profile.sigmas[1:])], dtype=torch.float64)
    table, misses = {}, torch.zeros(steps, steps, dtype=torch.float64)
    for t in range(steps):
        if t in full:
            continue
        nodes = [f for f in reversed(full) if f < t][:window]
        weights = solve(profile, t, nodes, ridge)
        table[t] = dict(zip(nodes, weights))
        misses[t, nodes] = torch.tensor(weights, dtype=torch.float64)
        misses[t, t] -= 1.0
    expected = errors(profile, misses).mean(0)
    final = errors(profile, (lengths[:, None] * misses).sum(0)).mean() / lengths.abs().sum().clamp_min(1e-30)
    kinds = "".join("F" if t in full else "A" for t in range(steps))
    forecast = json.dumps(Table.of(steps, table).to_dict()) if table else None
    schedule = replace(explicit(kinds), name="planned", forecast=forecast)
    return Plan(schedule, table, tuple(expected.tolist()), float(final))


def segment_costs(profile: Profile, ridge: float = RIDGE) -> torch.Tensor:
    """Cost [T, T, T + 1] of having full steps i < j and then k next: length of the summed error of the steps between j and k.

    i = j stands for no earlier full step (reuse). k = T is the end. Infinite where the order is not kept.
    """
    gram, steps = profile.grams.mean(0), profile.steps
    lengths = torch.tensor([a - b for a, b in zip(profile.sigmas, profile.sigmas[1:])], dtype=torch.float64)
    costs = torch.full((steps, steps, steps + 1), math.inf, dtype=torch.float64)
    energy = gram.diagonal()
    for j in range(steps):
        for i in range(j + 1):
            d = torch.zeros(steps, dtype=torch.float64)  # the direction of the line: older minus newest
            if i < j:
                d[i], d[j] = 1.0, -1.0
            along = gram @ d
            size = (d @ along).clamp_min(0)
            # Share of the direction in each later step's way from j.
            share = (along - along[j]) / (size * (1 + ridge)) if size > 1e-12 * energy[j] else torch.zeros(steps, dtype=torch.float64)
            total = torch.zeros(steps, dtype=torch.float64)
            costs[i, j, j + 1] = 0.0
            for t in range(j + 1, steps):
                miss = share[t] * d
                miss[j] += 1.0
                miss[t] -= 1.0
                total = total + lengths[t] * miss
                costs[i, j, t + 1] = (total @ gram @ total).clamp_min(0).sqrt()
    return costs


def plan_full_steps(costs: torch.Tensor, budget: int, objective: str = "sum", warmup: int = 1) -> tuple[int, ...]:
    """The `budget` full steps of least cost, the first `warmup` of them at the beginning: exact dynamic programming over (previous, last).

    objective: "sum" of the segments' costs, "power": sum of their 4th powers (MeanCache), "minimax": the largest (LeMiCa). costs: of
    `segment_costs`. ValueError where the budget cannot be met.
    """
    steps = costs.shape[0]
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, not {objective!r}.")
    if not 1 <= warmup <= budget <= steps:
        raise ValueError(f"budget must lie between the {warmup} steps of warm-up and the {steps} steps of the run, not {budget}.")
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


def plan(profile: Profile, budget: int, objective: str = "sum", warmup: int = 1, window: int = WINDOW, ridge: float = RIDGE,
         costs: torch.Tensor | None = None) -> Plan:
    """The solved plan of least expected error for a number of full steps."""
    costs = segment_costs(profile, ridge) if costs is None else costs
    return solved(profile, plan_full_steps(costs, budget, objective, warmup), window, ridge)


def plan_for_speedup(profile: Profile, sigmas: Sequence[float], speedup: float) -> Plan:
    """The plan for a run of these noise levels with 1/speedup of its steps full.

    The objective "power" gave the best worst picture on the embedded model (bench/results/profile.json).
    """
    steps = len(sigmas) - 1
    budget = min(max(round(steps / speedup), 1), steps)
    return plan(profile.at(sigmas), budget, "power")


def refine(candidates: Sequence[Plan], measure: Callable[[Plan], float]) -> tuple[Plan, list[float]]:
    """The candidate with the least measured loss and all losses: closed-loop selection (BudCache), since one-step errors miss drift."""
    losses = [measure(c) for c in candidates]
    return candidates[min(range(len(losses)), key=losses.__getitem__)], losses
