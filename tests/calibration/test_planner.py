"""Weights and plans from a profile are the best there are, which brute force and explicit features
confirm."""

import json
import math
from itertools import combinations

import pytest
import torch

from cache_core.base.coordinates import Node
from cache_core.cache.feature_cache import Site
from cache_core.calibration import planner
from cache_core.calibration.planner import (
    MOST_STEPS,
    NOISE,
    OBJECTIVES,
    errors,
    plan,
    plan_full_steps,
    refine,
    segment_costs,
    solve,
    solved,
)
from cache_core.calibration.profile import Profile
from cache_core.predictors.build import forecast
from cache_core.predictors.solved_weights import SolvedWeights

STEPS = 8
SIGMAS = tuple(1 - (i / STEPS) ** 1.3 for i in range(STEPS + 1))


def features(seed=0, samples=3, width=40):
    """Random smooth paths [samples, STEPS, width]."""
    g = torch.Generator().manual_seed(seed)
    start, slope, bend = (torch.randn(samples, 1, width, generator=g, dtype=torch.float64) for _ in range(3))
    s = torch.tensor(SIGMAS[:-1], dtype=torch.float64)[None, :, None]
    return (
        start
        + s * slope
        + torch.sin(6 * s) * bend
        + 0.05 * torch.randn(samples, STEPS, width, generator=g, dtype=torch.float64)
    )


def profile_of(x):
    gram = x @ x.mT
    return Profile(gram / gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None], SIGMAS)


def unit(x):
    """The features as the profile scales them."""
    return x / x.square().sum(-1).mean(-1).sqrt()[:, None, None]


@pytest.mark.parametrize("nodes", [(3,), (3, 1), (5, 3, 0), (6, 5, 4, 2)])
def test_weights_are_the_least_squares_solution(nodes, monkeypatch):
    x, target = unit(features()), 7
    older = (
        torch.stack([x[:, n] - x[:, nodes[0]] for n in nodes[1:]], -1).flatten(0, 1)
        if len(nodes) > 1
        else torch.zeros(len(x) * 40, 0)
    )
    wanted = (
        torch.linalg.lstsq(older.double(), (x[:, target] - x[:, nodes[0]]).reshape(-1, 1))
        .solution.flatten()
        .tolist()
    )
    monkeypatch.setattr(planner, "NOISE", 0.0)
    weights = solve(profile_of(features()), target, nodes, ridge=0.0)
    assert weights[1:] == pytest.approx(wanted, abs=1e-7) and sum(weights) == pytest.approx(1)


def test_ridge_pulls_towards_reuse():
    profile = profile_of(features())
    sizes = [sum(map(abs, solve(profile, 7, (5, 3, 1), ridge=r)[1:])) for r in (0.0, 0.1, 10.0, 1e9)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == pytest.approx(0, abs=1e-6)


def test_errors_are_lengths_of_combinations():
    x, c = features(1), torch.randn(5, STEPS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(errors(profile_of(x), c), torch.einsum("ct,std->scd", c, unit(x)).norm(dim=-1))


def test_a_solved_plan_expects_what_happens():
    x, full = features(2), (0, 1, 4, 6)
    made = solved(profile_of(x), full)
    end = torch.zeros(3, 40, dtype=torch.float64)
    for t in range(STEPS):
        if t in full:
            assert made.expected[t] == 0 and t not in made.table
            continue
        miss = sum(w * unit(x)[:, n] for n, w in made.table[t].items()) - unit(x)[:, t]
        assert made.expected[t] == pytest.approx(float(miss.norm(dim=-1).mean()))
        end += (SIGMAS[t] - SIGMAS[t + 1]) * miss
    assert made.final == pytest.approx(float(end.norm(dim=-1).mean()) / SIGMAS[0])
    assert made.schedule.kinds == "FFAAFAFA"


def test_segment_costs_are_lengths_of_summed_errors():
    x, ridge = features(3, samples=1), 0.01
    costs, y = segment_costs(profile_of(x), ridge), unit(x)[0]
    for i, j, k in ((0, 0, 3), (0, 2, 5), (1, 3, 8), (5, 6, 8), (2, 3, 4)):
        total = torch.zeros(40, dtype=torch.float64)
        for t in range(j + 1, k):
            d = y[i] - y[j]
            share = 0 if i == j else float(d @ (y[t] - y[j]) / (d @ d * (1 + ridge) + NOISE))
            total += (SIGMAS[t] - SIGMAS[t + 1]) * (y[j] + share * d - y[t])
        assert float(costs[i, j, k]) == pytest.approx(float(total.norm()), abs=1e-12)
    assert math.isinf(costs[3, 2, 5]) and math.isinf(costs[1, 2, 2])
    reuse = segment_costs(profile_of(x), ridge, window=1)
    miss = sum((SIGMAS[t] - SIGMAS[t + 1]) * (y[2] - y[t]) for t in (3, 4))
    assert float(reuse[0, 2, 5]) == float(reuse[2, 2, 5]) == pytest.approx(float(miss.norm()), abs=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("warmup", [1, 2, 3])
def test_dynamic_programming_finds_what_brute_force_finds(objective, warmup):
    costs = segment_costs(profile_of(features(4)))
    for budget in range(warmup, STEPS + 1):

        def loss(full):
            parts = [
                float(costs[max(a, 0) if a is not None else b, b, c])
                for a, b, c in zip([None, *full[:-1]], full, [*full[1:], STEPS])
                if b >= warmup - 1
            ]
            return (
                max(parts)
                if objective == "minimax"
                else sum(p**4 if objective == "power" else p for p in parts)
            )

        every = [(*range(warmup), *rest) for rest in combinations(range(warmup, STEPS), budget - warmup)]
        found = plan_full_steps(costs, budget, objective, warmup)
        assert len(found) == budget and found[:warmup] == tuple(range(warmup))
        assert loss(found) == pytest.approx(min(map(loss, every)), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("budget", "warmup", "objective"), [(0, 1, "sum"), (9, 1, "sum"), (2, 3, "sum"), (3, 1, "best")]
)
def test_impossible_plans_are_refused_in_words(budget, warmup, objective):
    with pytest.raises(ValueError, match=r"^(budget|objective) must .*\.$"):
        plan_full_steps(segment_costs(profile_of(features())), budget, objective, warmup)


def test_features_that_hardly_move_are_not_extrapolated():
    """Noise levels bunched at the beginning ask for weights in the hundreds, which would amplify rounding."""
    sigmas = tuple(8 * s / (1 + 7 * s) for s in torch.linspace(1, 0, 21, dtype=torch.float64).tolist())
    x = torch.randn(1, 1, 50, dtype=torch.float64) + torch.tensor(sigmas[:-1])[None, :, None] * torch.randn(
        1, 1, 50, dtype=torch.float64
    )
    gram = x @ x.mT
    bunched = Profile(gram / gram.diagonal(dim1=-2, dim2=-1).mean(), sigmas)
    for budget in range(2, 20):
        made = plan(bunched, budget, warmup=2)
        assert all(abs(w) < 100 for row in made.table.values() for w in row.values())


def test_the_window_decides_on_the_plan_too():
    profile = profile_of(features(5))
    assert plan(profile, 4, window=1).schedule.kinds != plan(profile, 4, window=2).schedule.kinds
    assert all(len(row) == 1 for row in plan(profile, 4, window=1).table.values())


def test_runs_too_long_to_plan_are_refused():
    long = Profile(
        torch.ones(1, MOST_STEPS + 1, MOST_STEPS + 1, dtype=torch.float64),
        tuple(range(MOST_STEPS + 1, -1, -1)),
    )
    with pytest.raises(ValueError, match="at most 200 steps, not 201"):
        plan(long, 10)


def test_a_run_can_measure_the_plans_own_forecast_at_full_steps():
    made = plan(profile_of(features(2)), 4)
    full, table = made.schedule.full_steps, forecast(json.loads(made.schedule.forecast))
    assert dict(table.rows).keys() == set(range(1, STEPS)) and table.sigmas == SIGMAS
    site = filled(full[:2])
    wanted = sum(w * (n + 1) for n, w in dict(table.rows)[full[2]])
    found = table.forecast(site, Node(float(full[2]), SIGMAS[full[2]]))
    assert torch.allclose(found, torch.full((1, 2, 3), wanted, dtype=torch.float32))


def test_refinement_keeps_the_best_measured():
    plans = [plan(profile_of(features()), b) for b in (3, 4, 5)]
    chosen, losses = refine(plans, lambda p: abs(len(p.schedule.full_steps) - 4))
    assert chosen is plans[1] and losses == [1, 0, 1]


# --- the table --------------------------------------------------------------------------------------


def filled(nodes):
    site = Site()
    for n in nodes:
        site.push(torch.full((1, 2, 3), float(n + 1)), Node(float(n), SIGMAS[n]), 5)
    return site


def test_a_table_gives_the_weights_of_its_step():
    table = SolvedWeights.of(STEPS, {3: {2: 1.5, 0: -0.5}, 4: {2: 2.0, 0: -1.0}})
    site = filled((0, 2))
    for step, (a, b) in ((3, (1.5, -0.5)), (4, (2.0, -1.0))):
        assert torch.allclose(
            table.forecast(site, Node(float(step), SIGMAS[step])), torch.full((1, 2, 3), 3 * a + 1 * b)
        )
    assert table.needs == 2 and forecast(table.to_dict()) == table


def test_a_table_steps_back_where_the_run_is_not_its_own():
    """A full step more, or a step that it lacks, and the fallback answers."""
    table = SolvedWeights.of(STEPS, {4: {2: 2.0, 0: -1.0}})
    for site, step in ((filled((0, 2, 3)), 4), (filled((0, 2)), 5), (filled((0,)), 4)):
        node = Node(float(step), SIGMAS[step])
        assert torch.equal(table.forecast(site, node), table.fallback.forecast(site, node))


@pytest.mark.parametrize(
    "part",
    [
        {"by": "step"},
        {"by": "step", "steps": 8, "table": []},
        {"by": "step", "steps": 0, "table": {}},
        {"by": "step", "steps": 8, "table": {"3": {"4": 1.0}}},
        {"by": "step", "steps": 8, "table": {"3": {"2": 0.5}}},
        {"by": "step", "steps": 8, "table": {"3": {"2": math.nan}}},
        {"by": "step", "steps": 8, "table": {"x": {"2": 1.0}}},
        {"by": "step", "steps": 8, "table": {"3": {"2": "1"}}},
        {"by": "step", "steps": 8, "table": {"9" * 40: {"2": 1.0}}},
        {"by": "step", "steps": 8, "table": {"3": 1}},
        {"by": "step", "steps": "8", "table": {}},
        {"by": "step", "steps": 8, "table": {}, "x": 1},
        {"by": "step", "steps": 8, "table": {"3": {"2": 10**400}}},
        {"by": "step", "steps": 8, "table": {"3": {"2": 200.0, "1": -199.0}}},
        {"by": "step", "steps": 8, "table": {}, "sigmas": [1, 0]},
        {"by": "step", "steps": 1, "table": {}, "sigmas": [1, 10**400]},
        {"by": "step", "steps": 1, "table": {}, "sigmas": "10"},
    ],
    ids=str,
)
def test_bad_tables_are_refused_in_a_sentence(part):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        forecast(part)
