"""Several caching nodes on one model, guiders of two models, and context windows."""

import itertools
import logging
from types import SimpleNamespace

import comfy.context_windows
import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch

STEPS = 12


@pytest.fixture
def call(part):
    """`call(name, id, **inputs)`: a node's outputs."""
    nodes = {n.GET_SCHEMA().node_id: n for n in part("nodes").NODES}

    def run(name, number=None, /, **inputs):
        clone = type(name, (nodes[name],), {"hidden": SimpleNamespace(unique_id=number)})
        return clone.EXECUTE_NORMALIZED(**inputs).result

    return run


# --- several nodes in a row ---------------------------------------------------------------------------

FIRST = {
    "Dual Cache": ("DualCache", {"preset": "fora"}, "Node #3 has patched this model before (fora)"),
    "Feature Forecast": ("FeatureForecast", {"preset": "tap"}, "Node #3 has patched this model before (tap)"),
    "Profile Model": ("DualCacheProfileModel", {}, "Node #3 has patched this model before (Profile Model)"),
}


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("last", ["DualCache", "FeatureForecast", "DualCacheProfileModel"])
def test_of_several_caching_nodes_the_last_one_acts_and_says_so(
    call, flux, sample, report_of, caplog, monkeypatch, tmp_path, first, last
):
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "cache_profiles", ([str(tmp_path)], set()))
    name, inputs, sentence = FIRST[first]
    model = call(name, "3", model=flux, **inputs)[0]
    alone = call(last, "7", model=flux)[0]
    with caplog.at_level(logging.WARNING, "dual_cache"):
        both = call(last, "7", model=model)[0]
    assert torch.equal(sample(both, steps=STEPS), sample(alone, steps=STEPS))
    (said,) = [m for m in report_of(both).messages if sentence in m]
    assert "Remove one of them" in said and said in caplog.text and said in report_of(both).text()
    assert not any("has patched this model before" in m for m in report_of(alone).messages)


def test_several_token_patches_say_that_the_last_one_acts(call, flux, sample, report_of):
    model = flux
    for ratio in (0.3, 0.6):
        model = call("VCacheAttentionPatch", model=model, ratio=ratio)[0]
    model = call("DualCache", model=model, preset="duca")[0]
    sample(model, steps=STEPS)
    assert {r.ratio for r in report_of(model).records if r.actual == "C"} == {0.6}
    assert any("Several V-Cache Attention Patch nodes" in m for m in report_of(model).messages)


def test_cache_compare_says_nothing_of_its_own_uncached_runs(call, flux, sample, part):
    patching, requests = part("nodes.comfy.patching"), part("nodes.comfy.requests")
    model = call("DualCache", "3", model=flux)[0]
    off = requests.CacheRequest(part("cache_core.recipes").from_preset("off"))
    sample(patching.patch(model, requests.KEY, off), steps=STEPS)
    assert off.box.report.messages == []


@pytest.mark.parametrize("kinds", ["FFAFA", "FFCFA"])
def test_too_little_memory_advises_what_can_be_done(part, kinds):
    report = part("cache_core.report.run_report")
    records = [report.StepRecord(i, 0, 1 - i / 9, k, "F", "memory") for i, k in enumerate(kinds)]
    said = report.Report(records, steps=len(kinds), schedule={"kinds": kinds}).why_nothing()
    assert ("use aggressive steps only" in said) == ("C" in kinds)
    assert ("set memory to more GB" in said) == ("C" not in kinds)


# --- guiders of two models ----------------------------------------------------------------------------


class TwoModels(comfy.samplers.CFGGuider):
    """Runs the negative on a second model, as ComfyUI's Dual Model CFG Guider does."""

    def __init__(self, model, second):
        super().__init__(model)
        self.second = second

    def outer_sample(self, noise, *args, **kwargs):
        negative = {"negative": [c.copy() for c in self.conds["negative"]]}
        self.other, made, loaded = comfy.sampler_helpers.prepare_sampling(
            self.second, noise.shape, negative, self.second.model_options
        )
        self.second.pre_run()
        try:
            return super().outer_sample(noise, *args, **kwargs)
        finally:
            self.second.cleanup()
            comfy.sampler_helpers.cleanup_models(made, loaded)

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        def of(model, which):
            return comfy.samplers.calc_cond_batch(model, [self.conds[which]], x, timestep, model_options)[0]

        cond, uncond = of(self.inner_model, "positive"), of(self.other, "negative")
        return uncond + (cond - uncond) * self.cfg


@pytest.fixture
def guided(condition):
    """`guided(model, second)`: the latent of a guider of two models."""

    def run(model, second):
        guider = TwoModels(model, second)
        guider.set_conds(condition(1), condition(2))
        guider.set_cfg(3.0)
        noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        sigmas = torch.linspace(1, 0, STEPS + 1)
        euler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=0)

    return run


def test_on_the_second_model_of_a_guider_alone_the_node_says_why_nothing_is_cached(
    call, build_flux, guided, caplog
):
    first, second = build_flux(0), build_flux(1)
    patched = call("DualCache", "7", model=second)[0]
    with caplog.at_level(logging.WARNING, "dual_cache"):
        latent = guided(first, patched)
    assert torch.equal(latent, guided(first, second))
    text, *_ = call("CacheReport", model=patched, latent={"samples": latent})
    assert "this model ran outside of Dual Cache's sampling" in text and text in caplog.text


def test_on_the_first_model_of_a_guider_both_models_are_cached(call, build_flux, guided, report_of):
    first, second = build_flux(0), build_flux(1)
    cached = call("DualCache", "7", model=first)[0]
    own = call("DualCache", "8", model=second, preset="off")[0]
    latent = guided(cached, own)
    assert report_of(cached).totals()["skipped"] > 0
    for model in (cached, own):  # the report is found on either
        text, *_ = call("CacheReport", model=model, latent={"samples": latent})
        assert text.startswith("balanced on FLUX") and "a caching node of its own" in text
    assert torch.equal(latent, guided(cached, second)) and not torch.equal(latent, guided(first, second))
    assert report_of(cached).messages == []  # the second model has no node of its own


# --- context windows ----------------------------------------------------------------------------------


def windowed(model, schedule):
    """A model whose batch of 6 pictures is sampled in windows of 2."""
    model = model.clone()
    model.model_options["context_handler"] = comfy.context_windows.IndexListContextHandler(
        comfy.context_windows.get_matching_context_schedule(schedule),
        comfy.context_windows.get_matching_fuse_method(comfy.context_windows.ContextFuseMethods.PYRAMID),
        context_length=2,
        context_overlap=1,
        dim=0,
    )
    comfy.context_windows.create_prepare_sampling_wrapper(model)
    return model


def test_context_windows_that_move_run_in_full(flux, cached, sample, report_of, monkeypatch):
    """A window that was not in the step before is not cached, also where it was used before that."""
    schedules, steps = comfy.context_windows.ContextSchedules, 5  # as many noise levels as pictures
    base = cached(flux, "FFAFA")
    still = windowed(base, schedules.STATIC_STANDARD)
    sample(still, steps=steps, batch=6)
    assert "A" in "".join(r.actual for r in report_of(still).records)
    assert not any("Context windows move" in m for m in report_of(still).messages)

    turn, moving = itertools.count(), windowed(base, schedules.STATIC_STANDARD)
    handler = moving.model_options["context_handler"]

    def by_turns(*args, **kwargs):
        """Every second evaluation has the windows of the one before the last."""
        found = type(handler).get_context_windows(handler, *args, **kwargs)
        if next(turn) % 2:
            for window in found:
                window.index_list = window.index_list[::-1]
        return found

    handler.get_context_windows = by_turns
    plain = sample(windowed_like(flux, moving), steps=steps, batch=6)
    assert torch.equal(sample(moving, steps=steps, batch=6), plain)
    assert {r.actual for r in report_of(moving).records} == {"F"}
    assert any("Context windows move" in m for m in report_of(moving).messages)


def windowed_like(model, other):
    """A model with the context windows of another one."""
    model = model.clone()
    model.model_options["context_handler"] = other.model_options["context_handler"]
    comfy.context_windows.create_prepare_sampling_wrapper(model)
    return model
