"""Rules by channel, by band and by token: what tells the parts apart, and that each part goes by its own
rule."""

import itertools
import math

import pytest
import torch

from cache_core.base.coordinates import Node
from cache_core.cache.feature_cache import Batch, Branch, Evidence, Site
from cache_core.predictors.build import forecast
from cache_core.predictors.extrapolation import predictor
from cache_core.predictors.grouped import ByBand, ByChannel, ByToken, cosines, descriptors, k_means, low_band

REUSE, LINEAR, MEAN = predictor("reuse"), predictor("linear"), predictor("chebyshev", ridge=1e6, blend=1.0)
PER, ROWS = 8, 32


def tensor(seed, *shape):
    return torch.randn(*(shape or (2, 15, 4)), generator=torch.Generator().manual_seed(seed))


def at(index):
    return Node(float(index), 1 - index / 20)


def site_of(rule, values, evidence=None):
    site = Site(evidence)
    for i, value in enumerate(values):
        site.record(value, at(i), rule)
    return site


def planted(steps, seed):
    """Features [steps,n,3 * PER]: channels that drift, that swing to and fro, and that jump at random."""
    g, t = torch.Generator().manual_seed(seed), torch.arange(float(steps))[:, None, None]

    def rand(*shape):
        return torch.randn(*shape, generator=g)

    smooth = rand(1, ROWS, PER) + 0.3 * t * rand(1, ROWS, PER)
    swinging = rand(1, ROWS, PER) + (-1.0) ** t * (0.5 + rand(1, ROWS, PER).abs())
    return torch.cat((smooth, swinging, rand(steps, ROWS, PER)), -1)


def shuffled(steps, seed):
    """Planted features and the group of each channel, in random order."""
    order = torch.randperm(3 * PER, generator=torch.Generator().manual_seed(seed + 100))
    return planted(steps, seed)[..., order], order // PER


# --- by channel -----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [4, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_channels_that_move_alike_are_found(steps, seed):
    x, truth = shuffled(steps, seed)
    for scale in (1, 50):
        labels = k_means(descriptors(x * scale), 3)
        assert any(torch.equal(labels, torch.tensor(p)[truth]) for p in itertools.permutations(range(3)))


def test_descriptors_are_standard_and_need_four_steps():
    found = descriptors(planted(5, 0))
    assert found.shape == (3 * PER, 6)
    assert torch.allclose(found.mean(0), torch.zeros(6), atol=1e-5) and torch.allclose(
        found.std(0), torch.ones(6), atol=1e-5
    )
    assert bool(descriptors(torch.zeros(4, 2, 3)).isfinite().all())
    with pytest.raises(ValueError, match="^sequence "):
        descriptors(planted(3, 0))


def test_k_means_handles_few_and_equal_points():
    points = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    labels = k_means(points, 2)
    assert labels[0] == labels[1] != labels[2] == labels[3]
    assert k_means(torch.ones(4, 2), 3).unique().numel() == 1
    assert sorted(k_means(points, 9).tolist()) == [0, 1, 2, 3]
    state = torch.get_rng_state()
    assert torch.equal(k_means(points, 2), labels) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", range(3))
def test_each_cluster_goes_by_the_rule_that_predicts_it_best(seed):
    x, truth = shuffled(6, seed)
    rule = ByChannel((REUSE, LINEAR, MEAN), clusters=3)
    site = site_of(rule, [step[None] for step in x[:4]])
    (member,) = site.learned["member"]
    guesses = [site_of(rule, [step[None] for step in x[:3]]).forecast(p, at(3)) for p in rule.pool]
    for group in range(3):
        errors = [float((g - x[3])[..., truth == group].square().mean()) for g in guesses]
        assert set(member[truth == group].tolist()) == {errors.index(min(errors))}
    assert set(member[truth == 0].tolist()) == {1} and set(member[truth == 2].tolist()) == {2}
    for i, p in enumerate(rule.pool):  # and that is what the forecast of a channel is
        assert torch.allclose(
            site.forecast(rule, at(5))[..., member == i], site.forecast(p, at(5))[..., member == i], atol=1e-5
        )


def test_the_choice_is_made_once_and_the_first_rule_holds_until_then():
    rule, x = ByChannel((LINEAR, REUSE), clusters=3, steps=5), planted(8, 1)[:, None]
    site = site_of(rule, x[:4])
    assert "member" not in site.learned and torch.equal(
        site.forecast(rule, at(4)), site.forecast(LINEAR, at(4))
    )
    site.record(x[4], at(4), rule)
    chosen = site.learned["member"]
    site.record(x[6], at(5), rule)
    assert site.learned["member"] is chosen and len(set(chosen.flatten().tolist())) == 2
    site.record(torch.zeros(1, 3, 3 * PER), at(6), rule)
    assert "member" not in site.learned


def test_channels_of_a_picture_are_its_planes():
    """The output of a model is [B,C,H,W]."""
    x, _ = shuffled(5, 2)
    rule = ByChannel((REUSE, LINEAR, MEAN), clusters=3)
    tokens = site_of(rule, x[:4, None])
    planes = site_of(rule, [step.T.reshape(1, 3 * PER, 4, ROWS // 4) for step in x[:4]])
    assert (
        torch.equal(planes.learned["member"], tokens.learned["member"])
        and len(set(tokens.learned["member"][0].tolist())) > 1
    )
    expected = tokens.forecast(rule, at(4)).transpose(1, 2).reshape(1, 3 * PER, 4, ROWS // 4)
    assert torch.allclose(planes.forecast(rule, at(4)), expected, atol=1e-6)
    flat = site_of(rule, [step[0, None] for step in x[:4]])
    assert flat.forecast(rule, at(4)).shape == (1, 3 * PER)


# --- by band --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(3, 5), None, (4, 4)], ids=str)
@pytest.mark.parametrize("cut", [0.2, 0.5, 0.8])
def test_the_low_band_is_an_orthogonal_projection(grid, cut):
    x = tensor(1)
    low = low_band(x, cut, grid)
    assert torch.allclose(low_band(low, cut, grid), low, atol=1e-5)
    assert torch.allclose(low_band(x - low, cut, grid), torch.zeros_like(x), atol=1e-5)
    assert float((low * (x - low)).sum()) == pytest.approx(0, abs=1e-4)
    assert 0.01 < float(low.norm() / x.norm()) < 0.99
    assert torch.allclose(
        low_band(x + 2 * tensor(2), cut, grid), low + 2 * low_band(tensor(2), cut, grid), atol=1e-5
    )


@pytest.mark.parametrize("grid", [(3, 5), (1, 15), (15, 1), None], ids=str)
def test_without_and_with_all_frequencies(grid):
    assert not low_band(tensor(1), 0.0, grid).any()
    assert torch.allclose(low_band(tensor(1), 1.0, grid), tensor(1), atol=1e-5)


def test_a_wave_over_the_grid_is_low_when_both_its_frequencies_are():
    h, w, cut = 6, 8, 0.5
    for u, v in itertools.product(range(h), range(w)):
        wave = torch.tensor(
            [
                [
                    math.cos(math.pi * u * (i + 0.5) / h) * math.cos(math.pi * v * (j + 0.5) / w)
                    for j in range(w)
                ]
                for i in range(h)
            ]
        ).reshape(1, h * w, 1)
        expected = wave if u < 3 and v < 4 else torch.zeros_like(wave)
        assert torch.allclose(low_band(wave, cut, (h, w)), expected, atol=1e-5), (u, v)


def test_a_grid_that_does_not_fit_is_taken_as_a_sequence():
    assert torch.equal(low_band(tensor(1), 0.4, (4, 4)), low_band(tensor(1), 0.4))
    assert torch.equal(low_band(tensor(1), 0.4, (1, 15)), low_band(tensor(1), 0.4))
    assert not torch.allclose(low_band(tensor(1), 0.4, (3, 5)), low_band(tensor(1), 0.4), atol=0.1)
    rows = cosines(7, 7, tensor(1))
    assert torch.allclose(rows @ rows.T, torch.eye(7), atol=1e-6)


def seen(text=0, grid=(3, 5)):
    evidence = Evidence()
    evidence.text_tokens, evidence.grid = text, grid
    return evidence


@pytest.mark.parametrize("rule", [REUSE, LINEAR, predictor("newton")], ids=lambda p: p.name)
@pytest.mark.parametrize("shape", [(2, 15, 4), (2, 3, 4, 4), (2, 5)], ids=str)
def test_equal_rules_in_both_bands_are_that_rule(rule, shape):
    values = [tensor(i, *shape) for i in range(3)]
    bands = site_of(ByBand((rule, rule)), values, seen())
    assert torch.allclose(
        bands.forecast(ByBand((rule, rule)), at(4)), site_of(rule, values).forecast(rule, at(4)), atol=1e-5
    )


@pytest.mark.parametrize("text", [0, 4])
def test_each_band_of_the_image_goes_by_its_rule_and_text_by_the_high_one(text):
    rule, values = ByBand((REUSE, LINEAR), cut=0.4), [tensor(i, 2, text + 15, 4) for i in range(2)]
    before = [v.clone() for v in values]
    site = site_of(rule, values, seen(text))
    low, high = values[1], site.forecast(LINEAR, at(3))
    expected = high.clone()
    expected[:, text:] = (
        low_band(low[:, text:], 0.4, (3, 5)) + high[:, text:] - low_band(high[:, text:], 0.4, (3, 5))
    )
    assert torch.allclose(site.forecast(rule, at(3)), expected, atol=1e-5)
    out = torch.empty_like(low)
    assert site.forecast(rule, at(3), out) is out and torch.allclose(out, expected, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(values, before))


def test_a_picture_is_split_over_its_rows_and_columns():
    rule, values = ByBand((REUSE, LINEAR), cut=0.4), [tensor(i, 2, 4, 3, 5) for i in range(2)]
    tokens = site_of(rule, [v.flatten(2).mT for v in values], seen()).forecast(rule, at(3))
    assert torch.allclose(
        site_of(rule, values, seen(text=2)).forecast(rule, at(3)), tokens.mT.reshape(2, 4, 3, 5), atol=1e-6
    )


def test_a_stream_of_its_own_is_all_image_or_all_text():
    """The double blocks' image stream holds no text tokens that would have to be left out."""
    rule, branch = ByBand((REUSE, LINEAR), cut=0.4), Branch()
    branch.evidence = seen(text=4)
    alone = site_of(rule, [tensor(i) for i in range(2)], seen()).forecast(rule, at(3))
    plain = site_of(LINEAR, [tensor(i) for i in range(2)]).forecast(LINEAR, at(3))
    for name, expected in (
        ("img", alone),
        ("img_attn", alone),
        ("img_mlp", alone),
        ("txt", plain),
        ("txt_mlp", plain),
    ):
        name = ("double", 0, name)
        for i in range(2):
            Batch([branch], at(i)).record(name, tensor(i), rule)
        assert torch.allclose(Batch([branch], at(3)).value(name, rule), expected, atol=1e-5), name
    assert not torch.allclose(alone, plain, atol=1e-2)


# --- by token -------------------------------------------------------------------------------------


def test_every_token_takes_the_rule_that_forecasts_its_probe():
    pool = tuple(forecast({"name": n, "coordinate": "index"}) for n in ("reuse", "linear", "newton"))
    rule, evidence = ByToken(pool), Evidence()
    probes = [tensor(i, 2, 9, 6) for i in range(3)]
    kind = torch.tensor([[0, 1, 2] * 3, [2, 2, 1, 1, 0, 0, 1, 0, 2]])
    site = Site(evidence)
    for i in range(3):
        site.record(tensor(10 + i, 2, 9, 5), at(i), rule)
        evidence.past.push(probes[i], at(i), rule.needs)
    evidence.now = (
        3
        * torch.stack([evidence.past.forecast(p, at(4)) for p in pool]).gather(
            0, kind[None, :, :, None].expand(1, 2, 9, 6)
        )[0]
    )
    found = site.forecast(rule, at(4))
    for k, p in enumerate(pool):
        assert torch.allclose(found[kind == k], site.forecast(p, at(4))[kind == k], atol=1e-4)
        assert not torch.allclose(found[kind != k], site.forecast(p, at(4))[kind != k], atol=1e-1)


def test_without_a_probe_that_fits_every_token_goes_by_the_first_rule():
    rule, values = ByToken((LINEAR, REUSE)), [tensor(i) for i in range(3)]
    plain = site_of(LINEAR, values).forecast(LINEAR, at(4))
    probes = [tensor(20 + i) for i in range(3)]
    for nodes, now, past in (
        ((0, 1, 2), None, probes),
        ((0, 2, 3), probes[0], probes),
        ((2,), probes[0], probes),
        ((1, 2), tensor(3, 2, 7, 4), [tensor(i, 2, 7, 4) for i in range(3)]),
    ):
        evidence = Evidence()
        for i in nodes:
            evidence.past.push(past[i % 3], at(i), rule.needs)
        evidence.now = now
        assert torch.equal(site_of(rule, values, evidence).forecast(rule, at(4)), plain)
    assert torch.equal(site_of(rule, values).forecast(rule, at(4)), plain)


# --- all ------------------------------------------------------------------------------------------


NEWTON = predictor("newton")


@pytest.mark.parametrize(
    "rule",
    [ByChannel((REUSE, LINEAR, NEWTON), 3), ByBand((REUSE, NEWTON)), ByToken((REUSE, LINEAR, NEWTON))],
    ids=lambda r: r.name,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_batch_equals_its_samples_and_at_the_newest_node_nothing_changes(rule, dtype):
    jumps = torch.tensor([0.1, 3.0] * 4)  # channels that drift and channels that jump
    values, probes = (
        [(i * tensor(seed, 3, 15, 8) + jumps * tensor(seed + i, 3, 15, 8)).to(dtype) for i in range(6)]
        for seed in (0, 50)
    )

    def result(part, target):
        evidence = seen()
        for i in range(5):
            evidence.past.push(probes[i][part], at(i), rule.needs)
        evidence.now = probes[5][part]
        site = site_of(rule, [v[part] for v in values[:5]], evidence)
        out = torch.empty_like(values[0][part])
        assert (
            torch.equal(site.forecast(rule, target), site.forecast(rule, target, out)) and out.dtype == dtype
        )
        return out

    whole = result(slice(None), at(6))
    assert not torch.equal(whole, values[4])
    for b in range(3):
        assert torch.equal(result(slice(b, b + 1), at(6)), whole[b : b + 1])
    assert torch.equal(result(slice(None), at(4)), values[4])


@pytest.mark.parametrize("kind", [ByChannel, ByBand, ByToken])
def test_a_run_tells_every_rule_of_the_group_where_it_begins_and_ends(kind):
    assert {p.span for p in kind((REUSE, MEAN)).over_run(Node(0.0, 1.0), Node(9.0, 0.0)).pool} == {(0.0, 1.0)}
