"""Clusters of channels: recorded alike however runs are batched, solved as if each were a model of its own,
put back channel by channel."""

import gc
import json
import weakref
from dataclasses import replace

import pytest
import torch

from cache_core.base.coordinates import Node
from cache_core.cache.feature_cache import Site
from cache_core.calibration.planner import magnitude_ratios, plan, pooled, segment_costs, solved
from cache_core.calibration.profile import Clusters, Profile
from cache_core.calibration.recorder import Recorder
from cache_core.config import CacheConfig
from cache_core.predictors.build import forecast
from cache_core.predictors.extrapolation import predictor
from cache_core.predictors.grouped import descriptors, k_means
from cache_core.predictors.solved_weights import ClusterWeights, SolvedWeights
from cache_core.recipes import parts_of_plan
from cache_core.schedule.plan import explicit
from demo.sampler import schedule_sigmas
from tests.tiny_flux import BLUE, RED, STAR, ran, random_flux, run

STEPS, TOKENS, WIDTH = 8, 6, 10
SIGMAS = tuple(schedule_sigmas(STEPS))
LABELS = torch.tensor([0, 1, 1, 0, 2, 0, 1, 2, 0, 0], dtype=torch.uint8)


@pytest.fixture(scope="module")
def model():
    return random_flux()


@pytest.fixture(scope="module")
def features():
    """[samples, T, tokens, channels] of which the first cluster's lie on a line, the second's bend and the
    third's jump about."""
    g = torch.Generator().manual_seed(2)
    t = torch.linspace(0, 1, STEPS, dtype=torch.float64)[None, :, None, None]
    start, slope, bend = (
        torch.randn(3, 1, TOKENS, WIDTH, generator=g, dtype=torch.float64) for _ in range(3)
    )
    jump = torch.randn(3, STEPS, TOKENS, WIDTH, generator=g, dtype=torch.float64)
    moves = [t * slope, torch.sin(4 * t) * bend, 0.3 * jump]
    return start + sum(torch.where(LABELS == k, move, 0.0) for k, move in enumerate(moves))


@pytest.fixture(scope="module")
def profile(features):
    unit = features / features.square().sum((2, 3)).mean(1).sqrt()[:, None, None, None]

    def gram(x):
        return x.flatten(2) @ x.flatten(2).mT

    return Profile(
        gram(unit),
        SIGMAS,
        clusters=Clusters(LABELS, torch.stack([gram(unit[..., LABELS == k]) for k in range(3)], 1)),
    )


# --- recording ------------------------------------------------------------------------------------


def recorded(model, captions, seeds, clusters=0, labels=None, **how):
    recorder = Recorder(clusters=clusters, labels=labels)
    run(model, CacheConfig(observer=recorder), captions=captions, seeds=seeds, **how)
    return recorder.profile(schedule_sigmas(6))


@pytest.mark.parametrize("how", [{"guidance": 1}, {"guidance": 2}, {"guidance": 2, "split": True}], ids=str)
def test_matrices_are_recorded_by_cluster_and_sum_to_the_whole(model, how, monkeypatch):
    seen = []
    handle = model.single_blocks[-1].register_forward_hook(lambda m, args, out: seen.append(out.clone()))
    monkeypatch.setattr("cache_core.calibration.recorder.AT_ONCE", 6 * 128 * 7)  # several parts
    found = recorded(model, (RED, BLUE), (0, 1), clusters=3, **how)
    handle.remove()
    paths = (
        torch.stack(seen)
        if not how.get("split")
        else torch.cat([torch.stack(seen[i::2]) for i in range(2)], 1)
    )
    x = paths.transpose(0, 1).double()  # [samples, T, n, d]
    labels = k_means(descriptors(x[0].float()), 3)
    assert torch.equal(found.clusters.labels.long(), labels) and len(set(labels.tolist())) == 3
    energy = x.square().sum((2, 3)).mean(1)[:, None, None]
    for k in range(3):
        part = x[..., labels == k].flatten(2)
        assert torch.allclose(found.clusters.grams[:, k], part @ part.mT / energy, rtol=1e-9)
    assert torch.allclose(found.clusters.grams.sum(1), found.grams, rtol=1e-9)
    sizes = x.norm(dim=-1)
    ratio = sizes[:, 1:] / sizes[:, :-1]
    assert torch.allclose(found.tokens[:, :, 0], sizes.mean(-1)) and torch.allclose(
        found.tokens[:, :, 1], sizes.std(-1, correction=0)
    )
    assert torch.allclose(found.tokens[:, 1:, 2], ratio.mean(-1)) and torch.allclose(
        found.tokens[:, 1:, 3], ratio.std(-1, correction=0)
    )
    assert (found.tokens[:, 0, 2] == 1).all() and magnitude_ratios(found) == tuple(
        found.tokens[:, :, 2].mean(0).tolist()
    )


def test_later_runs_take_the_clusters_of_the_first(model):
    first = recorded(model, (RED,), (0,), clusters=2, guidance=1)
    second = recorded(model, (STAR,), (5,), labels=first.clusters.labels, guidance=1)
    assert torch.equal(second.clusters.labels, first.clusters.labels)
    both = first.merged(second)
    assert both.clusters.grams.shape == (2, 2, 6, 6) and both.tokens.shape == (2, 6, 4)
    together = recorded(model, (RED, STAR), (0, 5), labels=first.clusters.labels, guidance=1)
    assert torch.allclose(together.clusters.grams, both.clusters.grams, rtol=1e-4)
    other = replace(second, clusters=Clusters(1 - first.clusters.labels, second.clusters.grams))
    with pytest.raises(ValueError, match="other clusters of channels cannot be merged"):
        first.merged(other)
    with pytest.raises(ValueError, match="128 channels, the clusters are of 3"):
        recorded(model, (RED,), (0,), labels=torch.zeros(3, dtype=torch.uint8))


def test_too_few_steps_tell_no_channels_apart(model):
    with pytest.raises(ValueError, match="told apart by at least 4 steps"):
        recorded(model, (RED,), (0,), clusters=2, steps=3)
    with pytest.raises(ValueError, match="clusters must be a whole number from 0 to 16"):
        Recorder(clusters=17)


def test_files_keep_clusters_and_tokens_and_marks(profile, tmp_path):
    whole = replace(profile, tokens=torch.rand(3, STEPS, 4, dtype=torch.float64), prompts=("a", "b"))
    whole.save(tmp_path / "p.safetensors")
    read = Profile.load(tmp_path / "p.safetensors")
    assert torch.equal(read.clusters.labels, LABELS) and torch.allclose(
        read.clusters.grams, profile.clusters.grams, rtol=1e-6
    )
    assert torch.allclose(read.tokens, whole.tokens) and read.prompts == ("a", "b")
    assert read.merged(replace(profile, prompts=("c",))).prompts == ("a", "b", "c")
    half = read.at(schedule_sigmas(4))
    assert half.clusters.grams.shape == (3, 3, 4, 4) and half.tokens is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"clusters": Clusters(LABELS.long(), torch.zeros(3, 3, STEPS, STEPS))}, "clusters must be labels"),
        ({"clusters": Clusters(LABELS, torch.zeros(3, 2, STEPS, STEPS))}, "clusters must be labels"),
        ({"clusters": Clusters(LABELS, torch.zeros(3, 3, STEPS, 2))}, "clusters must be"),
        ({"tokens": torch.zeros(3, STEPS, 3)}, "tokens must be"),
        ({"tokens": torch.full((3, STEPS, 4), torch.nan)}, "tokens must be"),
        ({"prompts": ("x" * 101,)}, "prompts must be"),
        ({"prompts": (3,)}, "prompts must be"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_parts_that_are_none_are_refused(profile, change, why):
    with pytest.raises(ValueError, match=why):
        replace(profile, **change)


# --- solving --------------------------------------------------------------------------------------


def alone(profile, k):
    """A cluster as if it were all there is."""
    return Profile(profile.clusters.grams[:, k], SIGMAS)


def test_each_cluster_is_solved_as_if_it_were_alone(profile, features):
    full = (0, 2, 3, 6)
    made = solved(profile, full, clusters=True)
    rule = forecast(json.loads(made.schedule.forecast))
    assert isinstance(rule, ClusterWeights) and rule.labels == "0110201200" and made.table == {}
    for k, table in enumerate(rule.tables):
        assert table == SolvedWeights.of(STEPS, {**_rows(solved(alone(profile, k), full))}, SIGMAS)
    unit = features / features.square().sum((2, 3)).mean(1).sqrt()[:, None, None, None]
    weights = [{t: dict(row) for t, row in table.rows} for table in rule.tables]
    end = 0
    for t in range(STEPS):
        if t in full:
            assert made.expected[t] == 0
            continue
        miss = -unit[:, t].clone()
        for c, k in enumerate(LABELS.tolist()):
            miss[..., c] += sum(w * unit[:, f, :, c] for f, w in weights[k][t].items())
        assert made.expected[t] == pytest.approx(float(miss.flatten(1).norm(dim=1).mean()))
        end = end + miss / STEPS
    assert made.final == pytest.approx(float(end.flatten(1).norm(dim=1).mean()))
    assert (
        made.final < solved(profile, full).final
    )  # what each cluster may choose for itself cannot be worse where it was learned


def _rows(made):
    return {t: dict(row) for t, row in forecast(json.loads(made.schedule.forecast)).rows}


def test_costs_of_clusters_add_up_in_squares(profile):
    whole = segment_costs(profile, clusters=True)
    parts = torch.stack([segment_costs(alone(profile, k)) for k in range(3)])
    finite = torch.isfinite(whole)
    assert torch.equal(finite, torch.isfinite(parts[0])) and torch.allclose(
        whole[finite], parts.square().sum(0).sqrt()[finite]
    )
    assert len(plan(profile, 4, clusters=True).schedule.full_steps) == 4


def test_a_pool_gives_each_cluster_the_rule_that_serves_it(profile):
    pool = (
        predictor("reuse"),
        predictor("linear", coordinate="index"),
        predictor("newton", order=2, coordinate="index"),
    )
    rule = forecast(json.loads(pooled(profile, (0, 1, 2, 5), pool).schedule.forecast))
    weights = [dict(dict(table.rows)[4]) for table in rule.tables]
    assert weights[0] == pytest.approx({2: 3.0, 1: -2.0})  # the straight ones go straight on
    assert weights[2] == pytest.approx({2: 1.0})  # those that jump stay
    assert len(weights[1]) == 3


def test_clusters_must_have_been_recorded(profile):
    for call in (
        lambda p: solved(p, (0, 2), clusters=True),
        lambda p: plan(p, 3, clusters=True),
        lambda p: pooled(p, (0, 2), (predictor("reuse"),)),
        lambda p: segment_costs(p, clusters=True),
    ):
        with pytest.raises(ValueError, match="holds no clusters of channels; record it with them"):
            call(replace(profile, clusters=None))


# --- putting back ---------------------------------------------------------------------------------

TABLE = {
    "by": "cluster",
    "steps": 4,
    "labels": "0110",
    "tables": [{"2": {"1": 1.5, "0": -0.5}}, {"2": {"1": 1.0}}],
}


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 4, 3, 3)], ids=["tokens", "pictures"])
@pytest.mark.parametrize("owned", [False, True])
def test_channels_go_by_their_own_weights(shape, owned):
    rule, site = forecast(TABLE), Site()
    x = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    for i, s in enumerate(x):
        site.push(s, Node(i, 1 - i / 4), rule.needs)
    out = torch.empty(shape) if owned else None
    got = rule.forecast(site, Node(2, 0.5), out)
    axis = 1 if len(shape) == 4 else 2
    for c, k in enumerate((0, 1, 1, 0)):
        wanted = x[1] if k else 1.5 * x[1] - 0.5 * x[0]
        assert torch.allclose(got.select(axis, c), wanted.select(axis, c))
    assert out is None or got is out
    # A width that the labels are not of, and a step without weights, go by the fallback.
    line = rule.fallback.forecast(site, Node(3, 0.25))
    assert torch.equal(rule.forecast(site, Node(3, 0.25)), line) and not torch.equal(line, x[1])
    narrow = replace(rule, labels="011")
    assert torch.equal(narrow.forecast(site, Node(2, 0.5)), rule.fallback.forecast(site, Node(2, 0.5)))


def test_weights_are_not_kept_on_the_device_of_a_run():
    """Tensors of a device of no room at all are the only ones that are made there, and gone with the
    forecast."""
    rule, site = forecast(TABLE), Site()
    for i in range(2):
        site.push(torch.randn(1, 2, 4, device="meta"), Node(i, 1 - i / 4), rule.needs)
    made = weakref.ref(rule.forecast(site, Node(2, 0.5)))
    assert made() is None
    assert not [
        t
        for t in gc.get_objects()
        if type(t) is torch.Tensor and t.device.type == "meta" and t.shape == (2, 4)
    ]


def test_a_plan_by_cluster_samples_and_a_batch_equals_its_pictures(model):
    whole = recorded(model, (RED, BLUE), (0, 1), clusters=2, guidance=1)
    made = solved(whole, (0, 1, 3), clusters=True)
    settings = CacheConfig(method="plan", **parts_of_plan(made.schedule))
    both = run(model, settings, captions=(RED, BLUE))
    assert (
        ran(both) == "FFAFAA" and both.report.messages == [] and both.report.predictor == "table by channel"
    )
    for i, caption in enumerate((RED, BLUE)):
        assert torch.allclose(
            run(model, settings, captions=(caption,), seeds=[i]).latents, both.latents[i : i + 1], atol=1e-4
        )
    scaled = run(model, settings, steps=9)
    assert any(
        "solved for 6 steps, and this run has 9; using a linear forecast" in m for m in scaled.report.messages
    )


def test_one_cluster_is_the_plain_table(model):
    whole = recorded(model, (RED,), (0,), clusters=1, guidance=1)
    outs = [
        run(model, CacheConfig(**parts_of_plan(solved(whole, (0, 1, 3), clusters=c).schedule))).latents
        for c in (False, True)
    ]
    reused = run(model, CacheConfig(schedule=explicit("FFAFAA"))).latents
    assert torch.allclose(*outs, atol=1e-4) and not torch.allclose(outs[0], reused, atol=1e-3)


def test_it_reads_back_and_refuses_what_is_none():
    assert forecast(json.loads(json.dumps(forecast(TABLE).to_dict()))) == forecast(TABLE)
    for change, why in (
        ({"labels": "012"}, "digits below 2"),
        ({"labels": 3}, "labels must be a text"),
        ({"labels": ""}, "labels must be"),
        ({"tables": []}, "labels must be a text"),
        ({"tables": "x"}, "tables must be a list"),
        ({"tables": [3, 3]}, "table must be an object"),
        ({"steps": 0}, "steps of a table"),
        ({"more": 1}, "more is not"),
    ):
        with pytest.raises(ValueError, match=why):
            forecast({**TABLE, **change})


def test_noise_floor_is_of_the_cluster(profile):
    """A cluster of little energy is not taken for rounding of the others."""
    small = replace(
        profile,
        clusters=Clusters(LABELS, profile.clusters.grams * torch.tensor([1e-6, 1, 1])[None, :, None, None]),
    )
    for weights in (solved(p, (0, 2, 3, 6), clusters=True) for p in (profile, small)):
        first = forecast(json.loads(weights.schedule.forecast)).tables[0]
        assert dict(dict(first.rows)[3])[2] == pytest.approx(1.5, abs=0.01)
