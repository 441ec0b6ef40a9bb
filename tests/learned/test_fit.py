"""Learned plans on equations whose solution is known."""

import math

import pytest
import torch

from cache_core.learned.features import FEATURES
from cache_core.learned.fit import fit, follow
from cache_core.learned.grid import choose_steps, segment_errors
from cache_core.learned.learning import calls_needed, learn
from cache_core.learned.reference import Trajectory, decibels, record, solve_exactly
from cache_core.learned.samplers import SAMPLERS, integrate, sampler

LEVELS = [1 - i / 15 for i in range(16)]
PRECISE = {"shrink": False, "ridges": (1e-13,)}


def start(count=6, width=64, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def curved(x, sigma):
    """A nonlinear field that couples neighbours."""
    return torch.tanh(1.5 * x.roll(1, -1) + sigma) - 0.5 * x


def both(velocity):
    """As `follow` and `fit` ask for it, without guidance."""
    return lambda x, s: (velocity(x, s), None), lambda b, x, s: (velocity(x, s), None)


def test_weights_of_a_linear_equation_are_the_known_optimum():
    """dx/ds = rate x with two rates: theta_x + rate theta_w = (exp(rate h) - 1 - rate h) / h for both."""
    rates = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    x, levels = start(width=2), [1.0, 0.4]
    end = x * torch.exp(rates * (levels[1] - levels[0]))
    aim = Trajectory(tuple(levels), [x, end], [rates * x])
    one, many = both(lambda x, s: rates * x)
    found = fit([aim], many, levels, [0], **PRECISE)
    h = levels[1] - levels[0]
    matrix = torch.stack([torch.ones(2, dtype=torch.float64), rates], 1)
    known = torch.linalg.solve(matrix, (torch.exp(rates * h) - 1 - rates * h) / h)
    weights = dict(zip(FEATURES, found.weights[0]))
    assert [weights["x"], weights["w"]] == pytest.approx(known.tolist(), rel=1e-6)
    torch.testing.assert_close(follow(x, one, levels, [0], found.weights), end, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("under", [None, "euler", "dpmpp_2m", "res_multistep", "uni_pc", "uni_pc_bh2"])
def test_velocities_that_are_cubic_in_sigma_are_followed_exactly(under):
    """Behind four steps in a row, four velocities tell all that comes, whatever the sampler makes of them."""
    parts = start(width=64, seed=3).view(6, 4, 16)

    def cubic(x, sigma):
        return sum(parts[:, j] * sigma**j for j in range(4))

    x, (one, many) = start(width=16, seed=4), both(cubic)
    aim = record(LEVELS, x, cubic, sampler(under, LEVELS) if under else None)
    full = [0, 1, 2, 3, 6, 10]
    found = fit([aim], many, LEVELS, full, under, **PRECISE)
    ended = follow(x, one, LEVELS, full, found.weights, under)
    assert min(decibels(ended - aim.states[-1], aim.states[-1])) > 90
    plain = follow(x, one, LEVELS, full, [[0.0] * len(FEATURES)] * len(full), under)
    assert max(decibels(plain - aim.states[-1], aim.states[-1])) < 60  # the weights did it


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_converge_to_the_exact_solution(name):
    x = start()
    exact = solve_exactly([1 - 0.99 * i / 200 for i in range(201)], x, curved).states[-1]
    errors = []
    for n in (10, 40):
        levels = [1 - 0.99 * i / n for i in range(n + 1)]
        errors.append(float((integrate(name, levels, x, curved) - exact).norm()))
    assert errors[1] < errors[0] / (3.5 if name == "euler" else 6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_response_of_a_sampler_is_what_it_does(name):
    x, added = start(), start(seed=1)
    run = sampler(name, LEVELS)
    for i in range(3):
        x = run.advance(i, x, curved(x, LEVELS[i]))
    reach, ends = run.response(3, 4, 7), []
    for share in (0.0, 1.0):
        own, y = run.copy(), x
        for i in range(3, 7):
            y = own.advance(i, y, curved(x, 0.8) + share * (i >= 4) * added)
        ends.append(y)
    torch.testing.assert_close(ends[1] - ends[0], reach * added)


@pytest.mark.parametrize("under", [None, "euler", "dpmpp_2m", "uni_pc"])
def test_a_plan_reaches_its_aim_on_its_own_captions_and_leads_fewer_steps_on_others(under):
    x, (one, many) = start(count=12), both(curved)
    aim = record(LEVELS, x[:8], curved, sampler(under, LEVELS) if under else None)
    (plan,) = learn([aim], many, [5], 1.0, under=under)
    for part in (x[:8], x[8:]):
        to = record(LEVELS, part, curved, sampler(under, LEVELS) if under else None).states[-1]
        ours = min(decibels(follow(part, one, LEVELS, plan.full, plan.weights, under) - to, to))
        levels = [1 - i / 5 for i in range(6)]
        rivals = [min(decibels(integrate(n, levels, part, curved) - to, to)) for n in ("euler", "dpmpp_2m")]
        assert ours > max(rivals) + 6 and ours > 35
    median, worst = plan.quality()
    assert worst <= median and abs(worst - ours) < 12  # what is promised is about what other captions got


def test_differences_of_branches_are_used_with_guidance():
    guided = 3.0

    def branches(x, sigma):
        cond, uncond = curved(x, sigma), 0.3 * torch.sin(4 * x) * sigma
        return uncond + guided * (cond - uncond), cond - uncond

    x = start(count=8)
    aim = record(LEVELS, x, lambda x, s: branches(x, s)[0])
    full = choose_steps(segment_errors([aim]), 5, 0.5)
    found = fit([aim], lambda b, x, s: branches(x, s), LEVELS, full)
    place = FEATURES.index("delta")
    assert any(row[place] for row in found.weights)
    blind = fit([aim], lambda b, x, s: (branches(x, s)[0], None), LEVELS, full)
    assert not any(row[place] for row in blind.weights)


def test_captions_one_by_one_and_from_files_give_the_same_plan(tmp_path):
    x = start(count=4)
    whole = record(LEVELS, x, curved)
    parts = [record(LEVELS, x[i : i + 1], curved) for i in range(4)]
    many = both(curved)[1]
    together = fit([whole], many, LEVELS, [0, 3, 7, 11], "dpmpp_2m")
    apart = fit(parts, many, LEVELS, [0, 3, 7, 11], "dpmpp_2m", folder=tmp_path)
    for a, b in zip(together.weights, apart.weights):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-9)
    assert together.ended == pytest.approx(apart.ended, rel=1e-6) and list(tmp_path.iterdir()) == []


def test_videos_are_learned_like_pictures():
    def local(x, sigma):
        return torch.tanh(1.5 * x + sigma) - 0.5 * x

    x, many = start(count=2, width=2 * 3 * 4 * 4).view(2, 2, 3, 4, 4), both(local)[1]
    (plan,) = learn([record(LEVELS, x, local)], many, [5], 1.0)
    (flat,) = learn([record(LEVELS, x.flatten(1), local)], many, [5], 1.0)
    assert len(plan.full) == 5 and plan.full == flat.full
    for a, b in zip(plan.weights, flat.weights):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-9)


def test_full_steps_stand_where_the_path_bends():
    """Straight until the middle: one step crosses it."""

    def bent(x, sigma):
        return torch.ones_like(x) if sigma > 0.5 else torch.sin(20 * sigma + x)

    levels = [1 - i / 30 for i in range(31)]
    full = choose_steps(segment_errors([record(levels, start(), bent)]), 8, 0.5)
    assert full[0] == 0 and len(full) == 8 and sum(levels[i] > 0.55 for i in full) <= 3
    assert max(b - a for a, b in zip(full, [*full[1:], 30])) <= 8  # twice as far apart as even ones


def test_bad_recordings_are_named():
    x, many = start(), both(curved)[1]
    aim = record(LEVELS, x, curved)
    with pytest.raises(ValueError, match="no recorded run"):
        learn([], many, [4], 1.0)
    with pytest.raises(ValueError, match="no plan of 16 calls"):
        learn([aim], many, [16], 1.0)
    with pytest.raises(ValueError, match="different noise levels"):
        learn([aim, record(LEVELS[:-1], x, curved)], many, [4], 1.0)
    with pytest.raises(ValueError, match="not finite"):
        record(LEVELS, x * math.nan, curved)
    with pytest.raises(ValueError, match="not finite"):
        fit([aim], lambda b, x, s: (x * math.nan, None), LEVELS, [0, 4, 8])
    with pytest.raises(ValueError, match="must fall"):
        Trajectory((0.0, 1.0), [x, x], [x])


def test_one_caption_is_enough_for_a_plan_and_too_few_for_a_promise():
    aim = record(LEVELS, start(count=1), curved)
    (plan,) = learn([aim], both(curved)[1], [5], 1.0)
    assert plan.quality() is None and plan.expected == ()


def test_the_cost_is_told_beforehand():
    calls = []
    aim = record(LEVELS, start(count=3), curved)

    def counted(b, x, s):
        calls.append(len(x))
        return curved(x, s), None

    learn([aim], counted, [5, 12], 1.0)
    assert sum(calls) <= calls_needed([5, 12], 3, 15) == 3 * (3 * 5 + 12)
