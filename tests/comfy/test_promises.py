"""The pack's promises inside ComfyUI, on a tiny random FLUX sampled through `comfy.sample.sample`."""

import gc
import weakref

import comfy.model_management
import comfy.sample
import pytest
import torch

DUCA = "FCACFA"
STILL = torch.tensor([1.0, 1.0, 0.7, 0.7, 0.4, 0.4, 0.0])  # Euler leaves x as it is between equal neighbours
VARIANTS = {
    "guidance 1": ({}, {}, {"cfg": 1.0}),
    "guidance 3": ({}, {}, {"cfg": 3.0}),
    "other lengths": ({}, {"negative": {"tokens": 7}}, {"cfg": 3.0}),
    "kontext": ({}, {"positive": {"reference": True}, "negative": {"reference": True}}, {"cfg": 3.0}),
    "kontext, positive alone": ({}, {"positive": {"reference": True}}, {"cfg": 3.0}),
    "fill": ({"in_channels": 96}, {"positive": {"fill": True}, "negative": {"fill": True}}, {"cfg": 3.0}),
    "no guidance input": ({"guidance_embed": False}, {}, {"cfg": 1.0}),
    "batch": ({}, {}, {"cfg": 3.0, "batch": 2}),
    "odd size": ({}, {}, {"cfg": 1.0, "size": 9}),
}


def close(a, b):
    """Equal but for the rounding of another batch size."""
    return float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())


@pytest.fixture
def variant(request, build_flux, condition, sample):
    """A model and a function that samples it the same way each time, for one row of VARIANTS."""
    config, conds, options = VARIANTS[request.param]
    g = torch.Generator().manual_seed(5)
    extras = {
        "reference": {"reference_latents": [torch.randn(1, 16, 6, 8, generator=g)]},
        "fill": {
            "concat_latent_image": torch.randn(1, 16, 8, 8, generator=g),
            "concat_mask": torch.ones(1, 1, 64, 64),
        },
    }

    def make(which, seed):
        own = dict(conds.get(which, {}))
        extra = next((extras[k] for k in extras if own.pop(k, False)), {})
        return condition(seed, **own, **extra)

    positive, negative = make("positive", 1), make("negative", 2)
    return build_flux(**config), lambda model, **kw: sample(
        model, positive, negative, **{"steps": 6, **options, **kw}
    )


each_variant = pytest.mark.parametrize("variant", VARIANTS, indirect=True)


# --- exact where it must be -----------------------------------------------------------------------


@each_variant
@pytest.mark.parametrize(
    "how", [{"preset": "off"}, {"kinds": "FFFFFF", "attention": "live"}], ids=["off", "all full"]
)
def test_without_skips_the_result_is_bit_identical(variant, cached, report_of, how):
    model, run = variant
    patched = cached(model, **how)
    assert torch.equal(run(patched), run(model))
    report = report_of(patched)
    assert report.totals()["full"] == report.totals()["evaluations"] == 6
    assert report.why_nothing()


@each_variant
def test_aggressive_after_full_at_the_same_sigma_is_exact(variant, cached, ran):
    model, run = variant
    for kinds, settings in (("FAFAFA", {}), ("FAFAFA", {"preset": "balanced"})):
        patched = cached(model, kinds, **settings)
        assert torch.equal(run(patched, sigmas=STILL), run(model, sigmas=STILL))
        assert ran(patched) == kinds


@each_variant
def test_conservative_after_full_at_the_same_sigma_changes_nothing(variant, cached, ran):
    model, run = variant
    for attention in ("frozen", "live"):
        patched = cached(model, "FCFCFC", attention=attention)
        assert close(run(patched, sigmas=STILL), run(model, sigmas=STILL))
        assert ran(patched) == "FCFCFC"


@each_variant
def test_conservative_with_every_token_and_live_attention_is_exact(variant, cached, ran):
    model, run = variant
    patched = cached(model, "FCCCCC", ratio=1.0, attention="live")
    assert close(run(patched), run(model))
    assert ran(patched) == "FCCCCC"


@each_variant
def test_conservative_with_every_token_and_frozen_attention_differs(variant, cached):
    model, run = variant
    plain = run(model)
    assert (run(cached(model, "FCCCCC", ratio=1.0)) - plain).norm() > 1e-4 * plain.norm()


@each_variant
def test_runs_repeat_exactly_and_inputs_stay_as_they_were(variant, cached, ran):
    model, run = variant
    patched = cached(model, DUCA)
    first = run(patched)
    assert ran(patched) == DUCA
    assert torch.equal(first, run(patched)) and torch.equal(first, run(cached(model, DUCA)))
    assert first.isfinite().all() and not torch.equal(first, run(model))


def test_nothing_given_to_the_sampler_is_written_to(flux, cached, condition):
    noise, latent = torch.randn(1, 16, 8, 8), torch.randn(1, 16, 8, 8)
    positive, negative = condition(1), condition(2, tokens=7)
    given = [noise, latent] + [t for c in (positive, negative) for t in (c[0][0], c[0][1]["pooled_output"])]
    before = [t.clone() for t in given]
    patched = cached(flux, DUCA, attention="live")
    comfy.sample.sample(
        patched,
        noise,
        6,
        3.0,
        "euler",
        "simple",
        positive,
        negative,
        latent,
        denoise=0.8,
        disable_pbar=True,
        seed=0,
    )
    assert all(torch.equal(a, b) for a, b in zip(given, before))


# --- the same picture however it is batched -------------------------------------------------------

METHODS = {
    "duca": {"kinds": DUCA},
    "balanced": {"preset": "balanced", "kinds": "FFAAFA"},
    "toca": {"preset": "toca", "kinds": "FCCFCC"},
    "live": {"kinds": DUCA, "attention": "live"},
}


def count_calls(model, monkeypatch):
    """Counts the calls of the diffusion model; a list that grows by the batch size of each."""
    sizes, apply = [], model.model._apply_model

    def spy(x, *args, **kwargs):
        sizes.append(len(x))
        return apply(x, *args, **kwargs)

    monkeypatch.setattr(model.model, "_apply_model", spy)
    return sizes


def limit_memory(model, monkeypatch, short):
    """Makes ComfyUI believe that a batch of two does not fit while `short()` says so."""
    required = model.model.memory_required
    monkeypatch.setattr(
        model.model,
        "memory_required",
        lambda shape, **kw: 1e30 if short() and shape[0] > 1 else required(shape, **kw),
    )


@pytest.mark.parametrize("method", METHODS)
def test_guidance_in_one_call_equals_two_calls(flux, cached, sample, ran, report_of, monkeypatch, method):
    patched = cached(flux, **METHODS[method])
    sizes = count_calls(flux, monkeypatch)
    together, kinds = sample(patched, steps=6, cfg=3.0), ran(patched)
    assert sizes == [2] * 6 and set(kinds) != {"F"} and report_of(patched).totals()["calls"] == 6
    sizes.clear()
    limit_memory(flux, monkeypatch, lambda: True)
    apart = sample(patched, steps=6, cfg=3.0)
    assert sizes == [1] * 12 and ran(patched) == kinds and report_of(patched).totals()["calls"] == 12
    assert close(together, apart)


@pytest.mark.parametrize("method", METHODS)
def test_free_memory_may_regroup_the_calls_in_the_middle_of_a_run(
    flux, cached, sample, ran, monkeypatch, method
):
    patched = cached(flux, **METHODS[method])
    together, kinds = sample(patched, steps=6, cfg=3.0), ran(patched)
    sizes = count_calls(flux, monkeypatch)
    limit_memory(flux, monkeypatch, lambda: len(sizes) % 3 != 0)
    assert close(sample(patched, steps=6, cfg=3.0), together)
    assert set(sizes) == {1, 2} and ran(patched) == kinds


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_batch_equals_its_images(flux, cached, condition, method, cfg):
    patched = cached(flux, **METHODS[method])
    noise = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(3))

    def run(noise):
        return comfy.sample.sample(
            patched,
            noise,
            6,
            cfg,
            "euler",
            "simple",
            condition(1),
            condition(2),
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=0,
        )

    batch = run(noise)
    for i in range(3):
        assert close(run(noise[i : i + 1])[0], batch[i])


# --- nothing survives -----------------------------------------------------------------------------


@pytest.fixture
def controllers(part, monkeypatch):
    """Weak references to the controllers that runs make."""
    host, made = part("nodes.comfy.sampling_run"), []
    real = host.Controller

    def make(*args, **kwargs):
        made.append(real(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(host, "Controller", make)
    return made


def test_nothing_survives_a_run(flux, cached, sample, shims, controllers, part):
    patched = cached(flux, DUCA)
    options = {k: v for k, v in patched.model_options["transformer_options"].items() if k != "wrappers"}
    sample(patched, steps=6, cfg=3.0)
    (controller,) = controllers
    assert not controller._store and not controller._models and not shims(flux)
    assert {
        k: v for k, v in patched.model_options["transformer_options"].items() if k != "wrappers"
    } == options
    alive = weakref.ref(controller)
    controllers.clear()
    del controller
    gc.collect()
    assert alive() is None


class Trouble(Exception):
    pass


def in_callback(error):
    def callback(step, x0, x, total):
        if step == 2:
            raise error

    return callback


ENDS = [
    comfy.model_management.InterruptProcessingException(),
    comfy.model_management.OOM_EXCEPTION("full"),
    Trouble(),
]


@pytest.mark.parametrize("error", ENDS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("place", ["callback", "block"])
def test_a_run_that_ends_early_leaves_nothing(
    flux, cached, sample, shims, report_of, controllers, error, place
):
    plain, patched = sample(flux, steps=6, cfg=3.0), cached(flux, "FFFCAC")
    whole = sample(patched, steps=6, cfg=3.0)
    handle = None
    if place == "block":
        count = [0]

        def fail(*_):
            count[0] += 1
            if count[0] >= 4:  # out of memory is tried again once
                raise error

        handle = flux.model.diffusion_model.single_blocks[1].linear2.register_forward_pre_hook(fail)
    try:
        with pytest.raises(type(error)):
            sample(patched, steps=6, cfg=3.0, callback=in_callback(error) if place == "callback" else None)
    finally:
        if handle:
            handle.remove()
    assert not shims(flux) and all(not c._store for c in controllers)
    assert 0 < len(report_of(patched).records) < 6
    assert torch.equal(sample(flux, steps=6, cfg=3.0), plain)
    assert torch.equal(sample(patched, steps=6, cfg=3.0), whole) and len(report_of(patched).records) == 6


def test_a_second_size_in_the_next_run_starts_afresh(flux, cached, sample, ran):
    patched = cached(flux, DUCA)
    small = sample(patched, steps=6)
    sample(patched, steps=6, size=12)
    assert ran(patched) == DUCA
    assert torch.equal(sample(patched, steps=6), small)


def test_patched_clones_are_independent(flux, cached, sample, ran, report_of):
    plain = sample(flux, steps=6)
    one, two = cached(flux, DUCA), cached(flux, "FAAFAA")
    first, second = sample(one, steps=6), sample(two, steps=6)
    assert torch.equal(sample(one, steps=6), first) and torch.equal(sample(two, steps=6), second)
    assert not torch.equal(first, second)
    assert ran(one) == DUCA and ran(two) == "FAAFAA"
    assert torch.equal(sample(flux, steps=6), plain)
    assert "transformer_options" not in flux.model_options or not any(
        "dual_cache" in k for k in flux.model_options["transformer_options"]
    )


def test_the_report_is_found_when_another_node_clones_the_model(flux, cached, sample, report_of):
    patched = cached(flux, DUCA)
    sample(patched.clone(), steps=6)
    assert len(report_of(patched).records) == 6


def test_patching_twice_replaces_the_first_patch(flux, cached, sample, ran):
    twice = cached(cached(flux, "FAAFAA"), DUCA)
    assert torch.equal(sample(twice, steps=6), sample(cached(flux, DUCA), steps=6))
    assert ran(twice) == DUCA


# --- the embedded model through ComfyUI's loader --------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_one_file_gives_one_result_in_comfyui_and_without_it(part, cached, tmp_path, method):
    """A FLUX-layout file of random weights, loaded by the pack's loader and sampled cached, against the
    host-free sampler."""
    from safetensors.torch import save_file

    demo, sampler, scenes = part("demo.flux"), part("demo.sampler"), part("demo.scenes")
    net = demo.Flux(demo.FluxConfig(hidden=128, double=2, single=2)).eval()
    g = torch.Generator().manual_seed(4)
    for name, p in net.named_parameters():
        p.data = torch.randn(p.shape, generator=g) * 0.08 + (1.0 if name.endswith("norm.scale") else 0.0)
    save_file(net.state_dict(), tmp_path / "tiny.safetensors")
    model = part("nodes.comfy.loading").load_flux(tmp_path / "tiny.safetensors")
    patched = cached(model, **METHODS[method])
    captions, sigmas = ["a large red heart center", ""], sampler.schedule_sigmas(6)
    conds = [
        [[tokens[None], {"pooled_output": pooled[None]}]]
        for tokens, pooled in map(scenes.encode_caption, captions)
    ]
    noise = sampler.noise_for([0], 64)
    out = comfy.sample.sample(
        patched,
        noise,
        6,
        2.0,
        "euler",
        "simple",
        *conds,
        torch.zeros_like(noise),
        sigmas=torch.tensor(sigmas),
        disable_pbar=True,
        seed=0,
    )
    settings = part("nodes.comfy.requests").request_of(patched).settings
    expected = sampler.sample(net, captions[:1], sigmas=sigmas, guidance=2.0, size=64, settings=settings)
    assert [r.actual for r in expected.report.records] == [
        r.actual for r in part("nodes.comfy.requests").request_of(patched).box.report.records
    ]
    assert close(model.model.process_latent_in(out), expected.latents)
