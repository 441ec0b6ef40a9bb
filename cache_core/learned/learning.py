"""From recorded runs to plans: full steps are chosen, weights fitted, and the better of two growths of errors
taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median

import torch

from .fit import Evaluate, Fitted, fit
from .grid import GROWTHS, choose_steps, segment_errors
from .plans import RUN, LearnedPlan
from .reference import Trajectory

SMALL, MIDDLE = 6, 8
"""Numbers of calls up to which the two growths are tried, and up to which the second is a lower one."""
SHORT = 12
"""Steps of a run up to which full steps by relative errors are tried too; in longer runs they never were the
better ones."""
ABSOLUTE, RELATIVE, EVEN = "absolute", "relative", "even"


def candidates(budget: int, steps: int) -> list[tuple[str, float]]:
    """Ways to choose full steps that are worth a fit each: by which errors and with which growth, or evenly.

    Even steps are tried where the others go wrong at times, so that a plan is not worse than fewer steps."""
    growths = GROWTHS if budget <= SMALL else (GROWTHS[0], 1.0) if budget <= MIDDLE else GROWTHS[:1]
    ways = [(ABSOLUTE, a) for a in growths] + [(EVEN, 0.0)] * (budget <= MIDDLE or steps <= SHORT)
    return ways + [(RELATIVE, a) for a in (0.0, 1.0) if steps <= SHORT]


def even_steps(budget: int, steps: int) -> tuple[int, ...]:
    """Full steps as far apart as they can be."""
    return tuple(i * steps // budget for i in range(budget))


def calls_needed(budgets: Sequence[int], captions: int, steps: int) -> int:
    """Evaluations of single pictures that `learn` takes at most, beside the recorded runs of so many
    steps."""
    return captions * sum(b * len(candidates(b, steps)) for b in budgets)


def learn(
    aims: Sequence[Trajectory],
    evaluate: Evaluate,
    budgets: Sequence[int],
    guidance: float,
    aim: str = RUN,
    under: str | None = None,
    errors: torch.Tensor | None = None,
    folder: Path | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[LearnedPlan]:
    """A plan for each number of calls, from runs recorded at the same noise levels.

    evaluate, under, folder: as of `fit.fit`. errors: of `grid.segment_errors`, where they are known.
    progress: called after every evaluation of a batch.
    ValueError where there is nothing to learn from, or a number of calls exceeds the steps."""
    if not aims:
        raise ValueError("there is no recorded run to learn from.")
    levels = aims[0].sigmas
    if any(a.sigmas != levels for a in aims):
        raise ValueError("runs of different noise levels cannot be learned from together.")
    if wrong := [b for b in budgets if not 1 <= b < len(levels)]:
        raise ValueError(f"a run of {len(levels) - 1} steps has no plan of {wrong[0]} calls.")
    steps = len(levels) - 1
    costs = {ABSOLUTE: segment_errors(aims) if errors is None else errors}
    if steps <= SHORT:
        costs[RELATIVE] = segment_errors(aims, relative=True)
    made = []
    for budget in budgets:
        tried: list[tuple[float, Fitted]] = []
        for way, growth in candidates(budget, steps):
            if way == EVEN:
                full = even_steps(budget, steps)
            else:
                full = choose_steps(costs[way], budget, growth, under is not None)
            if full in [f.full for _, f in tried]:
                continue
            found = fit(aims, evaluate, levels, full, under, folder=folder, progress=progress)
            tried.append((score(found.ended), found))
        best = max(tried, key=lambda pair: pair[0])[1]
        made.append(
            LearnedPlan(
                aim, under or "", guidance, levels, best.full, best.weights, best.ended * best.held_out
            )
        )
    return made


def score(ended: Sequence[float]) -> float:
    """What is compared between fits: median and worst caption count alike; not finite counts least."""
    if not all(map(math.isfinite, ended)):
        return -math.inf
    return mean((median(ended), min(ended)))
