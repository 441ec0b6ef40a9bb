"""What every method keeps, whatever its parts are: each recipe, each level with the forecasts that are tested
there, and each way to refresh tokens, on the embedded model's layout.

A new recipe is tested here without another line. A new forecast is one row of `FORECASTS` in
tests/tiny_flux.py."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch

from cache_core.base.names import LEVELS as LEVEL_NAMES
from cache_core.config import CacheConfig
from cache_core.predictors.extrapolation import predictor
from cache_core.recipes import from_preset, preset_names
from cache_core.schedule.plan import explicit
from cache_core.selectors.token_selection import Selector
from tests.tiny_flux import LEVELS, PAIRS, RED, STAR, assert_untouched, cached, ran, random_flux, run

STEPS, KINDS = 18, "FFFFACAFCA"
CAPTIONS, SEEDS = (RED, STAR), (3, 1)
TOKENS = {
    "high norms": {"selector": Selector("value_norm_high", spatial_bonus=0.4)},
    "low norms": {"selector": Selector("value_norm_low", staleness=1.0)},
    "live attention": {"attention": "live"},
    "modules forecast": {"module_predictor": predictor("linear"), "predictor": predictor("linear", gain=0.7)},
}
METHODS = {
    **{name: from_preset(name) for name in preset_names()},
    **{f"{level}, {name}": cached(level, name, KINDS) for level, name in PAIRS},
    **{name: CacheConfig(schedule=explicit(KINDS, 0.3), **parts) for name, parts in TOKENS.items()},
}
each = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def model():
    gc.freeze()  # what lives by now is not looked at again
    yield random_flux(double=2, single=2)
    gc.unfreeze()


@pytest.fixture(scope="module")
def plain(model):
    """`plain(steps=4, ...)`: the latents of the same pictures sampled plainly; made once."""
    made = {}

    def get(**how):
        key = tuple(sorted(how.items()))
        if key not in made:
            made[key] = run(model, None, CAPTIONS, seeds=SEEDS, **{"guidance": 2, **how}).latents
        return made[key]

    return get


@pytest.fixture(scope="module")
def sampled(model):
    """`sampled(name)`: two pictures under a method, both branches of the guidance in one call; made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = under(model, name)
        return made[name]

    return get


def under(model, name, captions=CAPTIONS, seeds=SEEDS, settings=None, **how):
    """A run under a method."""
    settings = settings or METHODS[name]
    steps = len(KINDS) if settings.schedule is not None and settings.schedule.kinds == KINDS else STEPS
    return run(model, settings, captions, seeds=seeds, **{"guidance": 2, "steps": steps, **how})


def alike(a, b):
    return torch.allclose(a, b, atol=1e-5, rtol=0)


def living_tensors():
    gc.collect()
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())


def test_every_level_is_among_the_methods():
    assert {settings["level"] for settings in LEVELS.values()} == set(LEVEL_NAMES)
    assert {level for level, _ in PAIRS} == set(LEVELS)


@each
@pytest.mark.parametrize("how", [{"guidance": 1}, {"split": True}, {"sampler": "heun"}], ids=str)
def test_with_nothing_to_skip_the_result_is_that_of_plain_sampling(model, plain, name, how):
    settings = replace(METHODS[name], generator=None, schedule=explicit("FFFF"), mask=None, speedup=None)
    result = under(model, name, settings=settings, steps=4, **how)
    assert set(ran(result)) == {"F"} and torch.equal(result.latents, plain(steps=4, **how))


@each
def test_a_method_runs_as_planned_and_skipping_shows(sampled, plain, name):
    result = sampled(name)
    kinds = METHODS[name].schedule_for(len(ran(result))).kinds
    assert ran(result) == kinds
    assert result.latents.isfinite().all()
    assert torch.equal(result.latents, plain(steps=len(kinds))) == (set(kinds) == {"F"})


@each
def test_a_run_repeats_exactly_and_leaves_nothing_behind(model, sampled, name):
    """Neither shims on the model nor tensors, and the global random numbers as they were."""
    first = sampled(name).latents
    torch.manual_seed(2)
    state, before = torch.get_rng_state(), living_tensors()
    again = under(model, name).latents
    assert torch.equal(again, first)
    assert torch.equal(torch.get_rng_state(), state)
    del again
    assert living_tensors() == before
    assert_untouched(model)


@each
def test_branches_in_one_call_equal_two_calls(model, sampled, name):
    one, two = sampled(name), under(model, name, split=True)
    assert ran(one) == ran(two) and two.calls == 2 * one.calls
    assert alike(one.latents, two.latents)


@each
def test_a_batch_equals_its_pictures(model, sampled, name):
    batch = sampled(name)
    for i in range(len(CAPTIONS)):
        single = under(model, name, CAPTIONS[i : i + 1], SEEDS[i : i + 1])
        assert ran(single) == ran(batch)
        assert alike(batch.latents[i : i + 1], single.latents)


@each
def test_the_memory_estimate_is_what_is_kept_at_most(sampled, name):
    report = sampled(name).report
    assert (report.peak_bytes > 0) == (set(ran(sampled(name))) != {"F"})
    assert report.peak_bytes <= report.estimated_bytes <= 1.1 * report.peak_bytes
