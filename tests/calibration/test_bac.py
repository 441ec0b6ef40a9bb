"""Block-wise plans are the best there are, which brute force confirms, and the union refreshes what it
must."""

from itertools import combinations

import pytest
import torch

from cache_core.calibration.bac import (
    OBJECTIVES,
    block_mask,
    bubbling_union,
    cosines,
    distances,
    mask_of,
    refresh_steps,
    reuse_error,
    segment_costs,
    shared_mask,
)
from cache_core.calibration.planner import magnitude_ratios
from cache_core.calibration.profile import Profile

STEPS = 7
SIGMAS = tuple(1 - (i / STEPS) ** 1.3 for i in range(STEPS + 1))
NAMES = ("double.0.attn", "double.0.mlp", "double.1.attn", "double.1.mlp", "single.0", "single.1")


def path(seed, samples=3, width=20):
    """A random walk [samples, STEPS, width] whose strides differ from step to step."""
    g = torch.Generator().manual_seed(seed)
    strides = torch.rand(1, STEPS, 1, generator=g, dtype=torch.float64) ** 3
    return (torch.randn(samples, STEPS, width, generator=g, dtype=torch.float64) * strides).cumsum(1) + 0.5


def profile_of(count=len(NAMES)):
    grams = [x @ x.mT / x.square().sum(-1).mean() for x in map(path, range(count + 1))]
    return Profile(grams[0], SIGMAS, modules=dict(zip(NAMES, grams[1:])))


def cost_by_hand(x, refresh, objective, weights):
    """What a module's reuse costs, from its features."""
    total, last = 0.0, 0
    for t in range(STEPS):
        if t in refresh:
            last = t
        elif objective == "cosine":
            total -= float(torch.cosine_similarity(x[:, t], x[:, t - 1], dim=-1).mean())
        else:
            total += float(weights[t] * (x[:, t] - x[:, last]).square().sum(-1).mean())
    return total


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", range(3))
def test_dynamic_programming_finds_what_brute_force_finds(objective, seed):
    x, weights = path(seed), torch.linspace(0.5, 1.5, STEPS, dtype=torch.float64)
    costs = segment_costs(x @ x.mT, objective, weights)
    for budget in range(1, STEPS + 1):
        every = {
            (0, *rest): cost_by_hand(x, (0, *rest), objective, weights)
            for rest in combinations(range(1, STEPS), budget - 1)
        }
        found = refresh_steps(costs, budget)
        assert len(found) == budget and every[found] == pytest.approx(
            min(every.values()), rel=1e-9, abs=1e-12
        )


def test_the_published_objective_refreshes_where_consecutive_outputs_differ_most():
    x = path(5)
    worst = cosines(x @ x.mT)[1:].argsort()[:3] + 1
    assert refresh_steps(segment_costs(x @ x.mT, "cosine"), 4) == (0, *sorted(worst.tolist()))


def test_measures_are_those_of_the_features():
    x = path(6)
    gram = x @ x.mT
    pairs = (x[:, :, None] - x[:, None]).square().sum(-1).mean(0)
    assert torch.allclose(distances(gram), pairs, atol=1e-10)
    assert reuse_error(gram) == pytest.approx(float(pairs.sqrt().sum() / (STEPS * (STEPS - 1))), rel=1e-6)
    assert cosines(gram)[1:].tolist() == pytest.approx(
        [float(torch.cosine_similarity(x[:, t], x[:, t - 1], dim=-1).mean()) for t in range(1, STEPS)]
    )
    assert reuse_error(torch.ones(2, 1, 1, dtype=torch.float64)) == 0


@pytest.mark.parametrize("top", range(len(NAMES) + 1))
def test_the_union_computes_the_worst_whenever_an_mlp_behind_them_is(top):
    plans = {
        name: refresh_steps(segment_costs(path(i) @ path(i).mT, "error"), 3) for i, name in enumerate(NAMES)
    }
    errors = {name: reuse_error(path(i) @ path(i).mT) for i, name in enumerate(NAMES)}
    made, worst = bubbling_union(plans, errors, top), sorted(NAMES, key=lambda n: -errors[n])[:top]
    for i, name in enumerate(NAMES):
        assert set(plans[name]) <= set(made[name])
        if name not in worst:
            assert made[name] == plans[name]
            continue
        behind = [m for m in NAMES[i + 1 :] if not m.endswith("attn")]
        assert set(made[name]) == set(plans[name]).union(*(plans[m] for m in behind))
        assert all(
            set(made[m]) <= set(made[name]) for m in behind
        )  # also where the MLP itself is one of the worst
    assert list(made) == list(NAMES)


def test_a_mask_computes_each_module_at_its_steps():
    plans = {"double.0.attn": (0, 2, 3), "double.0.mlp": (0, 3), "single.0": (0, 1, 3)}
    mask = mask_of(5, plans)
    assert mask.kinds == "FCCFA"
    for name, steps in plans.items():
        assert tuple(s for s in range(5) if mask.at(s) & {"*", name}) == steps


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_masks_from_a_profile(objective):
    profile = profile_of()
    plain, union, shared = (
        block_mask(profile, 3, objective),
        block_mask(profile, 3, objective, 2),
        shared_mask(profile, 3, objective),
    )
    for name in NAMES:
        steps = [s for s in range(STEPS) if plain.at(s) & {"*", name}]
        assert len(steps) == 3 and set(steps) <= {s for s in range(STEPS) if union.at(s) & {"*", name}}
    assert plain != union and shared.names == () and shared.kinds.count("F") == 3
    assert block_mask(profile, STEPS, objective).kinds == "F" * STEPS


def test_one_module_shares_with_nobody():
    profile = profile_of(1)
    steps = [s for s in range(STEPS) if "F" == shared_mask(profile, 3).kinds[s]]
    assert steps == [s for s in range(STEPS) if block_mask(profile, 3).kinds[s] == "F"]


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: block_mask(Profile(profile_of().grams, SIGMAS), 3), "the profile"),
        (lambda: block_mask(profile_of(), 0), "budget"),
        (lambda: shared_mask(profile_of(), STEPS + 1), "budget"),
        (lambda: block_mask(profile_of(), 3, "best"), "objective"),
    ],
)
def test_impossible_plans_are_refused_in_words(call, field):
    with pytest.raises(ValueError, match=rf"^{field} [^\n]+\.$"):
        call()


def test_magnitude_ratios_are_ratios_of_lengths():
    x = path(9)
    lengths = x.norm(dim=-1)
    ratios = magnitude_ratios(Profile(x @ x.mT, SIGMAS))
    assert ratios[0] == 1 and ratios[1:] == pytest.approx((lengths[:, 1:] / lengths[:, :-1]).mean(0).tolist())
