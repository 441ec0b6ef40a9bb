"""Predictors are weights over nodes: they sum to 1, are exact on what they promise, and fall back to
reuse."""

import math
import random
from fractions import Fraction

import pytest
import torch

from cache_core.base.coordinates import Node, log_snr
from cache_core.cache.feature_cache import Site
from cache_core.predictors.extrapolation import MEMBERS, PREDICTORS, Predictor, predictor

NODE_SETS = [
    ([9.0, 4.0, 3.0], 12.0),  # step indices with unequal gaps
    ([0.62, 0.71, 0.9], 0.58),  # falling sigmas
    ([0.62, 0.71, 0.9], 0.66),  # a target between two nodes, as samplers with several evaluations ask for
    ([14.6, 10.1, 7.0], 14.6),  # rising sigmas, target on the newest node
    ([-2.0, 3.0, 5.0], -7.5),
]


def apply(weights, values):
    return sum(w * v for w, v in zip(weights, values, strict=False))


@pytest.mark.parametrize("name", [n for n, member in MEMBERS.items() if member.sums_to_one])
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
        assert apply(weights, [slope * n + offset for n in nodes]) == pytest.approx(
            slope * target + offset, rel=1e-12, abs=1e-12
        )


def test_linear_along_a_sigma_schedule_at_random_full_steps():
    rng = random.Random(3)
    sigmas = [1 - (i / 30) ** 1.7 for i in range(31)]
    for _ in range(50):
        newest, older = sorted(rng.sample(range(29), 2), reverse=True)
        target = sigmas[rng.randrange(newest + 1, 31)]
        weights = predictor("linear").weights([sigmas[newest], sigmas[older]], target)
        assert apply(weights, [5 * sigmas[newest] - 2, 5 * sigmas[older] - 2]) == pytest.approx(
            5 * target - 2, abs=1e-9
        )


def test_linear_follows_newton_on_equal_gaps():
    # TaylorSeer of order 1: F0 + kappa (F0 - F1).
    assert predictor("linear").weights([10, 5], 12) == pytest.approx((1.4, -0.4))
    assert predictor("linear").weights([10, 5], 15) == pytest.approx((2, -1))


def test_gain_damps_towards_the_newest_snapshot():
    assert predictor("linear", gain=0.5).weights([10, 5], 15) == pytest.approx((1.5, -0.5))
    assert predictor("linear", gain=0.0).weights([10, 5], 15) == (1.0, 0.0)


DAMPED = {"reuse", "bdf2", "hermite", "mean_velocity", "chebyshev", "spectrum"}
"""Rules that damp the slope on purpose."""
FITS = {"hermite", "chebyshev", "spectrum"}
"""Rules that do not go through their newest snapshot."""


@pytest.mark.parametrize("name", [n for n in MEMBERS if n not in FITS])
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


# --- the published weights ------------------------------------------------------------------------


GOLDEN = {  # one whole gap ahead of snapshots at equal gaps
    ("reuse", 0): "1",
    ("linear", 1): "2 -1",
    ("newton", 1): "2 -1",
    ("newton", 2): "3 -3 1",
    ("newton", 4): "5 -10 10 -5 1",
    ("taylor", 1): "2 -1",
    ("taylor", 2): "5/2 -2 1/2",
    ("adams_bashforth", 2): "5/2 -2 1/2",
    ("rk2", 2): "3/2 0 -1/2",
    ("bdf2", 1): "4/3 -1/3",
    ("adams_moulton", 2): "55/24 -19/12 7/24",
    ("foca", 2): "7/3 -5/3 1/3",
    ("foca_heun", 2): "5/2 -2 1/2",
}


@pytest.mark.parametrize(("name", "order"), GOLDEN)
def test_one_gap_ahead_the_published_weights_come_out(name, order):
    golden = [float(Fraction(w)) for w in GOLDEN[name, order].split()]
    for gap in (1.0, -5.0, 0.0625):
        nodes = [3 - gap * i for i in range(len(golden))]
        assert predictor(name, order=order).weights(nodes, 3 + gap) == pytest.approx(golden, abs=1e-9)


def test_the_fixed_horizon_gives_the_weights_of_one_gap_wherever_the_target_lies():
    for name, order in GOLDEN:
        fixed = predictor(name, order=order, horizon="fixed")
        ahead = fixed.weights([0, -1, -2, -3, -4], 1)
        for target in (0.1, 0.55, 7.0):
            assert fixed.weights([0.6, 0.7, 0.9, 0.95, 1.0], target) == pytest.approx(ahead, abs=1e-12), name
    assert predictor("linear").weights([0.6, 0.7], 0.55) != pytest.approx((2, -1))


def test_forms_of_three_nodes_bend_as_published_at_every_distance():
    """TaylorSeer of order 2 weighs the second difference by k^2 / 2, Newton by k (k + 1) / 2."""
    for k in (0.25, 1.0, 3.0):
        for name, order, bend in (("taylor", 2, k * k / 2), ("newton", 2, k * (k + 1) / 2)):
            assert predictor(name, order=order).weights([10, 5, 0], 10 + 5 * k) == pytest.approx(
                (1 + k + bend, -k - 2 * bend, bend)
            )


def test_taylorseer_misses_a_quadratic_by_the_published_amounts():
    nodes, truth = [10, 5, 0], [0.5 * s * s for s in (10, 5, 0)]
    for order, missed in ((1, (-3, -7, -12, -18)), (2, (-2.5, -5, -7.5, -10))):
        rule = predictor("taylor", order=order)
        errors = [
            apply(rule.weights(nodes, 10 + x), truth[: order + 1]) - 0.5 * (10 + x) ** 2 for x in (1, 2, 3, 4)
        ]
        assert errors == pytest.approx(missed)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_taylorseer_mixes_gaps_as_its_recursion_does(order):
    rng = random.Random(order)
    for _ in range(20):
        steps = sorted(rng.sample(range(50), rng.randint(2, 9)))
        truth, factors, last = {s: rng.gauss(0, 1) for s in steps}, [], None
        for s in steps:  # f_new[i + 1] = (f_new[i] - f_old[i]) / d
            fresh = [truth[s]]
            for old in factors[:order]:
                fresh.append((fresh[-1] - old) / (s - last))
            factors, last = fresh, s
        target = last + rng.randint(1, 6)
        expected = sum(f * (target - last) ** i / math.factorial(i) for i, f in enumerate(factors))
        rule, nodes = predictor("taylor", order=order), steps[::-1]
        assert apply(rule.weights(nodes, target), [truth[s] for s in nodes][: rule.needs]) == pytest.approx(
            expected, rel=1e-9, abs=1e-9
        )


def test_taylorseer_of_order_two_is_adams_bashforth_at_any_gaps():
    for nodes, target in NODE_SETS:
        assert predictor("taylor", order=2).weights(nodes, target) == pytest.approx(
            predictor("adams_bashforth").weights(nodes, target)
        )


@pytest.mark.parametrize("s", [0.3, 0.5, 1.0])
def test_hicache_scales_the_differences_by_hermite_polynomials(s):
    for k in (1, 2, 5):
        for order, terms in ((1, (2 * s**2 * k,)), (2, (2 * s**2 * k, 2 * s**4 * k**2 - s**2))):
            a, c = (*terms, 0.0)[:2]
            assert predictor("hermite", order=order, damping=s).weights(
                [7, 6, 5][: order + 1], 7 + k
            ) == pytest.approx((1 + a + c, -a - 2 * c, c)[: order + 1])


@pytest.mark.parametrize("window", [2, 3, 4, 5, 6])
def test_meancache_damps_the_slope_by_its_window(window):
    """(K - 1) / (2 K) for velocities on a line, and the published formula on a path of unequal Euler
    steps."""
    rule = predictor("mean_velocity", order=window - 1)
    line = [-0.5 * i for i in range(window)]
    assert apply(rule.weights(line, 0.5), line) == pytest.approx(0.5 * (window - 1) / (2 * window))
    rng = random.Random(window)
    times = sorted((rng.random() for _ in range(window + 1)), reverse=True)
    z, path, speeds = 0.7, [0.7], [rng.gauss(0, 1) for _ in range(window)]
    for a, b, v in zip(times, times[1:], speeds):
        z += (b - a) * v
        path.append(z)
    mean = (path[-1] - path[0]) / (times[-1] - times[0])
    jvp = (mean - speeds[0]) / (times[-1] - times[0])
    expected = speeds[-1] + jvp * (times[-1] - times[-2])
    assert apply(rule.weights(times[-2::-1], times[-1]), speeds[::-1]) == pytest.approx(expected)


SPECTRUM = [
    ([0, 1, 2, 3, 4], 5, 0.9387),
    ([0, 1, 2, 3, 4, 6, 9], 10, 0.9269),
    ([0, 1, 2, 3, 4, 6, 9, 13, 18], 20, 0.9277),
]


@pytest.mark.parametrize(("steps", "target", "total"), SPECTRUM)
def test_spectrum_shrinks_as_published_and_chebyshev_does_not(steps, target, total):
    published, mended = (
        predictor(n, coordinate="index", blend=1.0).over(50, 0) for n in ("spectrum", "chebyshev")
    )
    assert published.span == (0, 50)
    assert sum(published.weights(steps[::-1], target)) == pytest.approx(total, abs=5e-5)
    assert sum(mended.weights(steps[::-1], target)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("steps", "target", "_"), SPECTRUM)
@pytest.mark.parametrize("name", ["spectrum", "chebyshev"])
def test_spectrum_is_a_ridge_fit_blended_with_a_line(name, steps, target, _):
    def basis(x):
        return torch.tensor(
            [[math.cos(i * math.acos((v - 25) / 25)) for i in range(4)] for v in x], dtype=torch.float64
        )

    values = torch.randn(len(steps), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    phi, pull = basis(steps), torch.full((4,), 0.3, dtype=torch.float64)
    pull[0] *= name == "spectrum"
    coefficients = torch.cholesky_solve(
        (phi.T @ values)[:, None], torch.linalg.cholesky(phi.T @ phi + pull.diag())
    )
    fit = float(basis([target]) @ coefficients)
    line = float(values[-1] + (target - steps[-1]) / (steps[-1] - steps[-2]) * (values[-1] - values[-2]))
    for blend in (0.0, 0.5, 1.0):
        rule = predictor(name, order=3, ridge=0.3, blend=blend, coordinate="index").over(0, 50)
        assert apply(rule.weights(steps[::-1], target), values.tolist()[::-1]) == pytest.approx(
            blend * fit + (1 - blend) * line
        )


def test_a_fit_without_ridge_is_defined_on_a_short_history_too():
    rule = predictor("chebyshev", ridge=0.0, blend=1.0, coordinate="index").over(0, 50)
    rng = random.Random(0)
    for _ in range(300):
        nodes = sorted((rng.uniform(0, 50) for _ in range(rng.randint(2, 5))), reverse=True)
        values = [rng.gauss(0, 1) for _ in nodes]
        assert apply(rule.weights(nodes, nodes[0]), values) == pytest.approx(values[0], abs=1e-6)
    assert apply(rule.weights([12, 9, 5, 3, 0], 14), [x**4 for x in (12, 9, 5, 3, 0)]) == pytest.approx(14**4)


# --- exactness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_newton_is_exact_on_polynomials_of_its_order_and_no_higher(order):
    rng = random.Random(order)
    for _ in range(20):
        nodes = rng.sample([i / 8 for i in range(40)], order + 1)
        target, values = rng.uniform(-2, 7), [rng.uniform(-1, 1) for _ in range(order + 1)]
        weights = predictor("newton", order=order).weights(nodes, target)

        def off(degree):
            poly = lambda x: x**degree + sum(c * x**i for i, c in enumerate(values[:degree]))  # noqa: E731
            return abs(apply(weights, [poly(n) for n in nodes]) - poly(target))

        scale = sum(map(abs, weights)) * 7.0**order
        assert all(off(d) <= 1e-12 * scale for d in range(order + 1))
        assert off(order + 1) == pytest.approx(
            abs(math.prod(target - n for n in nodes)), rel=1e-6, abs=1e-12 * 7 * scale
        )


@pytest.mark.parametrize("name", MEMBERS)
def test_rules_are_exact_on_lines_unless_they_damp_the_slope(name):
    for nodes, target in NODE_SETS[:2]:
        guess = apply(predictor(name).weights(nodes, target), nodes[: predictor(name).needs])
        assert (guess == pytest.approx(target, abs=1e-9)) == (name not in DAMPED)


def test_a_forecast_in_log_snr_is_exact_where_features_follow_it():
    assert [log_snr(0.5), log_snr(0.2), log_snr(4.0, flow=False)] == pytest.approx(
        [0, 2 * math.log(4), -2 * math.log(4)]
    )
    assert all(math.isfinite(log_snr(s, flow)) for s in (0.0, 1.0) for flow in (True, False))
    start, slope = torch.ones(1, 2, 3), torch.full((1, 2, 3), -0.25)
    for flow, sigmas in ((True, (0.9, 0.7, 0.4)), (False, (14.6, 3.0, 0.5))):
        at = [Node(float(i), s, flow) for i, s in enumerate(sigmas)]
        truth = [start + slope * log_snr(n.sigma, flow) for n in at]
        off = {}
        for coordinate in ("sigma", "index", "log_snr"):
            site, rule = Site(), predictor("linear", coordinate=coordinate)
            for n, x in zip(at[:2], truth):
                site.record(x, n, rule)
            off[coordinate] = float((site.forecast(rule, at[2]) - truth[2]).abs().max())
        assert off["log_snr"] < 1e-5 < 1e-2 < min(off["sigma"], off["index"])


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("damping", (0, 0.3, 1.0), (-0.1, 1.1, math.nan, True, "0.5")),
        ("ridge", (0, 0.1, 50), (-1e-9, math.inf, math.nan, False, [0.1])),
        ("blend", (0, 1), (-0.1, 1.01, math.nan, None)),
        (
            "span",
            ((0.0, 1.0), (-3, 9)),
            ((1, 0), (2, 2), (0,), (0, math.nan), (0, math.inf), "01", ("a", "b"), None, 5),
        ),
    ],
)
def test_what_the_fits_need_is_checked(field, good, bad):
    for value in good:
        assert getattr(Predictor("chebyshev", 2, **{field: value}), field) == value
    for value in bad:
        with pytest.raises(ValueError, match=f"^{field} "):
            Predictor("chebyshev", 2, **{field: value})


def test_a_run_without_a_usable_length_leaves_the_span_alone():
    rule = predictor("chebyshev")
    assert rule.over(1.0, 0.0).span == (0.0, 1.0)
    for ends in ((0.5, 0.5), (math.inf, 0.0), (math.nan, 0.0)):
        assert rule.over(*ends) == rule
