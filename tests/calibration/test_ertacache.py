"""ERTACache from a profile: the published formulas, found again from inner products alone."""

import json
from dataclasses import replace

import pytest
import torch

from cache_core.base.coordinates import Node
from cache_core.cache.feature_cache import Evidence, Site
from cache_core.calibration.ertacache import (
    adjusted,
    erta_plan,
    rectifier,
    reuse_ratios,
    reuse_set,
    step_factors,
    threshold_for,
)
from cache_core.calibration.profile import Profile
from cache_core.calibration.recorder import Recorder
from cache_core.config import CacheConfig
from cache_core.predictors.build import forecast
from cache_core.predictors.residual import Residual
from cache_core.recipes import parts_of_plan
from cache_core.schedule.plan import CacheSchedule, explicit
from demo.sampler import sample, schedule_sigmas
from tests.tiny_flux import BLUE, RED, assert_untouched, ran, random_flux, run

STEPS, SAMPLES, VALUES = 9, 3, 40
SIGMAS = tuple(schedule_sigmas(STEPS))


@pytest.fixture(scope="module")
def path():
    """Inputs and outputs [samples, T, values] of made-up runs whose outputs bend, and their profile."""
    g = torch.Generator().manual_seed(3)
    start, slope, bend = (torch.randn(SAMPLES, 1, VALUES, generator=g, dtype=torch.float64) for _ in range(3))
    t = torch.linspace(0, 1, STEPS, dtype=torch.float64)[:, None]
    v = start + 0.2 * t * slope + 2 * t**3 * bend + 0.1
    x = torch.randn(SAMPLES, 1, VALUES, generator=g, dtype=torch.float64) - 0.1 * t * v
    return x, v


@pytest.fixture(scope="module")
def profile(path):
    x, v = path
    rows = torch.cat([x, v, torch.ones(SAMPLES, 1, VALUES, dtype=torch.float64)], 1)
    return Profile(
        torch.eye(STEPS, dtype=torch.float64).expand(SAMPLES, -1, -1), SIGMAS, path=rows @ rows.mT / VALUES
    )


def test_the_reuse_set_is_that_of_a_simulation(path, profile):
    x, v = path
    r, ratios = v - x, reuse_ratios(profile)
    found = set()
    for threshold in torch.linspace(0, 2, 41).tolist():
        full, kept = [0], r[:, 0]
        for i in range(1, STEPS):
            off = ((kept - r[:, i]).norm(dim=1) / r[:, i].norm(dim=1)).mean()
            if not off < threshold:
                full.append(i)
                kept = r[:, i]
        assert reuse_set(ratios, threshold) == tuple(full), threshold
        found.add(len(full))
    assert len(found) > 4
    assert reuse_set(ratios, 100.0, warmup=3) == (0, 1, 2)


def test_a_threshold_is_found_for_a_number_of_full_steps(profile):
    ratios, steps = reuse_ratios(profile), []
    tried = sorted({0.0, *ratios.triu(1).flatten().tolist(), 10.0})
    sets = {t: reuse_set(ratios, t) for t in tried}
    for budget in range(1, STEPS + 1):
        full = reuse_set(ratios, threshold_for(ratios, budget))
        assert len(full) == max(len(s) for s in sets.values() if len(s) <= budget)
        steps.append(len(full))
    assert steps == sorted(steps) and len(set(steps)) > 4
    with pytest.raises(ValueError, match="budget must lie between the 3 steps of warm-up and the 9 steps"):
        threshold_for(ratios, 2, warmup=3)


def test_step_factors_are_those_of_the_paper(path, profile):
    x, v = path
    full = (0, 1, 4)
    found = step_factors(profile, full)
    assert set(found) == {2, 3, 5, 6, 7, 8} and 0 < sum(found.values()) < 6
    for i, phi in found.items():
        j = max(f for f in full if f < i)
        reused = x[:, i] + v[:, j] - x[:, j]
        moved = v[:, i] - (v[:, i + 1] if i + 1 < STEPS else v[:, i - 1])
        wanted = (1 - ((reused - v[:, i]).norm(dim=1) / moved.norm(dim=1)).mean()).clamp(0, 1)
        assert phi == pytest.approx(float(wanted), abs=1e-9)


@pytest.mark.parametrize(
    "sigmas",
    [SIGMAS, (1.0, 0.95, 0.8, 0.6, 0.5, 0.4, 0.3, 0.1, 0.05, 0.0), (14.6, 9, 6, 4, 3, 2, 1, 0.5, 0.1, 0.02)],
    ids=["even", "uneven", "not to zero"],
)
def test_step_lengths_keep_their_sum(sigmas):
    factors = {1: 0.0, 2: 0.25, 5: 0.8}
    out = adjusted(sigmas, factors)
    assert (out[0], out[-1]) == (sigmas[0], sigmas[-1]) and len(out) == len(sigmas)
    lengths, before = ([a - b for a, b in zip(s, s[1:])] for s in (out, sigmas))
    assert sum(lengths) == pytest.approx(sum(before)) and lengths[1] == 0
    share = lengths[0] / before[0]
    assert share > 1
    assert [n / b for n, b in zip(lengths, before)] == pytest.approx(
        [share * factors.get(i, 1.0) for i in range(len(lengths))]
    )


def test_steps_without_any_length_are_refused_in_words():
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = 1 + 0.01 * torch.arange(6, dtype=torch.float64)[:, None].expand(
        1, 6, 8
    )  # moves far less than what is reused
    rows = torch.cat([x, v, torch.ones(1, 1, 8, dtype=torch.float64)], 1)
    known = Profile(
        torch.eye(6, dtype=torch.float64)[None], (1.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.0), path=rows @ rows.mT / 8
    )
    assert set(step_factors(known, (0,)).values()) == {0.0}
    with pytest.raises(ValueError, match="full steps have no length, as their noise levels are equal"):
        erta_plan(known, (0,))
    assert erta_plan(known, (0,), lengths=False).schedule.kinds == "FAAAAA"


def test_the_rectifier_is_a_regression_of_the_error_on_the_reused_output(path, profile):
    x, v = path
    full, found = (0, 1, 4), rectifier(profile, (0, 1, 4))
    for i, (j, slope, offset) in found.items():
        assert j == max(f for f in full if f < i)
        reused = (x[:, i] + v[:, j] - x[:, j]).flatten()
        error = reused - v[:, i].flatten()
        line = torch.linalg.lstsq(
            torch.stack([reused, torch.ones_like(reused)], 1), error[:, None]
        ).solution.flatten()
        assert (slope, offset) == pytest.approx(line.tolist(), abs=1e-9)
        # As published: K and B of the sigmoid, taken as 1/4 (K v + B) + 1/2.
        k = 4 * torch.cov(torch.stack([reused, error]))[0, 1] / reused.var()
        b = 4 * (error.mean() - 0.5) - k * reused.mean()
        assert torch.allclose(0.25 * (k * reused + b) + 0.5, slope * reused + offset)
        assert (error - slope * reused - offset).norm() < error.norm()


def test_a_plan_leaves_steps_of_no_length_out(profile):
    made = erta_plan(profile, (0, 1, 4))
    gone = [i for i, phi in made.lengths.items() if phi == 0]
    assert 0 < len(gone) < len(made.lengths)
    assert (
        made.schedule.steps == STEPS - len(gone) == len(made.sigmas) - 1 and made.schedule.counts()["F"] == 3
    )
    assert all(a > b for a, b in zip(made.sigmas, made.sigmas[1:])) and made.sigmas[-1] == 0
    rule = forecast(json.loads(made.schedule.forecast))
    assert rule.steps == made.schedule.steps and rule.sigmas == made.sigmas
    assert {step for step, _ in rule.rectifier} == {
        i for i, kind in enumerate(made.schedule.kinds) if kind == "A"
    }
    assert all(made.schedule.kinds[full] == "F" for _, (full, *_) in rule.rectifier)
    whole = erta_plan(profile, (0, 1, 4), lengths=False)
    assert (
        whole.sigmas == profile.sigmas
        and whole.schedule.kinds == "FFAAFAAAA"
        and whole.threshold == max(whole.expected)
    )
    assert CacheSchedule.from_json(whole.schedule.to_json()) == whole.schedule


def test_parts_can_be_left_out(profile):
    bare = erta_plan(profile, (0, 4), lengths=False, rectify=False)
    assert (
        parts_of_plan(bare.schedule)["predictor"] == Residual()
        and parts_of_plan(bare.schedule)["level"] == "output"
    )
    with pytest.raises(ValueError, match="full steps must begin with 0"):
        erta_plan(profile, (1, 4))
    with pytest.raises(ValueError, match="does not hold the model's inputs and outputs; record it anew"):
        erta_plan(replace(profile, path=None), (0, 4))


# --- sampling -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return random_flux()


def watched(model, **how):
    """A recorded run, and the inputs and outputs of all its calls."""
    seen = []
    handle = model.register_forward_hook(lambda m, args, out: seen.append((args[0].clone(), out.clone())))
    recorder = Recorder()
    run(model, CacheConfig(observer=recorder), captions=(RED, BLUE), **how)
    handle.remove()
    return recorder, seen


@pytest.mark.parametrize("how", [{"guidance": 1}, {"guidance": 2}, {"guidance": 2, "split": True}], ids=str)
def test_inputs_and_outputs_are_recorded(model, how):
    recorder, seen = watched(model, **how)
    assert_untouched(model)
    x, v = (torch.stack(s).double().flatten(2) for s in zip(*seen))  # [calls, b, values]
    if how.get("split"):
        x, v = (torch.cat([s[i::2] for i in range(2)], 1) for s in (x, v))
    rows = torch.cat([x, v, torch.ones_like(x[:1])]).transpose(0, 1)
    assert rows.shape[1] == 13
    assert torch.allclose(recorder.path.grams(), rows @ rows.mT / rows.shape[-1], rtol=1e-12)


def test_a_file_keeps_them(profile, tmp_path):
    profile.save(tmp_path / "p.safetensors")
    read = Profile.load(tmp_path / "p.safetensors")
    assert torch.allclose(read.path, profile.path, rtol=1e-6) and read.path.dtype == torch.float64
    assert (
        len(read.merged(profile).path) == 2 * SAMPLES
        and len(read.merged(replace(profile, path=None)).path) == SAMPLES
    )
    between = read.at([1.0, 0.75, 0.5, 0.25, 0.0]).path
    assert between.shape == (SAMPLES, 9, 9) and torch.allclose(
        between[:, -1, -1], torch.ones(SAMPLES, dtype=torch.float64)
    )
    with pytest.raises(ValueError, match="path must be"):
        replace(profile, path=profile.path[:, 1:, 1:])


def test_a_skipped_step_adds_the_change_of_the_latent_and_takes_off_the_expected_error(model):
    calls = []
    handle = model.register_forward_hook(lambda m, args, out: calls.append((args[0].clone(), out.clone())))
    rule = Residual(
        4, ((1, (0, 0.25, 0.5)), (3, (0, 9.0, 9.0)))
    )  # the last row is for another full step than the run's
    out = run(
        model, CacheConfig(schedule=explicit("FAFA"), level="output", predictor=rule), steps=4, guidance=1
    )
    handle.remove()
    assert ran(out) == "FAFA"
    (x0, v0), (x1, v1), (x2, v2), (x3, v3) = calls  # the hook sees what the shim gives
    reused = v0 + x1 - x0
    assert torch.allclose(v1, reused - (0.25 * reused + 0.5), atol=1e-5) and torch.allclose(
        v3, v2 + x3 - x2, atol=1e-5
    )


def test_an_error_that_is_a_line_is_taken_off_whole(model):
    """On the run that it was learned from, with an error regressed value by value, nothing is left where the
    error is that line."""
    site = Site(Evidence())
    x, v = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    site.push(v, Node(0, 1.0), 1)
    site.evidence.past.push(x, Node(0, 1.0), 1)
    site.evidence.now = 1.5 * x
    reused = v + 0.5 * x
    rule = Residual(3, ((1, (0, 0.2, -0.3)),))
    assert torch.allclose(rule.forecast(site, Node(1, 0.5)), 0.8 * reused + 0.3)
    assert torch.allclose(rule.forecast(site, Node(2, 0.2)), reused)
    site.evidence.now = torch.zeros(1, 4, 5, 5)  # of another size: the output is reused as it was
    assert torch.equal(rule.forecast(site, Node(1, 0.5)), v)


@pytest.mark.parametrize("how", [{"guidance": 1}, {"guidance": 2}, {"guidance": 2, "split": True}], ids=str)
def test_a_plan_samples_with_its_noise_levels_and_a_batch_equals_its_pictures(model, how):
    recorder, _ = watched(model, steps=8, guidance=1)
    profile = Profile(recorder.grams(), tuple(schedule_sigmas(8)), path=recorder.path.grams())
    made = erta_plan(profile, (0, 2, 5))
    settings = CacheConfig(method="erta", **parts_of_plan(made.schedule))
    both = run(
        model, settings, captions=(RED, BLUE), steps=made.schedule.steps, sigmas=list(made.sigmas), **how
    )
    assert ran(both) == made.schedule.kinds and both.report.messages == []
    for i, caption in enumerate((RED, BLUE)):
        one = run(
            model,
            settings,
            captions=(caption,),
            seeds=[i],
            steps=made.schedule.steps,
            sigmas=list(made.sigmas),
            **how,
        )
        assert torch.allclose(one.latents, both.latents[i : i + 1], atol=1e-5)


def test_at_other_noise_levels_the_rectifier_is_left_out_and_that_is_said(model):
    recorder, _ = watched(model, steps=6, guidance=1)
    made = erta_plan(
        Profile(recorder.grams(), tuple(schedule_sigmas(6)), path=recorder.path.grams()),
        (0, 3),
        lengths=False,
    )
    settings = CacheConfig(method="erta", **parts_of_plan(made.schedule))
    plain = CacheConfig(schedule=explicit(made.schedule.kinds), level="output", predictor=Residual())
    bent = [s**2 for s in schedule_sigmas(6)]
    out, reused = (run(model, s, steps=6, sigmas=bent) for s in (settings, plain))
    assert torch.equal(out.latents, reused.latents)
    assert any("solved for other noise levels; using a residual forecast" in m for m in out.report.messages)


def test_with_guidance_above_one_each_branch_has_its_own(model):
    sampled = sample(
        model,
        [RED],
        steps=4,
        seeds=[0],
        guidance=3.0,
        size=64,
        settings=CacheConfig(schedule=explicit("FFAA"), level="output", predictor=Residual()),
    )
    split = sample(
        model,
        [RED],
        steps=4,
        seeds=[0],
        guidance=3.0,
        size=64,
        split=True,
        settings=CacheConfig(schedule=explicit("FFAA"), level="output", predictor=Residual()),
    )
    assert torch.allclose(sampled.latents, split.latents, atol=1e-5)


# --- as data --------------------------------------------------------------------------------------


def test_a_residual_reads_back():
    rule = Residual(4, ((1, (0, 0.25, 0.5)),), (1.0, 0.7, 0.5, 0.2, 0.0))
    assert (
        forecast(json.loads(json.dumps(rule.to_dict()))) == rule
        and forecast({"name": "residual"}) == Residual()
    )


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"steps": -1}, "steps of a residual must be a whole number"),
        ({"steps": 3, "rectifier": {"3": [0, 0, 0]}}, "rectifier.3 must lean on"),
        ({"steps": 3, "rectifier": {"1": [1, 0, 0]}}, "rectifier.1 must lean on"),
        ({"steps": 3, "rectifier": {"1": [0, 0]}}, "a list of a full"),
        ({"steps": 3, "rectifier": {"1": [0, 1e9, 0]}}, "between -100 and 100"),
        ({"steps": 3, "rectifier": {"x": [0, 0, 0]}}, "step numbers"),
        ({"steps": 3, "rectifier": {"1": [True, 0, 0]}}, "a list of a full"),
        ({"steps": 3, "rectifier": {"1": [0, "a", 0]}}, "must hold numbers"),
        ({"steps": 2, "sigmas": [1, 0]}, "3 finite noise levels"),
        ({"sigmas": "x"}, "must be a list"),
        ({"rectifier": 3}, "an object of steps"),
        ({"order": 2}, "order is not a setting of a residual"),
    ],
    ids=lambda v: str(v)[:50],
)
def test_what_is_no_residual_is_refused_in_words(data, why):
    with pytest.raises(ValueError, match=why):
        forecast({"name": "residual", **data})


def test_it_is_of_the_models_output_only():
    with pytest.raises(ValueError, match="level must be output, not final"):
        CacheConfig(predictor=Residual())
    with pytest.raises(ValueError, match="module_predictor cannot be residual"):
        CacheConfig(module_predictor=Residual())
