"""What other nodes do to the same model: controls, masks, patches, other caches, and models the pack does not
know.

Never a wrong picture, and a sentence where one helps.
"""

import logging

import comfy.controlnet
import comfy.hooks
import comfy.model_patcher
import comfy.supported_models
import pytest
import torch

STILL = torch.tensor([1.0, 1.0, 0.7, 0.7, 0.4, 0.4, 0.0])  # Euler leaves x as it is between equal neighbours
STILLER = torch.tensor([1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.0])
TEXT, IMAGE = 5, 16


def close(a, b):
    return float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())


# --- controls -------------------------------------------------------------------------------------


class Control(comfy.controlnet.ControlBase):
    """Residuals for every block, as a FLUX ControlNet gives them; they depend on what the control sees."""

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        start, end = self.timestep_range
        if not end <= float(t[0]) <= start:
            return None
        g = torch.Generator().manual_seed(8)
        add = torch.randn(1, IMAGE, 64, generator=g) * (1 + x_noisy.mean((1, 2, 3)).view(-1, 1, 1))
        return {"input": [add, 0.5 * add], "output": [-0.3 * add, 0.7 * add]}

    def copy(self):
        return self

    def get_models(self):
        return []

    def inference_memory_requirements(self, dtype):
        return 0


@pytest.fixture
def controlled(condition):
    """Positive and negative conditioning under a control that is active in a range of the steps."""

    def make(window=(0.0, 1.0), negative=True):
        control = Control()
        control.timestep_percent_range = window
        extra = {"control": control, "control_apply_to_uncond": negative}
        return condition(1, **extra), condition(2, **(extra if negative else {}))

    return make


@pytest.mark.parametrize("both", [True, False], ids=["both", "positive alone"])
def test_steps_stay_right_under_a_control(flux, cached, sample, ran, controlled, both):
    conds = controlled(negative=both)
    plain = sample(flux, *conds, cfg=3.0, sigmas=STILL)
    assert not close(plain, sample(flux, cfg=3.0, sigmas=STILL))
    # Twice in a row, because the control adds to what the first aggressive step has put back.
    patched = cached(flux, "FAAFAA")
    assert torch.equal(
        sample(patched, *conds, cfg=3.0, sigmas=STILLER), sample(flux, *conds, cfg=3.0, sigmas=STILLER)
    )
    assert ran(patched) == "FAAFAA"
    for attention in ("frozen", "live"):
        patched = cached(flux, "FCFCFC", attention=attention)
        assert close(sample(patched, *conds, cfg=3.0, sigmas=STILL), plain) and ran(patched) == "FCFCFC"
    patched = cached(flux, "FCCCCC", ratio=1.0, attention="live")
    assert close(sample(patched, *conds, cfg=3.0, steps=6), sample(flux, *conds, cfg=3.0, steps=6))


def test_a_control_that_ends_makes_one_step_full(flux, cached, sample, report_of, controlled):
    patched = cached(flux, "FAAAAA")
    assert sample(patched, *controlled((0.0, 0.5)), cfg=3.0, steps=6).isfinite().all()
    changed = [r for r in report_of(patched).records if r.actual != r.planned]
    assert [r.reason for r in changed] == ["no_snapshot"] and changed[0].step > 1


# --- attention ------------------------------------------------------------------------------------


def masked(condition):
    mask = torch.zeros(1, TEXT + IMAGE, TEXT + IMAGE)
    mask[:, TEXT:, 1:3] = -1e9
    return condition(1, attention_mask=mask, attention_mask_img_shape=(4, 4))


def with_attention_patch(model):
    model = model.clone()
    model.set_model_attn1_patch(lambda q, k, v, **kw: {"q": q * 1.3})
    return model


def with_output_patch(model):
    model = model.clone()
    model.set_model_patch(lambda out, extra: out * 0.7, "attn1_output_patch")
    return model


@pytest.mark.parametrize("how", ["mask", "attn1_patch", "attn1_output_patch"])
def test_what_couples_tokens_in_another_way_makes_conservative_steps_full(
    flux, cached, sample, ran, report_of, condition, how
):
    conds = [masked(condition)] if how == "mask" else []
    model = {
        "mask": lambda m: m,
        "attn1_patch": with_attention_patch,
        "attn1_output_patch": with_output_patch,
    }[how](flux)
    patched = cached(model, "FCCCCC")
    assert torch.equal(sample(patched, *conds, steps=6), sample(model, *conds, steps=6))
    report = report_of(patched)
    assert ran(patched) == "FFFFFF" and {r.reason for r in report.records[1:]} == {"refused"}
    (sentence,) = report.messages
    assert how in sentence and sentence.endswith(".")
    # Aggressive steps need no rows and go on.
    patched = cached(model, "FAFAFA")
    assert (
        torch.equal(sample(patched, *conds, sigmas=STILL), sample(model, *conds, sigmas=STILL))
        and ran(patched) == "FAFAFA"
    )


def test_an_attention_override_of_another_node_stays_in_charge(flux, cached, sample, ran):
    """Such nodes replace the attention kernel; ours is set around theirs."""
    calls = []

    def theirs(func, *args, **kwargs):
        calls.append(1)
        return 0.6 * func(*args, **kwargs)

    model = flux.clone()
    model.model_options.setdefault("transformer_options", {})["optimized_attention_override"] = theirs
    plain = sample(model, steps=6)
    assert not close(plain, sample(flux, steps=6))
    patched = cached(model, "FCCCCC", ratio=1.0, attention="live")
    calls.clear()
    assert (
        close(sample(patched, steps=6), plain) and ran(patched) == "FCCCCC" and len(calls) == 24 + 2
    )  # a check of each sort
    patched = cached(model, "FCFCFA")
    assert close(sample(patched, sigmas=STILL), sample(model, sigmas=STILL))
    assert model.model_options["transformer_options"]["optimized_attention_override"] is theirs


# --- blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block", [("double_block", 0), ("double_block", 1), ("single_block", 0), ("single_block", 1)], ids=str
)
@pytest.mark.parametrize("skip", [False, True], ids=["wraps", "skips"])
def test_a_node_that_wraps_or_skips_a_block_keeps_its_effect(
    flux, cached, sample, report_of, ran, block, skip
):
    def theirs(args, extra):
        out = {k: args[k] for k in ("img", "txt") if k in args} if skip else extra["original_block"](args)
        return {**out, "img": out["img"] * torch.linspace(0.7, 1.3, 64)}

    model = flux.clone()
    model.set_model_patch_replace(theirs, "dit", *block)
    plain, still = sample(model, steps=6), sample(model, sigmas=STILL)
    assert not close(plain, sample(flux, steps=6))
    assert torch.equal(sample(cached(model, preset="off"), steps=6), plain)
    patched = cached(model, "FAFAFA")
    result = sample(patched, sigmas=STILL)
    if skip and block == ("single_block", 1):  # the last block never ran, so there is nothing to put back
        assert torch.equal(result, still) and ran(patched) == "FFFFFF" and report_of(patched).why_nothing()
    else:
        assert torch.equal(result, still) and ran(patched) == "FAFAFA"
    patched = cached(model, "FCCCCC", ratio=1.0, attention="live")
    assert close(sample(patched, steps=6), plain)


@pytest.mark.parametrize("ours_first", [True, False])
def test_skip_layer_guidance_has_a_cache_of_its_own(flux, cached, sample, ran, report_of, ours_first):
    """It evaluates the same conditioning again in the same step, with blocks left out."""
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    def slg(model):
        node = SkipLayerGuidanceDiT
        out = (node.execute if hasattr(node, "execute") else node().skip_guidance)(
            model=model, scale=2.0, start_percent=0.0, end_percent=1.0, double_layers="1", single_layers="0"
        )
        return out[0]

    patched = slg(cached(flux, "FAFAFA")) if ours_first else cached(slg(flux), "FAFAFA")
    still = sample(slg(flux), cfg=3.0, sigmas=STILL)
    assert not close(still, sample(flux, cfg=3.0, sigmas=STILL))
    assert torch.equal(sample(patched, cfg=3.0, sigmas=STILL), still)
    assert ran(patched) == "FAFAFA" and report_of(patched).totals()["calls"] == 12


@pytest.mark.parametrize("kind", "AC")
def test_tokens_that_disappear_in_the_middle_of_a_run_are_a_mismatch(
    flux, cached, sample, report_of, shims, kind
):
    """No key can tell: a patch inside the model takes tokens away below a noise level."""
    sigma, seen = [1.0], []

    def fewer(args):
        n = 8 if sigma[0] < 0.6 else IMAGE
        return {**args, "img": args["img"][:, :n], "img_ids": args["img_ids"][:, :n]}

    def fill(module, args, out):
        """The picture needs all of its tokens, so the missing ones are made up; what ran before is noted,
        self-check included."""
        seen.append(args[0].shape[1])
        return torch.nn.functional.pad(out, (0, 0, 0, IMAGE - out.shape[1]))

    def callback(step, x0, x, total):
        sigma[0] = 1.0 - (step + 1) / 6

    model = flux.clone()
    model.set_model_patch(fewer, "post_input")
    patched = cached(model, "F" + kind * 5)
    handle = flux.model.diffusion_model.final_layer.register_forward_hook(fill)
    try:
        assert sample(patched, steps=6, callback=callback).isfinite().all()
    finally:
        handle.remove()
    records = report_of(patched).records
    assert seen == [16] * (4 if kind == "A" else 3) + [8] * 3 and not shims(flux)
    assert [r.actual for r in records] == ["F", kind, kind, "F", kind, kind]
    assert records[3].reason == "mismatch" and len(report_of(patched).messages) == 1


# --- conditioning ---------------------------------------------------------------------------------


def test_areas_are_cached_apart(flux, cached, sample, ran, condition):
    """A region is a smaller picture, and ComfyUI copies it, with its identity, into the negative."""
    positive = condition(1) + condition(3, area=(4, 4, 2, 2), strength=0.8)
    plain = sample(flux, positive, cfg=3.0, sigmas=STILL)
    patched = cached(flux, "FAFAFA")
    assert torch.equal(sample(patched, positive, cfg=3.0, sigmas=STILL), plain) and ran(patched) == "FAFAFA"
    patched = cached(flux, "FCCCCC", ratio=1.0, attention="live")
    assert close(sample(patched, positive, cfg=3.0, steps=6), sample(flux, positive, cfg=3.0, steps=6))


def test_conditioning_that_begins_in_the_middle_makes_its_first_step_full(
    flux, cached, sample, report_of, condition
):
    positive = condition(1, end_percent=0.5, start_percent=0.0) + condition(
        3, start_percent=0.5, end_percent=1.0
    )
    patched = cached(flux, "FAAAAA")
    assert sample(patched, positive, cfg=3.0, steps=6).isfinite().all()
    changed = [r for r in report_of(patched).records if r.actual != r.planned]
    assert [r.reason for r in changed] == ["no_snapshot"] and 1 < changed[0].step < 5
    assert torch.equal(
        sample(cached(flux, preset="off"), positive, cfg=3.0, steps=6),
        sample(flux, positive, cfg=3.0, steps=6),
    )


def test_conditioning_that_takes_another_ones_place_has_a_cache_of_its_own(
    flux, cached, sample, ran, condition
):
    """Two prompts of one shape, one for the noise levels above 0.55, one for those below."""
    sampling = flux.get_model_object("model_sampling")
    turn = next(p / 1000 for p in range(1001) if sampling.percent_to_sigma(p / 1000) < 0.55)
    positive = condition(1, start_percent=0.0, end_percent=turn) + condition(
        3, start_percent=turn, end_percent=1.0
    )
    patched = cached(flux, "FAFAAA")
    assert torch.equal(
        sample(patched, positive, cfg=3.0, sigmas=STILL), sample(flux, positive, cfg=3.0, sigmas=STILL)
    )
    assert ran(patched) == "FAFAFA"


def test_a_hook_whose_strength_changes_makes_its_first_step_full(flux, cached, sample, report_of, condition):
    """Keyframes change the weights under the same conditioning."""
    frames, name = comfy.hooks.HookKeyframeGroup(), "diffusion_model.double_blocks.0.img_mlp.0"
    for start, strength in ((0.0, 1.0), (0.5, 0.3)):
        frames.add(comfy.hooks.HookKeyframe(strength, start_percent=start))
    lora = {f"{name}.lora_up.weight": torch.ones(256, 2), f"{name}.lora_down.weight": torch.ones(2, 64)}
    hooks = comfy.hooks.create_hook_lora(lora, 0.1, 0.0)
    hooks.set_keyframes_on_hooks(frames)
    positive = comfy.hooks.set_hooks_for_conditioning(condition(1), hooks)
    patched = cached(flux, "FAAAAA")
    assert not close(sample(patched, positive, steps=6), sample(cached(flux, "FAAAAA"), steps=6))
    changed = [r for r in report_of(patched).records if r.actual != r.planned]
    assert [r.reason for r in changed] == ["no_snapshot"] and 1 < changed[0].step < 5


PARTS = {
    "denoise": {"denoise": 0.5},
    "steps": {"start_step": 2, "last_step": 5},
    "mask": {"noise_mask": torch.ones(1, 1, 8, 8).tril()},
}


@pytest.mark.parametrize("options", PARTS.values(), ids=PARTS)
def test_parts_of_a_run_and_masks_are_as_without_the_pack(flux, cached, sample, report_of, ran, options):
    latent = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    plain = sample(flux, steps=6, latent=latent, **options)
    assert torch.equal(sample(cached(flux, preset="off"), steps=6, latent=latent, **options), plain)
    patched = cached(flux, preset="fora")
    assert sample(patched, steps=6, latent=latent, **options).isfinite().all()
    report = report_of(patched)
    assert report.steps == len(report.records) == (3 if "last_step" in options else 6)
    assert ran(patched) == report.schedule["kinds"]


# --- other caches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["EasyCacheNode", "LazyCacheNode"])
@pytest.mark.parametrize("ours_first", [True, False])
def test_another_cache_on_the_model_is_refused_in_words(
    flux, cached, sample, ran, report_of, caplog, name, ours_first
):
    import comfy_extras.nodes_easycache as easycache

    def theirs(model):
        return getattr(easycache, name).execute(
            model, reuse_threshold=0.5, start_percent=0.1, end_percent=0.9, verbose=False
        )[0]

    both = theirs(cached(flux, preset="balanced")) if ours_first else cached(theirs(flux), preset="balanced")
    with caplog.at_level(logging.INFO, "dual_cache"):
        assert torch.equal(sample(both, steps=12), sample(theirs(flux), steps=12))
    report = report_of(both)
    assert report.totals()["skipped"] == 0 and set(ran(both)) == {"F"}
    (sentence,) = report.messages
    assert "EasyCache" in sentence and sentence in report.text()
    assert "EasyCache" in caplog.text
    # The reason given is the true one, not a plan that never was.
    assert "EasyCache" in report.why_nothing() and report.why_nothing().endswith(
        "Take either that node or Dual Cache out."
    )


@pytest.mark.parametrize("name", ["TeaCache", "MagCache", "WaveSpeed", "TaylorSeer"])
def test_caches_of_other_packs_are_known_by_what_they_leave(flux, cached, sample, ran, report_of, name):
    """By a key in the options, or by the method that made the wrapper around the model."""
    keys = {"TeaCache": "rel_l1_thresh", "MagCache": "magcache_thresh"}
    methods = {
        "WaveSpeed": "ApplyFBCacheOnModel.patch.<locals>.model_unet_function_wrapper",
        "TaylorSeer": "TaylorSeerLite.apply_taylorseer_lite.<locals>.unet_wrapper_function",
    }
    model = flux.clone()
    if name in keys:
        model.model_options.setdefault("transformer_options", {})[keys[name]] = 0.1
    else:

        def theirs(apply, kwargs):
            return apply(kwargs["input"], kwargs["timestep"], **kwargs["c"])

        theirs.__qualname__ = methods[name]
        model.set_model_unet_function_wrapper(theirs)
    both = cached(model, preset="fora")
    assert torch.equal(sample(both, steps=6), sample(model, steps=6)) and set(ran(both)) == {"F"}
    assert [name in sentence for sentence in report_of(both).messages].count(True) == 1


def test_a_forward_that_another_node_has_replaced_is_told(flux, cached, sample, ran, report_of):
    net, patched = flux.model.diffusion_model, cached(flux, "FAFAFA")
    sample(patched, steps=6)
    assert not report_of(patched).messages
    net.forward_orig = lambda *args, **kwargs: type(net).forward_orig(net, *args, **kwargs) * 1.1
    try:
        plain = sample(flux, sigmas=STILL)
        assert torch.equal(sample(patched, sigmas=STILL), plain) and ran(patched) == "FAFAFA"
    finally:
        del net.forward_orig
    (sentence,) = report_of(patched).messages
    assert "forward_orig" in sentence


# --- models the pack does not know ----------------------------------------------------------------


def sd3():
    return comfy.supported_models.SD3(
        dict(
            input_size=None,
            in_channels=16,
            out_channels=16,
            patch_size=2,
            depth=2,
            adm_in_channels=32,
            num_patches=64,
            pos_embed_max_size=8,
            context_embedder_config={
                "target": "torch.nn.Linear",
                "params": {"in_features": 48, "out_features": 128},
            },
            pos_embed_scaling_factor=None,
            qk_norm="rms",
            x_block_self_attn_layers=[0],
        )
    )


def lumina():
    return comfy.supported_models.Lumina2(
        dict(
            image_model="lumina2",
            patch_size=2,
            in_channels=16,
            dim=96,
            cap_feat_dim=48,
            n_layers=2,
            qk_norm=True,
            n_heads=2,
            n_kv_heads=1,
            axes_dims=[16, 16, 16],
            axes_lens=[300, 512, 512],
            ffn_dim_multiplier=4.0,
        )
    )


@pytest.mark.parametrize("family", [sd3, lumina], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "how", [{"preset": "balanced"}, {"preset": "duca"}, {"preset": "off"}], ids=lambda h: h["preset"]
)
def test_of_an_unknown_model_the_output_is_cached_and_the_report_says_so(
    cached, sample, condition, report_of, shims, caplog, family, how, part, monkeypatch
):
    for module in ("nodes.comfy.requests", "cache_core.hooks.model_binding"):
        monkeypatch.setattr(part(module), "find_family", lambda model: None)
    config = family()
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, "")
    g = torch.Generator().manual_seed(0)
    for name, p in [*base.diffusion_model.named_parameters(), *base.diffusion_model.named_buffers()]:
        if p.is_floating_point() and p.numel() and not name.endswith("freqs"):
            scale = "norm" in name and p.ndim == 1 and not name.endswith("bias")
            p.data = torch.randn(p.shape, generator=g) * 0.05 + float(scale)
    model = comfy.model_patcher.ModelPatcher(
        base, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
    )
    patched = cached(model, **how)
    conds = [
        condition(i, attention_mask=torch.ones(1, TEXT, dtype=torch.long)) for i in (1, 2)
    ]  # Lumina counts its tokens there
    with caplog.at_level(logging.INFO, "dual_cache"):
        out, plain = (sample(m, *conds, steps=12, cfg=3.0) for m in (patched, model))
    report, name, off = report_of(patched), type(base.diffusion_model).__name__, how["preset"] == "off"
    assert torch.equal(out, plain) if off else out.isfinite().all()
    assert report.family == "" and bool(report.totals()["skipped"]) == (not off)
    named = [m for m in report.messages if name in m and "output" in m]
    assert len(named) == (not off) and all(caplog.text.count(m) == 1 and m in report.text() for m in named)
    conservative = [m for m in report.messages if "Conservative steps ran in full" in m]
    assert len(conservative) == (how["preset"] == "duca") and not shims(model)
