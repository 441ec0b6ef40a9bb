"""The forecast of a learned plan: under the controller it is the learned run; other runs get its fallback."""

import json
from dataclasses import replace

import pytest
import torch

from bench.solver import velocity_of
from cache_core.config import CacheConfig
from cache_core.learned.fit import follow
from cache_core.learned.learning import learn
from cache_core.learned.reference import record
from cache_core.predictors.build import forecast
from cache_core.recipes import parts_of_plan
from demo.sampler import noise_for, sample, schedule_sigmas
from demo.weights import load_transformer

STEPS, SIZE = 8, 64
CAPTIONS = [
    "a large red heart center on a plain white background",
    "a small blue star left on a plain gray background",
]


@pytest.fixture(scope="module")
def model():
    return load_transformer()


@pytest.fixture(scope="module")
def plans(model):
    """Learned at guidance 1 and 2."""
    found, levels = {}, schedule_sigmas(STEPS)
    for guidance in (1.0, 2.0):
        velocity = velocity_of(model, CAPTIONS, guidance)
        aim = record(levels, noise_for((5, 6), SIZE), lambda x, s, v=velocity: v(x, s)[0])
        (found[guidance],) = learn([aim], lambda b, x, s, v=velocity: v(x, s), [4], guidance, under="euler")
    return found


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("split", [False, True])
def test_the_controller_runs_a_learned_plan(model, plans, guidance, split):
    plan = plans[guidance]
    settings = CacheConfig(method="learned", **parts_of_plan(plan.schedule()))
    done = sample(model, CAPTIONS, steps=STEPS, guidance=guidance, size=SIZE, settings=settings, split=split)
    alone = follow(
        noise_for(range(2), SIZE),
        velocity_of(model, CAPTIONS, guidance),
        plan.sigmas,
        plan.full,
        plan.weights,
        "euler",
    )
    torch.testing.assert_close(done.latents, alone, rtol=1e-4, atol=1e-4)
    assert "".join(r.actual for r in done.report.records) == plan.schedule().kinds


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_plan_reaches_its_aim_on_the_captions_it_was_learned_from(model, plans, guidance):
    how = {"guidance": guidance, "size": SIZE, "seeds": (5, 6)}
    plain, fewer = (sample(model, CAPTIONS, steps=n, **how).latents for n in (STEPS, 4))
    settings = CacheConfig(method="learned", **parts_of_plan(plans[guidance].schedule()))
    ours = sample(model, CAPTIONS, steps=STEPS, settings=settings, **how).latents
    assert (ours - plain).norm() < 0.8 * (fewer - plain).norm()


def test_other_noise_levels_get_the_fallback_and_a_sentence(model, plans):
    settings = CacheConfig(method="learned", **parts_of_plan(plans[1.0].schedule()))
    levels = [1 - (i / STEPS) ** 2 for i in range(STEPS + 1)]
    report = sample(model, CAPTIONS, guidance=1.0, size=SIZE, sigmas=levels, settings=settings).report
    assert any("other noise levels" in m for m in report.messages)


def test_json_keeps_the_forecast(plans):
    rule = forecast(json.loads(plans[2.0].schedule().forecast))
    assert forecast(json.loads(json.dumps(rule.to_dict()))) == rule and rule.needs == 4


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"steps": 0}, "steps"),
        ({"sigmas": [1.0, 0.0]}, "sigmas"),
        ({"guidance": -1}, "guidance"),
        ({"guidance": 1.0}, "without guidance"),
        ({"rows": {"0": [0.0, [1.0, 1.0], []]}}, "lean on"),
        ({"rows": {"0": [0.0, [1e9], []]}}, "weights between"),
        ({"rows": {"0": 3}}, "a list of a weight"),
        ({"rows": {"x": [0.0, [1.0], []]}}, "step numbers"),
        ({"more": 1}, "not a setting"),
    ],
)
def test_wrong_fields_are_named(plans, change, why):
    data = json.loads(plans[2.0].schedule().forecast)
    with pytest.raises(ValueError, match=why):
        forecast({**data, **change})


def test_a_run_whose_full_steps_are_others_gets_the_fallback(model, plans):
    plan = plans[1.0]
    settings = CacheConfig(method="learned", **parts_of_plan(plan.schedule()))
    rule = settings.predictor
    moved = replace(
        settings, predictor=replace(rule, rows=tuple((s + (s > 0), r) for s, r in rule.rows if s + 1 < STEPS))
    )
    line = replace(settings, predictor=rule.fallback, level="output")
    a, b = (
        sample(model, CAPTIONS[:1], steps=STEPS, guidance=1.0, size=SIZE, settings=s) for s in (moved, line)
    )
    assert (
        "A" in settings.schedule.kinds
        and a.latents.shape == b.latents.shape
        and torch.isfinite(a.latents).all()
    )
