"""The guard: content that changes place between steps ends the caching of a run."""

import pytest
import torch

from cache_core.cache.feature_cache import Branch
from cache_core.config import CacheConfig
from cache_core.controller import Controller
from cache_core.indicators.guard import Guard, likeness, probe
from cache_core.schedule.plan import explicit
from demo.sampler import schedule_sigmas
from tests.tiny_flux import inputs, plain, random_flux


@pytest.fixture
def model():
    return random_flux()


@pytest.mark.parametrize(("value", "found"), [(0.9, None), (0.1, 3), (-0.5, 3), (float("nan"), None)])
def test_inputs_that_have_nothing_in_common_are_found_once(value, found):
    guard = Guard()
    guard.watch(3, torch.tensor(value))
    assert guard.tripped() == found and guard.tripped() is None


def test_a_probe_is_small_and_tells_moved_noise_from_a_step():
    g = torch.Generator().manual_seed(0)
    noise, data = torch.randn(2, 16, 64, 64, generator=g), torch.randn(2, 16, 64, 64, generator=g)
    now = probe(noise)
    assert now.shape[0] == 2 and now.shape[1] <= 4096
    assert likeness(now, probe(0.75 * noise + 0.25 * data)) > 0.9
    assert likeness(now, probe(noise.roll(3, -1))) < 0.1
    one_moved = torch.cat([noise[:1], noise[1:].roll(3, -1)])
    assert likeness(now, probe(one_moved)) < 0.1


def test_inputs_of_another_size_are_not_compared():
    """A probe of either has as many values."""
    guard, branch = Guard(), Branch()
    guard.compare(0, [branch], torch.randn(1, 16, 64, 64, generator=torch.Generator().manual_seed(0)))
    guard.compare(1, [branch], torch.randn(1, 16, 64, 128, generator=torch.Generator().manual_seed(1)))
    assert guard.tripped() is None
    guard.compare(2, [branch], torch.randn(1, 16, 64, 128, generator=torch.Generator().manual_seed(2)))
    assert guard.tripped() == 2


def sampled(model, moved, **more):
    """A run of ten steps whose latent is moved by `moved` places more at each of them."""
    cache = Controller(CacheConfig(schedule=explicit("FFFAFAFAFF")), schedule_sigmas(10), **more)
    data = inputs(model)
    for step, sigma in enumerate(schedule_sigmas(10)[:-1]):
        x = data[0].roll(moved * step, -1)
        cache.begin_evaluation(sigma)
        cache.guarded(lambda sigma=sigma, x=x: plain(model, sigma, (x, *data[1:])), model, ["c"], latent=x)
    return cache.finish()


def test_a_run_whose_tiles_move_goes_on_in_full_and_says_so(model):
    report = sampled(model, 3)
    assert "".join(r.actual for r in report.records) == "F" * 10
    assert "something else than at the step before" in report.messages[0]
    assert {r.reason for r in report.records if r.planned == "A"} == {"guard"}


def test_other_runs_are_left_alone(model):
    for report in (sampled(model, 0), sampled(model, 3, fresh_noise=True)):
        assert "".join(r.actual for r in report.records) == "FFFAFAFAFF"
        assert not any("something else" in m for m in report.messages)


@pytest.mark.parametrize(
    ("sizes", "kinds"),
    [([1.0] * 6, "FAAFAA"), ([1, 0.9, 0.1, 0.1, 0.1, 0.1], "FAFFAA"), ([1, None, None, 1, 1, 0], "FFAFAF")],
)
def test_a_control_whose_strength_changes_refreshes_its_branch(model, sizes, kinds):
    cache = Controller(CacheConfig(schedule=explicit("FAAFAA")), schedule_sigmas(6))
    data = inputs(model)
    for size, sigma in zip(sizes, schedule_sigmas(6)):
        cache.begin_evaluation(sigma)
        cache.guarded(lambda sigma=sigma: plain(model, sigma, data), model, ["c"], control=size)
    report = cache.finish()
    assert "".join(r.actual for r in report.records) == kinds
    assert any("control network" in m for m in report.messages) == (kinds != "FAAFAA")


def test_a_branch_that_is_left_out_on_full_steps_is_refreshed_before_it_is_used(model):
    """Evaluated on odd steps only, where the plan skips: its features would grow old."""
    cache = Controller(CacheConfig(schedule=explicit("FA" * 6)), schedule_sigmas(12))
    data, ran = inputs(model), []
    for step, sigma in enumerate(schedule_sigmas(12)[:-1]):
        cache.begin_evaluation(sigma)
        for name in ("u", "c") if step % 2 else ("c",):
            with cache.call(model, [name]) as kind:
                plain(model, sigma, data)
            ran += [kind] if name == "u" else []
    assert set(ran) == {"F"} and "older than the plan allows" in cache.finish().messages[0]


def test_a_model_whose_blocks_run_twice_in_a_call_is_sampled_plainly(model):
    data, cache = inputs(model), Controller(CacheConfig(schedule=explicit("FFAAFA")), schedule_sigmas(6))
    for sigma in schedule_sigmas(6)[:-1]:
        cache.begin_evaluation(sigma)

        def twice(sigma=sigma):
            return plain(model, sigma, inputs(model, seed=1)) + plain(model, sigma, data)

        assert torch.equal(cache.guarded(twice, model, ["c"]), twice())
    report = cache.finish()
    assert "".join(r.actual for r in report.records) == "F" * 6 and "run several times" in report.messages[0]


def test_calls_that_another_node_answers_are_not_counted(model):
    data, cache = inputs(model), Controller(CacheConfig(schedule=explicit("FFAAFA")), schedule_sigmas(6))
    for step, sigma in enumerate(schedule_sigmas(6)[:-1]):
        cache.begin_evaluation(sigma)
        run = (lambda: None) if step % 2 else (lambda sigma=sigma: plain(model, sigma, data))
        cache.guarded(run, model, ["c"])
    totals = cache.finish().totals()
    assert (totals["calls"], totals["evaluations"], totals["without_calls"]) == (3, 6, 3)
    assert totals["skipped"] == 1 and totals["full_calls"] == 2
