"""Features that no longer fit are never put back: branches that are left out, tiles that move, controls that
change, blocks that run twice, calls that never arrive. The embedded model in the real ComfyUI."""

import math

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from stress import embedded

GAP_OF_ONE = "FA" * 12


def psnr(out, plain) -> float:
    """dB, of the range of the plain latents."""
    return 10 * math.log10(
        float((plain.max() - plain.min()) ** 2 / (out - plain).square().mean().clamp_min(1e-20))
    )


class PeriodicGuider(comfy.samplers.CFGGuider):
    """Guidance 4 on every second step, from `first` on; no unconditional call on the others."""

    first = 0

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        self.evaluations = getattr(self, "evaluations", -1) + 1
        self.cfg = 4.0 if self.evaluations % 2 == self.first else 1.0
        return super().predict_noise(x, timestep, model_options, seed)


def guided(model, first: int, steps: int = 24):
    guider = PeriodicGuider(model)
    guider.first = first
    guider.set_conds(embedded.caption(), embedded.caption(""))
    latent = torch.zeros(1, 16, 8, 8)
    sampler = comfy.samplers.KSampler(model, steps, torch.device("cpu"), "euler", "simple")
    with torch.no_grad():
        return guider.sample(
            comfy.sample.prepare_noise(latent, 0),
            latent,
            comfy.samplers.sampler_object("euler"),
            sampler.sigmas,
            disable_pbar=True,
            seed=0,
        )


@pytest.mark.parametrize("first", [0, 1])
def test_a_branch_that_the_plan_never_refreshes_runs_in_full(first):
    base = embedded.model()
    plain, patched = guided(base, first), embedded.cached(base, "fora", GAP_OF_ONE)
    out, report = guided(patched, first), embedded.report_of(patched)
    assert psnr(out, plain) > 45
    assert any("older than the plan allows" in m for m in report.messages) == (first == 1)


def moving_tiles(model, move: int):
    """A wrapper that evaluates two halves of the latent, moved by `move` places more at each step."""
    clone, calls = model.clone(), [-1]

    def tiled(apply_model, args):
        calls[0] += 1
        shift = move * calls[0]
        x, c = args["input"].roll(shift, -1), args["c"]
        parts = [apply_model(part, args["timestep"], **c) for part in x.chunk(2, -1)]
        return torch.cat(parts, -1).roll(-shift, -1)

    clone.set_model_unet_function_wrapper(tiled)
    return clone


@pytest.mark.parametrize(("move", "least"), [(0, 40), (3, 80)])
def test_tiles_that_move_end_the_caching_with_one_sentence(move, least):
    base = embedded.model()
    plain = embedded.sample(moving_tiles(base, move), steps=12)
    patched = moving_tiles(embedded.cached(base), move)
    out, report = embedded.sample(patched, steps=12), embedded.report_of(patched)
    assert psnr(out, plain) > least
    assert sum("something else than at the step before" in m for m in report.messages) == (move > 0)
    assert (report.totals()["skipped"] > 0) == (move == 0)


def test_blocks_that_run_twice_in_a_call_are_cached_at_the_output_or_not_at_all():
    """What one pass kept is another's input: put back at the blocks it ends at 6 dB."""
    base = embedded.model()

    def twice(executor, x, t, context, *args, **kwargs):
        other = embedded.caption(embedded.CAPTIONS[1])[0][0].expand_as(context)
        return 0.5 * executor(x, t, other, *args, **kwargs) + 0.5 * executor(x, t, context, *args, **kwargs)

    plain = base.clone()
    plain.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", twice)
    wanted = embedded.sample(plain, steps=30)
    for preset, least in (("balanced", 30), ("fora", 26), ("duca", 26), ("taylorseer", 26), ("dicache", 30)):
        model = embedded.cached(base, preset)
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", twice)
        out, report = embedded.sample(model, steps=30), embedded.report_of(model)
        assert psnr(out, wanted) > least, preset
        said = ("put back the model's output", "run several times")
        assert any(part in m for m in report.messages for part in said), preset


def controlled(model, strengths):
    """A wrapper that adds the residuals of a control network whose strength changes from step to step."""
    clone, calls = model.clone(), [-1]
    residual = torch.randn(1, 16, 256, generator=torch.Generator().manual_seed(3))

    def with_control(apply_model, args):
        calls[0] += 1
        c = {**args["c"], "control": {"input": [residual * strengths[calls[0]]] * 3, "output": []}}
        return apply_model(args["input"], args["timestep"], **c)

    clone.set_model_unet_function_wrapper(with_control)
    return clone


@pytest.mark.parametrize("strengths", [[1.0] * 12, [1.0] * 7 + [0.0] * 5, [1.0, 0.2] * 6])
def test_a_control_that_changes_its_strength_refreshes_what_is_cached(strengths):
    base = embedded.model()
    plain = embedded.sample(controlled(base, strengths), steps=12)
    patched = controlled(embedded.cached(base, "fora"), strengths)
    out, report = embedded.sample(patched, steps=12), embedded.report_of(patched)
    assert psnr(out, plain) > 35
    assert any("control network" in m for m in report.messages) == (len(set(strengths)) > 1)


def test_evaluations_that_another_node_answers_are_not_counted():
    base = embedded.model()
    patched, calls = embedded.cached(base), [-1]

    def answers(executor, x, timestep, model_options=None, seed=None):
        calls[0] += 1
        return x if calls[0] % 2 else executor(x, timestep, model_options or {}, seed)

    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", answers)
    embedded.sample(patched, steps=12)
    totals = embedded.report_of(patched).totals()
    assert totals["without_calls"] == 6 and totals["calls"] == 6 and totals["skipped"] <= 6
    assert "6 evaluations did not reach the model" in embedded.report_of(patched).summary()


@pytest.mark.parametrize(("steps", "skipped"), [(4, 0), (8, 0), (11, 0), (12, 6), (30, 18)])
def test_short_runs_skip_nothing_and_say_what_to_do_instead(steps, skipped):
    base = embedded.model()
    for preset in ("balanced", "fast", "quality"):
        patched = embedded.cached(base, preset)
        out, report = embedded.sample(patched, steps=steps), embedded.report_of(patched)
        if not skipped:
            assert torch.equal(out, embedded.sample(base, steps=steps))
            assert report.why_nothing().startswith("Nothing was skipped")
            assert not any(word in report.text() for word in ("record a profile", "sample with more"))
        elif preset == "balanced":
            assert report.totals()["skipped"] == skipped
    published = embedded.cached(base, "fora")
    embedded.sample(published, steps=steps)
    report = embedded.report_of(published)
    assert report.totals()["skipped"] > 0
    assert any("plain step" in m for m in report.messages) == (steps < 12)


def test_at_the_output_presets_forecast_the_data_prediction(part):
    base = embedded.model()
    plain = embedded.sample(base, steps=20)
    for preset in ("balanced", "fast"):
        coarser = part("cache_core.models.capabilities").coarser
        settings = coarser(part("cache_core.recipes").from_preset(preset), "output")
        patching = part("nodes.comfy.patching")
        patched = patching.patch(base, patching.KEY, patching.CacheRequest(settings))
        assert psnr(embedded.sample(patched, steps=20), plain) > (48 if preset == "balanced" else 44)
