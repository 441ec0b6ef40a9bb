"""Gains that follow the data: what would have given the last full step, or what a probe of the current step
shows."""

import pytest
import torch

from cache_core.base.coordinates import Node
from cache_core.cache.feature_cache import Evidence, Site
from cache_core.predictors.adaptive import ADAPTATIONS, Adaptive, ProbeGain
from cache_core.predictors.build import forecast
from cache_core.predictors.extrapolation import predictor
from cache_core.recipes import from_preset
from cache_core.schedule.plan import explicit
from tests.tiny_flux import random_flux, run

LINEAR = predictor("linear", coordinate="index")
NEWTON = predictor("newton", coordinate="index")


def tensor(seed, *shape):
    return torch.randn(*(shape or (3, 5, 4)), generator=torch.Generator().manual_seed(seed))


def at(index):
    return Node(float(index), 1 - index / 20)


def site_of(rule, values, steps=None):
    """A site that has seen these values on full steps."""
    site = Site()
    for step, value in zip(steps or range(len(values)), values):
        site.record(value, at(step), rule)
    return site


# --- gains from the last full step ----------------------------------------------------------------


@pytest.mark.parametrize("pull", [0.0, 0.05, 1.0])
def test_least_squares_finds_the_gain_that_features_follow(pull):
    """Features that go on at g times the line; a pull draws the gain towards the rule's own."""
    g, start, slope = 0.4, tensor(1), tensor(2)
    truth = start + slope + g * 2 * slope  # two steps on from the line through steps 0 and 1
    rule = Adaptive(predictor("linear", gain=0.9, coordinate="index"), ridge=pull)
    site = site_of(rule, [start, start + slope, truth], [0, 1, 3])
    expected = (g + pull * 0.9) / (1 + pull)
    assert torch.allclose(site.learned["gains"], torch.full((3, 1), expected), atol=1e-5)
    newest, older = site.snapshots
    assert torch.allclose(site.forecast(rule, at(5)), newest + expected * (newest - older), atol=1e-5)


def test_least_squares_finds_a_gain_for_every_order():
    rule, values = Adaptive(NEWTON, ridge=0.0), [tensor(i) for i in range(3)]
    first, second = values[2] - values[1], values[2] - 2 * values[1] + values[0]
    site = site_of(rule, [*values, values[2] + 0.7 * first - 0.3 * second])
    assert torch.allclose(site.learned["gains"], torch.tensor([[0.7, -0.3]]).expand(3, 2), atol=1e-4)


@pytest.mark.parametrize("pull", [0.0, 0.2])
def test_least_squares_leaves_no_better_gain_nearby(pull):
    """The closed form is the least of |truth - forecast|^2 + pull * energy * (gain - own)^2."""
    values, truth = [tensor(i) for i in range(3)], tensor(9)
    rule = Adaptive(NEWTON, ridge=pull, limit=100)
    first, second = values[2] - values[1], values[2] - 2 * values[1] + values[0]
    gains = site_of(rule, [*values, truth]).learned["gains"]

    def loss(gains):
        miss = truth - values[2] - gains[:, 0, None, None] * first - gains[:, 1, None, None] * second
        pulled = sum(d.square().sum((1, 2)) * (gains[:, i] - 1) ** 2 for i, d in enumerate((first, second)))
        return miss.square().sum((1, 2)) + pull * pulled

    for i in range(2):
        for nudge in (-0.01, 0.01):
            other = gains.clone()
            other[:, i] += nudge
            assert bool((loss(other) > loss(gains)).all())


def test_gains_stay_within_their_limit_and_finite():
    start, slope = tensor(1), tensor(2)
    far = Adaptive(LINEAR, limit=1.5)
    assert torch.equal(
        site_of(far, [start, start + slope, start + 50 * slope]).learned["gains"], torch.full((3, 1), 1.5)
    )
    assert torch.equal(
        site_of(far, [start, start + slope, start - 50 * slope]).learned["gains"], torch.full((3, 1), -1.5)
    )
    still = site_of(Adaptive(LINEAR, ridge=0.0), [start, start, start])
    assert bool(still.learned["gains"].isfinite().all()) and torch.allclose(
        still.forecast(far, at(4)), start, atol=1e-6
    )


def test_back_off_keeps_the_orders_up_to_the_one_that_came_closest():
    start, slope, bend = tensor(1), tensor(2), tensor(3)
    curve, line = [start + i * slope + i * i * bend for i in range(4)], [start + i * slope for i in range(4)]
    rule = Adaptive(NEWTON, "back_off")
    for values, gains in (
        (curve, [1, 1]),
        ([*curve[:3], 2 * curve[2] - curve[1]], [1, 0]),
        ([*curve[:3], curve[2]], [0, 0]),
    ):
        site = site_of(rule, values)
        assert site.learned["gains"].tolist() == [gains] * 3
        kept = (
            predictor("reuse")
            if not any(gains)
            else predictor("newton", order=sum(gains), coordinate="index")
        )
        assert torch.allclose(site.forecast(rule, at(5)), site.forecast(kept, at(5)), atol=1e-5)
    back = site_of(Adaptive(LINEAR, "back_off"), [*line[:2], line[1] - slope])
    assert torch.equal(back.forecast(Adaptive(LINEAR, "back_off"), at(4)), line[1] - slope)


def test_back_off_recovers_when_the_order_becomes_good_again():
    rule, start, slope = Adaptive(LINEAR, "back_off"), tensor(1), tensor(2)
    site = site_of(rule, [start, start + slope, start])
    assert site.learned["gains"].tolist() == [[0.0]] * 3
    site.record(start - slope, at(3), rule)
    assert site.learned["gains"].tolist() == [[1.0]] * 3


@pytest.mark.parametrize("how", ADAPTATIONS)
def test_each_sample_has_gains_of_its_own(how):
    start, slope = tensor(1), tensor(2)
    factor = torch.tensor([1.0, 0.0, -0.5])[:, None, None]
    rule = Adaptive(LINEAR, how, ridge=0.0)
    gains = site_of(rule, [start, start + slope, start + slope + factor * slope]).learned["gains"][:, 0]
    assert gains.tolist() == pytest.approx([1, 0, -0.5] if how == "least_squares" else [1, 0, 0], abs=1e-5)


@pytest.mark.parametrize("how", ADAPTATIONS)
@pytest.mark.parametrize("name", ["linear", "newton", "mean_velocity"])
def test_a_batch_equals_its_samples(how, name):
    rule = Adaptive(predictor(name, order=3) if name == "newton" else predictor(name), how)
    values = [tensor(i) for i in range(6)]
    whole = site_of(rule, values)
    for b in range(3):
        part = site_of(rule, [v[b : b + 1] for v in values])
        assert torch.equal(part.forecast(rule, at(7)), whole.forecast(rule, at(7))[b : b + 1])


@pytest.mark.parametrize("how", ADAPTATIONS)
def test_a_short_history_goes_by_the_rule_and_a_new_order_waits_for_its_trial(how):
    rule, values = Adaptive(NEWTON, how), [tensor(i) for i in range(4)]
    assert torch.equal(site_of(rule, values[:1]).forecast(rule, at(3)), values[0])
    two = site_of(rule, values[:2])
    assert "gains" not in two.learned and torch.equal(two.forecast(rule, at(3)), two.forecast(NEWTON, at(3)))
    three = site_of(rule, values[:3])
    gain = three.learned["gains"][:, :, None]
    assert torch.allclose(three.forecast(rule, at(3)), values[2] + gain * (values[2] - values[1]), atol=1e-5)


@pytest.mark.parametrize("how", ADAPTATIONS)
def test_at_the_newest_node_the_snapshot_comes_back_to_the_bit(how):
    rule, values = Adaptive(NEWTON, how), [tensor(i) for i in range(5)]
    assert torch.equal(site_of(rule, values).forecast(rule, at(4)), values[4])


def test_a_change_of_size_forgets_the_gains():
    rule = Adaptive(LINEAR)
    site = site_of(rule, [tensor(i) for i in range(3)])
    site.record(tensor(4, 3, 6, 4), at(4), rule)
    assert "gains" not in site.learned and torch.equal(site.forecast(rule, at(5)), tensor(4, 3, 6, 4))


def test_low_precision_learns_from_full_precision():
    start, slope = tensor(1).bfloat16() * 100, tensor(2).bfloat16()
    rule = Adaptive(LINEAR, ridge=0.0)
    values = [start, start + slope, start + 2 * slope]
    site, exact = site_of(rule, values), site_of(rule, [v.float() for v in values])
    assert site.learned["gains"].dtype == torch.float32 and torch.equal(
        site.learned["gains"], exact.learned["gains"]
    )
    assert site.forecast(rule, at(3)).dtype == torch.bfloat16


# --- gains from a probe ---------------------------------------------------------------------------


def probed(now, newest, older, values):
    """A site of two full steps, its branch's probe at both of them and now."""
    evidence, rule = Evidence(), ProbeGain()
    site = Site(evidence)
    for i, (value, probe) in enumerate(zip(values, (older, newest))):
        site.record(value, at(i), rule)
        evidence.past.push(probe, at(i), 2)
    evidence.now = now
    return site


@pytest.mark.parametrize(
    ("low", "high", "gain"),
    [(None, None, 2.25), (1.0, 1.5, 1.5), (2.5, 3.0, 2.5), (None, 2.0, 2.0), (2.5, None, 2.5)],
)
def test_the_probe_gain_is_the_published_ratio(low, high, gain):
    """mean|p - P2| / mean|P1 - P2| = (4.5 / 2) with and without its clip."""
    older, newest, now = (
        torch.zeros(1, 2, 2),
        torch.full((1, 2, 2), 2.0),
        torch.tensor([[[3.0, -3.0], [6.0, 6.0]]]),
    )
    site = probed(now, newest, older, [tensor(1, 1, 2, 2), tensor(2, 1, 2, 2)])
    r2, r1 = tensor(1, 1, 2, 2), tensor(2, 1, 2, 2)
    assert torch.allclose(
        site.forecast(ProbeGain(low=low, high=high), at(2)), r2 + gain * (r1 - r2), atol=1e-6
    )


def test_the_probe_gain_may_stop_between_the_snapshots_when_it_is_not_clipped():
    older, newest = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    site = probed(0.25 * newest, newest, older, [torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    assert torch.allclose(site.forecast(ProbeGain(low=None, high=None), at(2)), torch.full((1, 2, 2), 0.25))
    assert torch.equal(site.forecast(ProbeGain(), at(2)), torch.ones(1, 2, 2))


@pytest.mark.parametrize("now", [0.0, 1.0])
@pytest.mark.parametrize("rule", [ProbeGain(), ProbeGain(low=None, high=None)], ids=["clipped", "free"])
def test_a_probe_that_stood_still_counts_as_one(now, rule):
    still = torch.ones(2, 3, 2)
    site = probed(still * now, still, still, [tensor(1, 2, 3, 2), tensor(2, 2, 3, 2)])
    assert torch.equal(site.forecast(rule, at(2)), tensor(2, 2, 3, 2))


def test_a_probe_of_a_batch_equals_those_of_its_samples():
    parts = [tensor(i) for i in range(5)]
    whole = probed(*parts[:3], parts[3:]).forecast(ProbeGain(low=None), at(2))
    gains = set()
    for b in range(3):
        p = [x[b : b + 1] for x in parts]
        alone = probed(*p[:3], p[3:]).forecast(ProbeGain(low=None), at(2))
        assert torch.equal(alone, whole[b : b + 1])
        gains.add(round(float(((alone - p[3]) / (p[4] - p[3])).mean()), 4))
    assert len(gains) == 3


def test_without_two_probes_the_newest_snapshot_is_reused():
    site = probed(None, tensor(1), tensor(2), [tensor(3), tensor(4)])
    assert torch.equal(site.forecast(ProbeGain(), at(2)), tensor(4))
    assert torch.equal(site_of(ProbeGain(), [tensor(3), tensor(4)]).forecast(ProbeGain(), at(2)), tensor(4))
    site = probed(tensor(1), tensor(1), tensor(2), [tensor(3), tensor(4)])
    assert not torch.equal(site.forecast(ProbeGain(low=2.0, high=2.0), at(2)), tensor(4))
    site.record(tensor(5), at(3), ProbeGain())  # a full step that showed no probe
    assert torch.equal(site.forecast(ProbeGain(low=2.0, high=2.0), at(4)), tensor(5))


# --- the host -------------------------------------------------------------------------------------


WAITS = ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__float__", "__int__", "__index__")


@pytest.mark.parametrize(
    "data",
    [
        {"name": "newton", "adapt": "least_squares"},
        {"name": "newton", "adapt": "back_off"},
        {"name": "probe_gain"},
    ],
    ids=str,
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_nothing_waits_for_the_host(monkeypatch, data, device):
    """On the device meta there are no numbers to wait for at all."""
    rule, values = forecast(data), [tensor(i).to(device) for i in range(5)]
    for name in WAITS:

        def refuse(*_, name=name):
            raise AssertionError(f"waits for the host in {name}")

        monkeypatch.setattr(torch.Tensor, name, refuse)
    site = probed(*values[:3], values[3:])
    for i, value in enumerate(values, 2):
        site.record(value, at(i), rule)
    out = site.forecast(rule, at(8))
    monkeypatch.undo()
    assert out.shape == values[0].shape and str(out.device) == device
    assert data["name"] == "probe_gain" or site.learned["gains"].shape == (3, 2)


def test_an_unknown_adaptation_is_refused():
    with pytest.raises(ValueError, match="^adapt "):
        Adaptive(LINEAR, "guess")


# --- what the report tells of it ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "low", "high"), [("dicache", 1.0, 1.5), ("tap", -1.0, 1.0), ("adaptive", -1.5, 1.5)]
)
def test_the_report_tells_what_an_adaptive_forecast_went_by(preset, low, high):
    report = run(random_flux(), from_preset(preset, explicit("FFFAAFAF")), steps=8).report
    told = [r.indicator for r in report.records]
    assert all(x is not None and low <= x <= high for r, x in zip(report.records, told) if r.actual == "A"), (
        told
    )
    assert (
        len(set(told[3:5])) == 2 or preset == "adaptive"
    )  # a probe looks at every step, gains hold for an interval
    assert told[0] is None


def test_a_plain_forecast_has_no_indicator():
    report = run(random_flux(), from_preset("fora", explicit("FFAFAA")), steps=6).report
    assert [r.indicator for r in report.records] == [None] * 6
