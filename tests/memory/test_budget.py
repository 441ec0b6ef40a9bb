"""What caches hold, told before anything is kept; what gives way when it is too much; and what happens when
memory runs out."""

from functools import partial

import pytest
import torch

from cache_core.base.errors import is_out_of_memory
from cache_core.cache.feature_cache import Site
from cache_core.calibration.recorder import Recorder
from cache_core.config import CacheConfig
from cache_core.controller import Controller
from cache_core.memory.budget import Budget
from cache_core.memory.estimate import expected_shapes
from cache_core.models.families import blocks_of, find_family
from cache_core.recipes import from_preset
from cache_core.schedule.masks import Mask
from cache_core.schedule.plan import explicit
from cache_core.selectors.token_selection import Selector
from demo.sampler import schedule_sigmas
from tests.tiny_flux import LEVELS, PAIRS, RED, STAR, assert_untouched, cached, follow, ran, random_flux, run


@pytest.fixture(scope="module")
def model():
    return random_flux(double=2, single=3)


def both(result):
    return result.report.estimated_bytes, result.report.peak_bytes


# --- the estimate --------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "name"), PAIRS, ids=str)
def test_the_estimate_of_a_plan_without_conservative_steps(model, level, name):
    """tests/test_method_contract.py has the others."""
    estimate, peak = both(run(model, cached(level, name, "FFFAAF"), guidance=1))
    assert peak > 0 and estimate == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "sampled",
    [
        dict(guidance=2),
        dict(guidance=2, split=True),
        dict(guidance=1, sampler="heun"),
        dict(guidance=1, captions=(RED, STAR)),
    ],
    ids=["two", "apart", "heun", "batch"],
)
def test_the_estimate_counts_branches_evaluations_and_samples(model, level, sampled):
    estimate, peak = both(run(model, cached(level, "linear", "FFFCAC"), **sampled))
    one, _ = both(run(model, cached(level, "linear", "FFFCAC"), guidance=1))
    assert estimate == pytest.approx(peak, rel=0.1) and estimate == 2 * one


@pytest.mark.parametrize("score", ["random", "value_norm_high"])
@pytest.mark.parametrize("text_ratio", [None, 0])
@pytest.mark.parametrize("attention", ["frozen", "live"])
def test_the_estimate_of_conservative_steps(model, attention, score, text_ratio):
    settings = CacheConfig(
        schedule=explicit("FFCAFC", 0.3), attention=attention, selector=Selector(score), text_ratio=text_ratio
    )
    estimate, peak = both(run(model, settings))
    assert estimate == pytest.approx(peak, rel=0.1)


def test_the_estimate_of_masks(model):
    mask = Mask.of(6, {"*": [0, 1], "double.0": [2], "double.1.mlp": [3], "single.2": [2, 4]})
    estimate, peak = both(run(model, CacheConfig(mask=mask)))
    assert estimate == pytest.approx(peak, rel=0.1)


def test_the_estimate_stands_before_anything_is_kept(model):
    """At the first full call, whose blocks have not run yet."""
    cache, seen = Controller(cached("module", "linear", "FFAAFA"), schedule_sigmas(6)), []

    def block(module, inputs):
        seen.append((cache.memory.estimate, sum(b.bytes for b in cache._store.values())))

    handle = model.double_blocks[0].img_mlp.register_forward_pre_hook(block)
    try:
        follow(cache, model, schedule_sigmas(6)[:-1])
    finally:
        handle.remove()
    report = cache.finish()
    assert seen[0] == (report.estimated_bytes, 0) and report.estimated_bytes == pytest.approx(
        report.peak_bytes, rel=0.1
    )


@pytest.mark.parametrize("level", LEVELS)
def test_the_estimate_before_the_first_call(model, level):
    """From the sizes of latent and text alone; this model drops and adds nothing."""
    settings = cached(level, "linear", "FFAAFA")
    result = run(model, settings, guidance=1)
    cache = Controller(settings, schedule_sigmas(6))
    text = 12
    assert cache.expect(model, [(16, 8, 8)], text, torch.float32) == pytest.approx(
        result.report.peak_bytes, rel=0.1
    )
    assert cache.expect(model, [(16, 8, 8)], text, torch.bfloat16) == pytest.approx(
        result.report.peak_bytes / 2, rel=0.1
    )
    cache.finish()


def test_nothing_is_expected_where_nothing_is_skipped(model):
    cache = Controller(from_preset("off"), schedule_sigmas(6))
    assert cache.expect(model, [(16, 8, 8)], 12, torch.float32) == 0
    other = Controller(
        cached("final", "linear", "FFAAFA"), schedule_sigmas(6), refusal="another cache is on this model"
    )
    assert other.expect(model, [(16, 8, 8)], 12, torch.float32) == 0


def test_reference_latents_are_tokens_too(model):
    family = find_family(model)
    alone, beside = (
        expected_shapes(model, family, blocks_of(model, family), latents, 5, torch.float32)
        for latents in ([(16, 8, 8)], [(16, 8, 8), (16, 6, 8)])
    )
    assert alone.blocks["double"]["img"][0] == 16 and beside.blocks["double"]["img"][0] == 16 + 12


class Narrow(torch.nn.Module):
    """Of what it is given, as with a picture to begin with, its output is about a part."""

    def forward(self, x):
        return 2 * x[:, :4]


def test_of_a_wider_input_the_estimate_and_the_cache_have_the_latent_alone():
    cache, model = Controller(cached("output", "residual", "FFA"), schedule_sigmas(3)), Narrow()
    for sigma in (1.0, 0.7):
        cache.begin_evaluation(sigma)
        with cache.call(model, ["cond"]):
            model(torch.randn(1, 36, 8, 8))
    kept = [t for b in cache._store.values() for s in (*b.sites.values(), b.evidence.past) for t in s.kept]
    held = sum(t.untyped_storage().nbytes() for t in kept)
    report = cache.finish()
    latent = 4 * 64 * 4
    assert held == 2 * latent
    assert (
        report.peak_bytes == report.estimated_bytes == 3 * latent
    )  # the probe of the second step beside them


# --- the budget ----------------------------------------------------------------------------------


def limited(model, settings, limit, **kw):
    return run(
        model, settings, budget=Budget(limit=limit, branches=1 if kw.get("guidance") == 1 else 2), **kw
    )


@pytest.mark.parametrize(
    "sampled", [dict(guidance=1), dict(guidance=2), dict(guidance=2, split=True)], ids=["one", "two", "apart"]
)
@pytest.mark.parametrize(
    "settings",
    [
        cached("module", "newton", "FFFCAC"),
        cached("block", "newton", "FFFAAF"),
        cached("final", "token", "FFFACA"),
        cached("stack", "probe", "FFFAFA"),
    ],
    ids=["module", "block", "final", "stack"],
)
def test_too_large_caches_give_way_step_by_step_and_the_run_finishes(model, settings, sampled):
    whole = run(model, settings, **sampled)
    peak, plain, said = whole.report.peak_bytes, run(model, None, **sampled), set()
    for share in (0.9, 0.6, 0.3, 0.15, 0.05, 0.01, 0):
        result = limited(model, settings, peak * share, **sampled)
        report = result.report
        assert report.peak_bytes <= peak * share and report.estimated_bytes == pytest.approx(
            report.peak_bytes, rel=0.1
        )
        assert result.latents.isfinite().all() and ran(result)[0] == "F"
        (sentence,) = [m for m in report.messages if m.startswith("The caches would need about")]
        said.add(sentence.split(":")[1])
        assert_untouched(model)
        if share == 0:
            assert (
                torch.equal(result.latents, plain.latents)
                and set(ran(result)) == {"F"}
                and "nothing is cached" in sentence
            )
            assert report.records[-1].reason == "memory" or report.records[-1].planned == "F"
    assert len(said) > 2


def test_a_budget_that_suffices_changes_nothing(model):
    settings = cached("module", "linear", "FFCAFA")
    free = run(model, settings)
    tight = limited(model, settings, free.report.peak_bytes)
    assert torch.equal(free.latents, tight.latents) and not tight.report.messages


def test_a_lowered_run_is_the_run_that_one_would_have_asked_for(model):
    """Conservative steps become aggressive ones; then modules give way to the final hidden state."""
    asked = run(model, cached("final", "linear", "FFAAFA"), guidance=1)
    lowered = limited(model, cached("final", "linear", "FFCAFC"), asked.report.peak_bytes, guidance=1)
    assert torch.equal(asked.latents, lowered.latents) and ran(lowered) == "FFAAFA"
    assert [r.reason for r in lowered.report.records if r.planned != r.actual] == ["memory", "memory"]
    lowered = limited(model, cached("module", "linear", "FFAAFA"), asked.report.peak_bytes, guidance=1)
    assert (
        torch.equal(asked.latents, lowered.latents) and "the final hidden state" in lowered.report.messages[0]
    )


def test_masked_steps_that_do_not_fit_run_in_full(model):
    mask = Mask.of(6, {"*": [0, 1], "double.0": [2, 4], "single.1": [3, 5]})
    result = limited(model, CacheConfig(mask=mask), 3 * 28 * 128 * 4, guidance=1)
    assert torch.equal(result.latents, run(model, None, guidance=1).latents) and set(ran(result)) == {"F"}


# --- when memory runs out ------------------------------------------------------------------------


class Failing:
    """Raises out of memory at the n-th run of a module, as often as told."""

    def __init__(self, module, at, times=1, error=None):
        self.at, self.times, self.count = at, times, 0
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        self.handle = module.register_forward_pre_hook(self.hook)

    def hook(self, *_):
        self.count += 1
        if self.count >= self.at and self.times:
            self.times -= 1
            raise self.error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


@pytest.mark.parametrize("level", ["final", "block", "module"])
def test_when_the_model_runs_out_of_memory_caches_are_freed_and_the_call_repeated_once(model, level):
    settings, plain = cached(level, "linear", "FFFAFA"), run(model, None, guidance=1)
    with Failing(model.single_blocks[1], at=3):
        result = run(model, settings, guidance=1)
    report = result.report
    assert torch.equal(result.latents, plain.latents) and ran(result) == "FFFFFF" and result.calls == 6
    assert [m for m in report.messages if m.startswith("Memory ran out")] and [
        r.reason for r in report.records
    ][3:] == ["memory", "planned", "memory"]
    assert [r.calls for r in report.records] == [r.full_calls for r in report.records] == [1] * 6
    assert report.records[-1].cached_bytes == 0
    assert_untouched(model)


def test_a_second_failure_is_the_models_own(model):
    with Failing(model.single_blocks[1], at=3, times=2), pytest.raises(torch.OutOfMemoryError):
        run(model, cached("final", "linear", "FFFAFA"), guidance=1)
    assert_untouched(model)


def test_a_failure_with_nothing_cached_is_the_models_own(model):
    with Failing(model.double_blocks[0], at=1), pytest.raises(torch.OutOfMemoryError):
        run(model, cached("final", "linear", "FFFAFA"), guidance=1)


@pytest.mark.parametrize("tokens", [0, 3])
def test_a_recording_ends_where_memory_runs_out_and_the_picture_does_not(model, tokens):
    plain, recorder = run(model, None, guidance=1), Recorder(tokens)
    with Failing(model.single_blocks[1], at=4):
        result = run(model, CacheConfig(observer=recorder), guidance=1)
    assert torch.equal(result.latents, plain.latents) and ran(result) == "FFFFFF" and result.calls == 6
    assert "recording has ended" in result.report.messages[0]
    with pytest.raises(ValueError, match="memory ran out during the run"):
        recorder.profile([1.0, 0.8, 0.6, 0.4, 0.3, 0.2, 0.0])
    assert_untouched(model)


def test_other_errors_are_not_swallowed(model):
    with (
        Failing(model.single_blocks[1], at=3, error=RuntimeError("shapes do not fit")),
        pytest.raises(RuntimeError, match="shapes"),
    ):
        run(model, cached("final", "linear", "FFFAFA"), guidance=1)
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))


@pytest.mark.parametrize("at", [2, 4, 9])
def test_when_keeping_runs_out_of_memory_nothing_is_lost(model, monkeypatch, at):
    count, push = [0], Site.push

    def failing(self, *args):
        count[0] += 1
        if count[0] == at:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return push(self, *args)

    monkeypatch.setattr(Site, "push", failing)
    result = run(model, cached("block", "linear", "FFFAFA"), guidance=1)
    assert (
        torch.equal(result.latents, run(model, None, guidance=1).latents)
        and "Memory ran out" in result.report.messages[0]
    )


def test_not_even_the_first_tensor_can_be_kept(model, monkeypatch):
    plain = run(model, None, guidance=1)
    monkeypatch.setattr(
        torch.Tensor, "clone", partial(torch.empty, 1 << 60)
    )  # what keeping the final hidden state allocates
    result = run(model, cached("final", "linear", "FFFAFA"), guidance=1)
    assert torch.equal(result.latents, plain.latents) and "Memory ran out" in result.report.messages[0]
