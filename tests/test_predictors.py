"""Predictors are weights over nodes: they sum to 1, are exact on what they promise, and fall back to reuse."""

import math
import random

import pytest

from cache_core.predictors import MEMBERS, PREDICTORS, Predictor, predictor

NODE_SETS = [
    ([9.0, 4.0, 3.0], 12.0),  # step indices with unequal gaps
    ([0.62, 0.71, 0.9], 0.58),  # falling sigmas
    ([0.62, 0.71, 0.9], 0.66),  # a target between two nodes, as samplers with several evaluations ask for
    ([14.6, 10.1, 7.0], 14.6),  # rising sigmas, target on the newest node
    ([-2.0, 3.0, 5.0], -7.5),
]


def apply(weights, values):
    return sum(w * v for w, v in zip(weights, values, strict=False))


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("gain", [0.0, 0.6, 1.0, 1.5])
@pytest.mark.parametrize(("nodes", "target"), NODE_SETS)
def test_weights_sum_to_one_and_keep_constants(name, gain, nodes, target):
    rule = predictor(name, gain=gain)
    for count in (1, 2, 3):
        weights = rule.weights(nodes[:count], target)
        assert len(weights) == min(count, rule.needs)
        assert sum(weights) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("nodes", "target"), NODE_SETS)
def test_linear_is_exact_on_lines(nodes, target):
    weights = predictor("linear").weights(nodes, target)
    for slope, offset in ((1.0, 0.0), (-3.5, 8.0), (0.25, -1.0)):
        assert apply(weights, [slope * n + offset for n in nodes]) == pytest.approx(slope * target + offset, rel=1e-12, abs=1e-12)


def test_linear_along_a_sigma_schedule_at_random_full_steps():
    rng = random.Random(3)
    sigmas = [1 - (i / 30) ** 1.7 for i in range(31)]
    for _ in range(50):
        newest, older = sorted(rng.sample(range(29), 2), reverse=True)
        target = sigmas[rng.randrange(newest + 1, 31)]
        weights = predictor("linear").weights([sigmas[newest], sigmas[older]], target)
        assert apply(weights, [5 * sigmas[newest] - 2, 5 * sigmas[older] - 2]) == pytest.approx(5 * target - 2, abs=1e-9)


def test_linear_follows_newton_on_equal_gaps():
    # TaylorSeer of order 1: F0 + kappa (F0 - F1).
    assert predictor("linear").weights([10, 5], 12) == pytest.approx((1.4, -0.4))
    assert predictor("linear").weights([10, 5], 15) == pytest.approx((2, -1))


def test_gain_damps_towards_the_newest_snapshot():
    assert predictor("linear", gain=0.5).weights([10, 5], 15) == pytest.approx((1.5, -0.5))
    assert predictor("linear", gain=0.0).weights([10, 5], 15) == (1.0, 0.0)


@pytest.mark.parametrize("name", MEMBERS)
def test_at_the_newest_node_the_newest_snapshot_comes_back_exactly(name):
    weights = predictor(name).weights([0.3, 0.7, 0.9], 0.3)
    assert weights[0] == 1.0
    assert not any(weights[1:])


def test_reuse_and_short_history():
    assert predictor("reuse").weights([0.4, 0.8, 0.9], 0.1) == (1.0,)
    assert predictor("linear").weights([0.4], 0.1) == (1.0,)


@pytest.mark.parametrize(
    ("nodes", "target"),
    [
        ([0.5, 0.5], 0.2),
        ([0.5, 0.5 * (1 + 1e-8)], 0.2),  # equal to the accuracy of float32: the line would blow up
        ([math.nan, 0.5], 0.2),
        ([0.5, math.nan], 0.2),
        ([0.5, math.inf], 0.2),
        ([0.5, 0.7], math.nan),
        ([0.5, 0.7], math.inf),
        ([0.0, 1e-300], 1e308),
    ],
)
def test_unusable_nodes_fall_back_to_reuse(nodes, target):
    assert predictor("linear").weights(nodes, target) == (1.0, 0.0)


def test_a_history_without_nodes_is_an_error():
    with pytest.raises(ValueError, match="nodes"):
        predictor("linear").weights([], 0.5)


def test_registry_and_validation():
    assert PREDICTORS["linear"] == Predictor("linear", 1)
    assert predictor("linear", gain=0.7, coordinate="index") == Predictor("linear", 1, 0.7, "index")
    assert (PREDICTORS["reuse"].needs, PREDICTORS["linear"].needs) == (1, 2)
    with pytest.raises(ValueError, match="reuse, linear"):
        predictor("magic")
    with pytest.raises(ValueError, match="strength"):
        predictor("linear", strength=1)
    with pytest.raises(ValueError, match="order"):
        predictor("linear", order=2)
    for gain in (math.nan, -0.1, 3):
        with pytest.raises(ValueError, match="gain"):
            predictor("linear", gain=gain)
    with pytest.raises(ValueError, match="coordinate"):
        predictor("linear", coordinate="time")
    with pytest.raises(ValueError, match="reuse, linear"):
        Predictor("magic", 1)
