"""What every run keeps, without ComfyUI: exact where nothing is skipped, the same however it is batched, gone
when it ends."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from cache_core.config import CacheConfig
from cache_core.controller import Controller
from cache_core.predictors.extrapolation import predictor
from cache_core.recipes import from_preset, preset_names
from cache_core.schedule.plan import explicit
from cache_core.selectors import token_selection as selectors
from cache_core.selectors.token_selection import SCORES, Selector
from demo.sampler import schedule_sigmas
from tests.tiny_flux import assert_untouched, evaluate, inputs, plain, ran, random_flux, run

METHODS = {
    "duca": from_preset("duca", explicit("FCACAF", 0.3)),
    "forecast": from_preset("balanced", explicit("FFAAFA")),
    "high": CacheConfig(
        schedule=explicit("FCCAFC", 0.3), selector=Selector("value_norm_high", spatial_bonus=0.4)
    ),
    "low": CacheConfig(schedule=explicit("FCCAFC", 0.3), selector=Selector("value_norm_low", staleness=1.0)),
    "live": CacheConfig(schedule=explicit("FCACFC", 0.3), attention="live"),
    "modules": CacheConfig(
        schedule=explicit("FFCCAC", 0.3),
        module_predictor=predictor("linear"),
        predictor=predictor("linear", gain=0.7),
    ),
}
HOW = [{"guidance": 1}, {"guidance": 2}, {"guidance": 2, "split": True}, {"sampler": "heun"}]


@pytest.fixture(scope="module")
def model():
    return random_flux()


def distance(a, b):
    """Relative to b."""
    return float((a - b).norm() / b.norm())


# --- exact where it must be -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [from_preset("off"), CacheConfig(schedule=explicit("FFFFFF")), from_preset("duca", explicit("F"))],
    ids=["off", "all full", "one letter"],
)
@pytest.mark.parametrize("how", HOW, ids=str)
def test_without_skips_the_result_is_bit_identical(model, settings, how):
    result = run(model, settings, **how)
    assert torch.equal(result.latents, run(model, **how).latents)
    assert set(ran(result)) == {"F"}
    assert result.report.totals()["skipped"] == 0 and result.report.why_nothing()


@pytest.mark.parametrize("forecast", ["reuse", "linear"])
@pytest.mark.parametrize("split", [False, True])
def test_aggressive_after_full_at_the_same_sigma_is_exact(model, forecast, split):
    sigmas = [1.0, 1.0, 0.7, 0.7, 0.7, 0.3, 0.0]  # equal neighbours leave x as it was
    result = run(
        model,
        CacheConfig(schedule=explicit("FAFAAF"), predictor=predictor(forecast)),
        sigmas=sigmas,
        split=split,
    )
    assert ran(result) == "FAFAAF"
    assert torch.equal(result.latents, run(model, sigmas=sigmas, split=split).latents)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("attention", ["frozen", "live"])
def test_conservative_after_full_at_the_same_sigma_changes_nothing(model, ratio, attention):
    sigmas = [1.0, 1.0, 0.6, 0.6, 0.6, 0.0]
    result = run(model, CacheConfig(schedule=explicit("FCFCC", ratio), attention=attention), sigmas=sigmas)
    assert ran(result) == "FCFCC"
    assert torch.allclose(result.latents, run(model, sigmas=sigmas).latents, atol=1e-5, rtol=0)


@pytest.mark.parametrize("how", HOW, ids=str)
def test_conservative_with_every_token_and_live_attention_is_exact(model, how):
    result = run(model, CacheConfig(schedule=explicit("FCCCCC", 1.0), attention="live"), **how)
    assert set(ran(result)) == {"F", "C"}
    assert (result.latents - run(model, **how).latents).abs().max() <= 1e-6


def test_conservative_with_every_token_and_frozen_attention_differs(model):
    result = run(model, CacheConfig(schedule=explicit("FCCCCC", 1.0)))
    assert ran(result) == "FCCCCC"
    assert distance(result.latents, run(model).latents) > 1e-3


def test_aggressive_steps_keep_the_last_hidden_state_and_take_the_new_modulation(model, unchecked):
    seen = []
    handle = model.final_layer.register_forward_pre_hook(
        lambda m, args: seen.append([a.clone() for a in args])
    )
    try:
        run(model, CacheConfig(schedule=explicit("FAAA")), steps=4, guidance=1)
    finally:
        handle.remove()
    hidden, modulation = zip(*seen)
    assert len(seen) == 4 and all(torch.equal(h, hidden[0]) for h in hidden)
    assert not any(torch.equal(m, modulation[0]) for m in modulation[1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_finite_and_exact_where_it_must_be(dtype):
    model = random_flux().to(dtype)
    data = tuple(t.to(dtype) for t in inputs(model))
    sigmas = [1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    cache = Controller(CacheConfig(schedule=explicit("FAFCAF", 0.5), predictor=predictor("linear")), sigmas)
    outs = [evaluate(cache, model, s, data=data) for s in sigmas[:-1]]
    assert [kind for kind, _ in outs] == list("FAFCAF")
    assert torch.equal(outs[0][1], outs[1][1])
    assert all(o.dtype == dtype and o.isfinite().all() for _, o in outs)


# --- the same picture however it is batched -------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_guidance_in_one_call_equals_two_calls_with_two_evaluations_per_step(model, name):
    one = run(model, METHODS[name], guidance=3, sampler="heun")
    two = run(model, METHODS[name], guidance=3, sampler="heun", split=True)
    assert ran(one) == ran(two) and set(ran(one)) != {"F"}
    assert two.calls == 2 * one.calls
    assert torch.allclose(one.latents, two.latents, atol=1e-5, rtol=0)


def test_the_seed_of_the_token_choice_matters_and_repeats(model):
    a, b, c = (run(model, CacheConfig(schedule=explicit("FCCCCC", 0.3), seed=s)).latents for s in (0, 1, 0))
    assert torch.equal(a, c) and not torch.equal(a, b)


@pytest.mark.parametrize("score", SCORES)
def test_every_selector_reaches_the_blocks(model, score):
    base = run(model, CacheConfig(schedule=explicit("FCCCCC", 0.0))).latents
    some = run(model, CacheConfig(schedule=explicit("FCCCCC", 0.4), selector=Selector(score)))
    assert ran(some) == "FCCCCC" and not torch.equal(some.latents, base)


def test_text_ratio_rules_the_text_stream_alone(model):
    """Fresh text rows reach fresh image rows through live attention; replayed attention does not see them."""
    for attention in ("frozen", "live"):
        none = run(
            model, CacheConfig(schedule=explicit("FCCCCC", 0.0), attention=attention, text_ratio=0.0)
        ).latents
        text = run(
            model, CacheConfig(schedule=explicit("FCCCCC", 0.0), attention=attention, text_ratio=1.0)
        ).latents
        assert torch.equal(none, text)
        half = CacheConfig(schedule=explicit("FCCCCC", 0.5), attention=attention)
        image, both = (run(model, replace(half, text_ratio=r)).latents for r in (0.0, 1.0))
        assert not torch.equal(none, image)
        assert torch.equal(image, both) == (attention == "frozen")


def test_inputs_are_not_written_to(model):
    data = inputs(model, batch=2)
    before = [t.clone() for t in data]
    cache = Controller(
        CacheConfig(schedule=explicit("FCAC", 0.5), attention="live"), [1.0, 0.8, 0.5, 0.2, 0.0]
    )
    kinds = [evaluate(cache, model, sigma, ["a", "b"], data)[0] for sigma in (1.0, 0.8, 0.5, 0.2)]
    assert kinds == list("FCAC")
    assert all(torch.equal(now, then) for now, then in zip(data, before))


# --- nothing survives -----------------------------------------------------------------------------


class Stop(Exception):
    pass


def stop_at(place, call):
    """Makes a module raise on its `call`-th run; returns the handle that undoes it."""
    count = [0]

    def hook(*_):
        count[0] += 1
        if count[0] == call:
            raise Stop

    return place.register_forward_pre_hook(hook)


def cached_tensors(cache):
    for branch in cache._store.values():
        for site in branch.sites.values():
            yield from site.snapshots
            if site.correction is not None:
                yield from site.correction.tensors
        yield from branch.kept.values()


def test_nothing_survives_a_run(model):
    cache = Controller(METHODS["live"], schedule_sigmas(6))
    for sigma in (1.0, 0.8, 0.6):
        evaluate(cache, model, sigma)
    held = [weakref.ref(t) for t in cached_tensors(cache)]
    assert len(held) > 10
    report = cache.finish()
    gc.collect()
    assert [r for r in held if r() is not None] == []
    assert not cache._store and not cache._models
    assert_untouched(model)
    assert report.totals()["peak_bytes"] > 0


def test_what_choosing_has_made_goes_with_the_run(model):
    cache = Controller(METHODS["duca"], schedule_sigmas(6))
    for sigma in (1.0, 0.8, 0.6, 0.4):
        evaluate(cache, model, sigma)
    assert selectors._strata.cache_info().currsize
    cache.finish()
    assert not selectors._strata.cache_info().currsize


@pytest.mark.parametrize("kind", "FCA")
def test_a_model_that_raises_in_the_middle_leaves_nothing(model, kind):
    cache = Controller(CacheConfig(schedule=explicit("F" + kind, 0.5)), [1.0, 0.5, 0.0])
    evaluate(cache, model, 1.0)
    handle = stop_at(model.final_layer if kind == "A" else model.single_blocks[1].linear2, 1)
    try:
        with pytest.raises(Stop):
            evaluate(cache, model, 0.5)
    finally:
        handle.remove()
    assert_untouched(model)
    report = cache.finish()
    assert not cache._store and len(report.records) == 2


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_failing_run_leaves_nothing_and_later_runs_are_as_before(model, call):
    plainly, cached = run(model).latents, run(model, METHODS["duca"]).latents
    handle = stop_at(model.double_blocks[1].img_mlp[0], call)
    try:
        with pytest.raises(Stop):
            run(model, METHODS["duca"])
    finally:
        handle.remove()
    assert_untouched(model)
    assert torch.equal(run(model).latents, plainly)
    assert torch.equal(run(model, METHODS["duca"]).latents, cached)


def test_an_error_in_begin_leaves_a_controller_that_can_finish(model):
    cache = Controller(METHODS["duca"], schedule_sigmas(6))
    evaluate(cache, model, 1.0)
    with pytest.raises((TypeError, ValueError)):
        cache.begin_evaluation("not a number")
    assert_untouched(model)
    assert len(cache.finish().records) == 1
    assert not cache._store


def test_a_forward_that_another_pack_has_set_is_called_and_kept(model):
    block, calls = model.single_blocks[0], []
    original = block.forward

    def theirs(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    ours = run(model, METHODS["duca"]).latents
    block.forward = theirs
    try:
        again = run(model, METHODS["duca"]).latents
        assert block.__dict__["forward"] is theirs
    finally:
        del block.forward
    assert calls and torch.equal(ours, again)
    assert_untouched(model)


# --- reports --------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("how", [HOW[0], HOW[2], HOW[3]], ids=str)
def test_reports_count_what_the_model_did(model, preset, how):
    calls = {"model": 0, "blocks": 0}

    def count(name):
        return lambda *_: calls.__setitem__(name, calls[name] + 1)

    always = from_preset(preset).level == "stack"  # its first blocks run on every step
    places = {
        "model": model,
        "blocks": model.single_blocks[-1].linear1 if always else model.double_blocks[0].img_attn.qkv,
    }
    handles = [place.register_forward_pre_hook(count(name)) for name, place in places.items()]
    try:
        result = run(model, from_preset(preset), steps=9, **how)
    finally:
        for handle in handles:
            handle.remove()
    report, kinds, stages = result.report, ran(result), 2 if "sampler" in how else 1
    totals = report.totals()
    assert totals["calls"] == calls["model"] == result.calls == len(kinds) * (2 if how.get("split") else 1)
    assert totals["full_calls"] == calls["blocks"]  # a replayed attention runs no projection
    assert (
        totals["evaluations"] == len(kinds) == totals["full"] + totals["conservative"] + totals["aggressive"]
    )
    assert kinds == "".join(report.schedule["kinds"][i // stages] for i in range(len(kinds)))
    assert totals["skipped"] == kinds.count("A") and totals["changed"] == 0
    if stages == 1:
        assert [r.sigma for r in report.records] == schedule_sigmas(9)[:-1]
    assert report.method == preset and report.family and report.steps == 9
    assert report.text() and report.from_json(report.to_json()).to_dict() == report.to_dict()


def test_times_in_the_report_come_from_the_clock_it_was_given(model):
    ticks = iter(range(100))
    cache = Controller(
        from_preset("fora", explicit("FAA")), [1.0, 0.6, 0.3, 0.0], seconds=lambda: next(ticks) * 0.5
    )
    for sigma in (1.0, 0.6, 0.3):
        evaluate(cache, model, sigma)
    report = cache.finish()
    assert [r.milliseconds for r in report.records] == [500.0] * 3
    assert report.wall_seconds >= 1.5


def test_a_schedule_of_another_length_is_scaled_and_says_so(model):
    result = run(model, from_preset("fora", explicit("FAAFAAFAA")), steps=6)
    assert ran(result) == explicit("FAAFAAFAA").scaled(6).kinds
    assert any("9 steps" in m and "6" in m for m in result.report.messages)


def test_the_report_says_how_far_a_forecast_was_off(model, unchecked):
    """Measured where a full step follows: the relative distance of what would have been put back from what
    came out."""
    sigmas, data, hidden = schedule_sigmas(4), inputs(model), []
    cache = Controller(CacheConfig(schedule=explicit("FAAF")), sigmas)
    handle = model.single_blocks[-1].register_forward_hook(lambda m, a, out: hidden.append(out.clone()))
    try:
        for sigma in sigmas[:-1]:
            evaluate(cache, model, sigma, data=data)
        plain(model, sigmas[3], data)
    finally:
        handle.remove()
    errors = [r.forecast_error for r in cache.finish().records]
    assert errors[:3] == [None] * 3
    assert torch.equal(hidden[1], hidden[0]) and torch.equal(hidden[3], hidden[4])
    assert errors[3] == pytest.approx(distance(hidden[0], hidden[3]), rel=1e-4)
