"""What is remembered: snapshots of full steps, corrections of conservative ones, and how a batch is put
together from its branches."""

import math

import pytest
import torch

from cache_core.base.coordinates import Node
from cache_core.base.errors import CacheMismatch
from cache_core.cache.feature_cache import Batch, Branch, Site
from cache_core.cache.rows import put_rows_, take_rows
from cache_core.predictors.extrapolation import predictor

REUSE, LINEAR = predictor("reuse"), predictor("linear")


def node(index, sigma=None):
    return Node(float(index), 1 - index / 10 if sigma is None else sigma)


def tensor(seed, *shape):
    return torch.randn(*(shape or (2, 6, 4)), generator=torch.Generator().manual_seed(seed))


def rows(*indices):
    return torch.tensor(indices if isinstance(indices[0], tuple) else [indices])


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("chosen", [rows(0, 2, 5), rows((0, 2, 5), (1, 2, 3))], ids=["shared", "per sample"])
def test_rows_are_taken_and_put_back_sample_by_sample(dim, chosen):
    x = tensor(0, 2, 6, 6, 3)
    taken = take_rows(x, chosen, dim)
    fresh = tensor(1, *taken.shape)
    expected = x.clone()
    for b in range(2):
        for j, r in enumerate(chosen[b % len(chosen)].tolist()):
            own = x[b].select(dim - 1, r)
            assert torch.equal(taken[b].select(dim - 1, j), own)
            expected[b].select(dim - 1, r).copy_(fresh[b].select(dim - 1, j))
    assert torch.equal(put_rows_(x, chosen, fresh, dim), expected)
    assert torch.equal(x, expected)


def test_no_rows_are_an_empty_tensor():
    none = torch.zeros(1, 0, dtype=torch.long)
    x = tensor(0)
    assert take_rows(x, none).shape == (2, 0, 4)
    assert torch.equal(put_rows_(x.clone(), none, torch.zeros(2, 0, 4)), x)


# --- one site -------------------------------------------------------------------------------------


def test_reuse_gives_back_the_newest_snapshot_itself():
    site, a, b = Site(), tensor(1), tensor(2)
    site.record(a, node(0), REUSE)
    site.record(b, node(3), REUSE)
    assert site.nodes == [node(3)] and site.snapshots[0] is b and len(site.snapshots) == 1
    assert site.value(REUSE, node(4)) is b
    assert site.bytes == b.numel() * 4


@pytest.mark.parametrize("coordinate", ["sigma", "index"])
def test_linear_forecast_draws_the_line_through_two_snapshots(coordinate):
    start, slope = tensor(1), tensor(2)
    site, forecast = Site(), predictor("linear", coordinate=coordinate)
    where = {"sigma": lambda n: n.sigma, "index": lambda n: n.index}[coordinate]
    for n in (node(0, 1.0), node(2, 0.7), node(3, 0.45)):
        site.record(start + where(n) * slope, n, forecast)
    assert [n.index for n in site.nodes] == [3.0, 2.0]
    target = node(5, 0.2)
    assert torch.allclose(site.forecast(forecast, target), start + where(target) * slope, atol=1e-5)
    # Between the nodes and at a node as well.
    for target in (node(2.5, 0.5), node(3, 0.45)):
        assert torch.allclose(site.forecast(forecast, target), start + where(target) * slope, atol=1e-5)


def test_a_single_snapshot_is_reused_by_every_predictor():
    site = Site()
    site.record(tensor(1), node(0), LINEAR)
    assert torch.equal(site.forecast(LINEAR, node(4)), tensor(1))


def test_forecast_at_the_newest_node_is_that_snapshot_to_the_bit():
    site = Site()
    for i in (0, 2):
        site.record(tensor(i) * 1e3, node(i), LINEAR)
    assert torch.equal(site.forecast(LINEAR, node(2)), tensor(2) * 1e3)


@pytest.mark.parametrize("forecast", [REUSE, LINEAR], ids=["reuse", "linear"])
def test_an_owned_value_shares_nothing_with_the_snapshots(forecast):
    site = Site()
    for i in (0, 2):
        site.record(tensor(i), node(i), forecast)
    expected = site.value(forecast, node(3)).clone()
    out = torch.empty(2, 6, 4)
    assert torch.equal(site.value(forecast, node(3), out=out), expected)
    out.zero_()
    assert torch.equal(site.value(forecast, node(3)), expected)


def test_the_mixed_age_rule():
    """Corrections are kept relative to the forecast, add up over conservative steps, drift with it, and end
    at the next full step."""
    site, s0, s1 = Site(), tensor(1), tensor(2)
    site.record(s0, node(0), LINEAR)
    site.record(s1, node(2), LINEAR)

    def line(n):
        return s1 + (n.sigma - 0.8) / (1.0 - 0.8) * (s0 - s1)

    first, second = rows(0, 3), rows(3, 4)
    a, b = tensor(3, 2, 2, 4), tensor(4, 2, 2, 4)
    site.correct(a, LINEAR, node(3), first)
    expected = line(node(3))
    put_rows_(expected, first, a)
    assert torch.allclose(site.value(LINEAR, node(3)), expected, atol=1e-6)
    assert [n.index for n in site.nodes] == [2.0, 0.0]
    assert torch.equal(site.snapshots[0], s1) and torch.equal(site.snapshots[1], s0)

    site.correct(b, LINEAR, node(5), second)
    expected = line(node(5))
    expected[:, 0] += a[:, 0] - line(node(3))[:, 0]  # the older row keeps its difference
    put_rows_(expected, second, b)
    assert torch.allclose(site.value(LINEAR, node(5)), expected, atol=1e-6)

    site.record(tensor(5), node(6), LINEAR)
    assert site.correction is None
    assert torch.equal(site.value(REUSE, node(7)), tensor(5))
    assert [n.index for n in site.nodes] == [6.0, 2.0]


def test_reuse_with_corrections_is_an_in_place_scatter():
    """DuCa writes fresh rows into the cached tensor; forecast plus correction must give the same."""
    site, cache = Site(), tensor(1).clone()
    site.record(tensor(1), node(0), REUSE)
    for step, chosen in enumerate((rows(0, 1, 4), rows((1, 2, 3), (0, 4, 5)), rows(5)), 1):
        fresh = tensor(10 + step, 2, chosen.shape[1], 4)
        site.correct(fresh, REUSE, node(step), chosen)
        put_rows_(cache, chosen, fresh)
        assert torch.allclose(site.value(REUSE, node(step)), cache, atol=1e-6)
        assert torch.allclose(site.value(REUSE, node(step + 0.5)), cache, atol=1e-6)
    assert torch.equal(site.snapshots[0], tensor(1))


def test_a_correction_without_rows_replaces_the_earlier_one():
    site = Site()
    site.record(tensor(1), node(0), REUSE)
    site.correct(tensor(2, 2, 1, 4), REUSE, node(1), rows(2))
    site.correct(tensor(3), REUSE, node(2))
    assert torch.allclose(site.value(REUSE, node(3)), tensor(3), atol=1e-6)
    assert site.bytes == 2 * tensor(1).numel() * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_keep_the_type_and_round_once(dtype):
    site, a, b = Site(), tensor(1).to(dtype), tensor(2).to(dtype)
    site.record(a, node(0, 1.0), LINEAR)
    site.record(b, node(1, 0.9), LINEAR)
    value = site.forecast(LINEAR, node(2, 0.8))
    assert value.dtype == dtype
    exact = 2 * b.double() - a.double()
    # One rounding: half a unit in the last place of the value itself, not of the larger terms.
    ulp = torch.finfo(dtype).eps * 2 ** torch.floor(torch.log2(exact.abs().clamp_min(1e-3)))
    assert bool(((value.double() - exact).abs() <= 0.51 * ulp + 1e-6).all())


def test_values_far_apart_stay_finite():
    site = Site()
    site.record(tensor(1), node(0, math.inf), LINEAR)
    site.record(tensor(2), node(1, 0.9), LINEAR)
    assert torch.equal(site.forecast(LINEAR, node(2, 0.8)), tensor(2))


# --- branches and batches -------------------------------------------------------------------------


def test_a_batch_is_split_between_its_branches_and_joined_in_any_order():
    u, c = Branch(), Branch()
    first = tensor(1, 4, 6, 4)  # two samples per branch
    Batch([u, c], node(0)).record("x", first, LINEAR)
    second = tensor(2, 4, 6, 4)
    Batch([c, u], node(2)).record("x", second, LINEAR)
    flipped = torch.cat((second[2:], second[:2]))
    for branches, index in (([u, c], [0, 1]), ([c, u], [1, 0]), ([c], [1]), ([u], [0])):
        expected = torch.cat(
            [torch.lerp(flipped[2 * i : 2 * i + 2], first[2 * i : 2 * i + 2], -0.5) for i in index]
        )
        for owned in (False, True):
            assert torch.equal(Batch(branches, node(3)).value("x", LINEAR, owned), expected)


@pytest.mark.parametrize(
    "chosen", [rows(1, 4), rows((1, 4), (0, 2), (3, 5), (2, 3))], ids=["shared", "per sample"]
)
def test_a_batch_corrects_each_branch_with_its_own_rows(chosen):
    branches, x = [Branch(), Branch()], tensor(1, 4, 6, 4)
    batch = Batch(branches, node(0))
    batch.record("x", x, REUSE)
    fresh = tensor(2, 4, 2, 4)
    batch.correct("x", fresh, REUSE, chosen)
    expected = put_rows_(x.clone(), chosen, fresh)
    assert torch.allclose(batch.value("x", REUSE), expected, atol=1e-6)
    assert torch.allclose(Batch(branches[1:], node(1)).value("x", REUSE), expected[2:], atol=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_an_owned_batch_value_may_be_written_to(count):
    branches, x = [Branch() for _ in range(count)], tensor(1, 2, 6, 4)
    batch = Batch(branches, node(0))
    batch.record("x", x.clone(), REUSE)
    batch.value("x", REUSE, owned=True).zero_()
    assert torch.equal(batch.value("x", REUSE), x)


def test_kept_tensors_need_every_branch():
    u, c = Branch(), Branch()
    Batch([u], node(0)).keep("k", tensor(1))
    assert Batch([u, c], node(0)).kept("k") is None
    Batch([c], node(0)).keep("k", tensor(2))
    assert torch.equal(Batch([c, u], node(0)).kept("k"), torch.cat((tensor(2), tensor(1))))
    assert Batch([u], node(0)).kept("other") is None
    assert u.bytes == tensor(1).numel() * 4


def test_a_refusal_reaches_every_branch_of_the_batch():
    u, c, other = Branch(), Branch(), Branch()
    Batch([u, c], node(0)).refuse("an attention mask is in use")
    assert u.refusal == c.refusal == "an attention mask is in use" and other.refusal is None


def test_a_site_without_a_snapshot_is_a_mismatch():
    """As when another node let a block run that it had skipped on the last full step."""
    batch = Batch([Branch()], Node(1.0, 0.5))
    with pytest.raises(CacheMismatch, match="did not run"):
        batch.value("mlp", predictor("reuse"))
    with pytest.raises(CacheMismatch, match="did not run"):
        batch.correct("mlp", torch.zeros(1, 2, 3), predictor("reuse"))
