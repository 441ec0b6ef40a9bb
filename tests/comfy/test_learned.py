"""Learned plans inside ComfyUI: our samplers do what ComfyUI's do; runs are recorded without a change; plans
are fitted, used under the user's sampler and as samplers of their own; others are refused in a sentence."""

import json
import shutil
from types import SimpleNamespace

import comfy.sample
import comfy.samplers
import pytest
import torch

STEPS, SIZE = 10, 8
CAPTIONS = (
    "a large red heart center on a plain white background",
    "a small blue star left on a plain gray background",
    "a medium green ring right on a striped beige background",
    "a large yellow square top on a plain navy background",
    "a small pink circle bottom on a dotted mint background",
)


@pytest.fixture
def folder(part, monkeypatch, tmp_path):
    """A models folder of its own."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "cache_profiles", ([str(tmp_path)], set()))
    return tmp_path


@pytest.fixture
def told(part, monkeypatch):
    """Sentences that nodes were shown."""
    seen = []
    monkeypatch.setattr(part("nodes.comfy.events"), "show", lambda sentence, node: seen.append(sentence))
    return seen


@pytest.fixture(scope="module")
def call(part):
    """`call("DualCacheFitPlan", model=...)`: runs a node; gives its outputs."""
    nodes = {n.GET_SCHEMA().node_id: n for n in part("nodes").NODES}

    def run(node, /, **inputs):
        clone = type(node, (nodes[node],), {"hidden": SimpleNamespace(unique_id="7")})
        return clone.EXECUTE_NORMALIZED(**inputs).result

    return run


@pytest.fixture(scope="module")
def embedded(call):
    return call("DualCacheDemoModel")[0]


@pytest.fixture(scope="module")
def conditioning(part):
    return part("nodes.demo_model").conditioning


@pytest.fixture(scope="module")
def draw(sample, conditioning):
    """`draw(model, caption, seed, cfg=2.0, ...)`: a latent by KSampler."""

    def run(model, caption=CAPTIONS[0], seed=0, cfg=2.0, steps=STEPS, **options):
        return sample(
            model,
            conditioning(caption),
            conditioning(""),
            steps=steps,
            cfg=cfg,
            seed=seed,
            size=SIZE,
            **options,
        )

    return run


@pytest.fixture
def custom(conditioning):
    """`custom(model, sampler, sigmas, caption, seed, cfg)`: a latent by SamplerCustom's function."""

    def run(model, sampler, sigmas, caption=CAPTIONS[0], seed=0, cfg=2.0):
        latent = torch.zeros(1, 16, SIZE, SIZE)
        noise = comfy.sample.prepare_noise(latent, seed)
        return comfy.sample.sample_custom(
            model,
            noise,
            cfg,
            sampler,
            sigmas,
            conditioning(caption),
            conditioning(""),
            latent,
            disable_pbar=True,
            seed=seed,
        )

    return run


@pytest.fixture(scope="module")
def kept(embedded, call, draw, tmp_path_factory):
    """A folder with four recorded runs of the embedded model at guidance 2, and plans from them."""
    import folder_paths

    place = tmp_path_factory.mktemp("profiles")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(folder_paths.folder_names_and_paths, "cache_profiles", ([str(place)], set()))
        (model,) = call("DualCacheRecord", model=embedded, name="shapes", runs=4)
        for seed, caption in enumerate(CAPTIONS[:4]):
            assert torch.equal(draw(model, caption, seed), draw(embedded, caption, seed))
        text = call("DualCacheFitPlan", model=model, name="shapes", calls="5")[1]
        call("DualCacheFitPlan", model=embedded, name="shapes", calls="5", aim="exact")
        plans, _ = call("DualCacheFitPlan", model=embedded, name="shapes", calls="5", own_sampler=True)
    return place, plans, text


@pytest.fixture
def plans(kept, folder):
    """The plans, beside a copy of the folder."""
    shutil.copytree(kept[0], folder, dirs_exist_ok=True)
    return kept[1]


def error(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("scheduler", ["simple", "beta"])
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "res_multistep", "uni_pc", "uni_pc_bh2"])
def test_our_samplers_are_those_of_comfyui(embedded, part, custom, name, scheduler):
    samplers = part("cache_core.learned.samplers")
    sigmas = comfy.samplers.calculate_sigmas(embedded.get_model_object("model_sampling"), scheduler, 6)
    theirs = custom(embedded, comfy.samplers.sampler_object(name), sigmas)

    def ours(model, x, sigmas, extra_args=None, callback=None, disable=None):
        def velocity(x, sigma):
            denoised = model(x, x.new_ones(len(x)) * sigma, **extra_args)
            return (x - denoised) / sigma

        return samplers.integrate(name, sigmas.tolist(), x, velocity)

    assert error(custom(embedded, comfy.samplers.KSAMPLER(ours), sigmas), theirs) < 1e-4
    assert error(custom(embedded, comfy.samplers.sampler_object("heun"), sigmas), theirs) > 1e-3


def test_simple_noise_levels_are_those_of_the_demo_to_a_thousandth(embedded, part):
    levels = comfy.samplers.calculate_sigmas(
        embedded.get_model_object("model_sampling"), "simple", 30
    ).tolist()
    ours = part("demo.sampler").schedule_sigmas(30)
    assert max(abs(a - b) for a, b in zip(levels, ours)) < 1e-3
    assert part("cache_core.base.coordinates").same_levels(ours, levels)


def test_the_pack_brings_plans_of_its_model(embedded, call, part, conditioning):
    """At the size that they were recorded at; one step is enough to see which plan is taken."""
    sampling = part("nodes.comfy.learned_sampling")
    plans = part("nodes.comfy.learned_files").read("embedded.plans.json")
    sigmas = comfy.samplers.calculate_sigmas(embedded.get_model_object("model_sampling"), "simple", 30)
    for guidance in (1.0, 2.0):
        guider = comfy.samplers.CFGGuider(embedded)
        guider.set_conds(conditioning(CAPTIONS[0]), conditioning(""))
        guider.set_cfg(guidance)
        request = sampling.PlanRequest(plans, "embedded.plans.json", 3.0, "run")
        latent, sampler = torch.zeros(1, 16, 32, 32), comfy.samplers.sampler_object("euler")
        plan = sampling.plan_for(guider, request, latent, sampler, sigmas)
        assert (plan.calls, plan.guidance, plan.under) == (10, guidance, "euler")
        assert plan.quality() is not None
    assert plans.choose(10, "exact", "", 2.0).quality() is not None


def test_record_fit_and_use(plans, kept, embedded, call, draw, told, report_of):
    kinds = [(p.calls, p.aim, p.under) for p in plans.plans]
    assert kinds == [(5, "run", "euler"), (5, "exact", ""), (5, "run", "")]
    assert "4 recorded runs" in kept[2] and "dB from your uncached run" in kept[2]
    (model,) = call("DualCacheUseLearnedPlan", model=embedded, speedup=2.0, plans=plans)
    plain, ours = draw(embedded, CAPTIONS[4], 9), draw(model, CAPTIONS[4], 9)
    assert report_of(model).totals()["full"] == 5 and report_of(model).method == "learned"
    assert error(ours, plain) < 0.8 * error(draw(embedded, CAPTIONS[4], 9, steps=5), plain)
    assert told[-1].startswith("Learned plan: 5 of 10 steps in full. Expect latents")
    assert torch.equal(draw(model, CAPTIONS[4], 9), ours)  # queued twice


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"cfg": 4.0}, "guidance 2 and hold within 10%"),
        ({"steps": 12}, "10 steps and other noise levels"),
        ({"scheduler": "beta"}, "other noise levels"),
        ({"sampler": "dpmpp_2m"}, "no plan has the aim run under dpmpp_2m"),
        ({"sampler": "ddpm"}, "no plan runs under the sampler ddpm"),
    ],
)
def test_a_run_that_no_plan_fits_is_sampled_in_full(plans, embedded, call, draw, told, options, why):
    (model,) = call(
        "DualCacheUseLearnedPlan", model=embedded, speedup=2.0, plans=plans, name="shapes.plans.json"
    )
    assert torch.equal(draw(model, **options), draw(embedded, **options))
    assert why in told[-1] and "sampled in full" in told[-1]


def test_other_models_and_loras_are_refused(plans, embedded, flux, call, sample, draw, told):
    (other,) = call("DualCacheUseLearnedPlan", model=flux, speedup=2.0, plans=plans)
    assert torch.equal(sample(other, cfg=2.0, steps=STEPS), sample(flux, cfg=2.0, steps=STEPS))
    assert "the model is Flux" in told[-1]
    patched = embedded.clone()
    key = next(k for k in patched.model_state_dict() if k.endswith("img_in.weight"))
    patched.add_patches({key: (0.01 * torch.ones_like(patched.model_state_dict()[key]),)}, 1.0)
    (model,) = call("DualCacheUseLearnedPlan", model=patched, speedup=2.0, plans=plans)
    draw(model)
    assert "the LoRAs is" in told[-1] or "the model is" in told[-1]


def test_less_denoise_resumes_in_the_plan(plans, embedded, call, draw, report_of):
    (model,) = call("DualCacheUseLearnedPlan", model=embedded, speedup=2.0, plans=plans)
    start = draw(embedded, CAPTIONS[1], 3)
    options = {"steps": STEPS // 2, "denoise": 0.5, "latent": start}
    plain, ours = draw(embedded, CAPTIONS[0], 5, **options), draw(model, CAPTIONS[0], 5, **options)
    assert report_of(model).totals()["full"] < STEPS // 2 and error(ours, plain) < 0.1


@pytest.mark.parametrize("aim", ["exact", "run"])
def test_a_sampler_of_its_own(plans, embedded, call, draw, custom, aim):
    sampler, sigmas, text = call(
        "DualCacheLearnedSampler", calls=5, guidance=2.0, aim=aim, name="shapes.plans.json"
    )
    assert len(sigmas) == 6 and text.startswith("5 calls at guidance 2")
    ours = custom(embedded, sampler, sigmas, CAPTIONS[4], 9)
    fine = (
        draw(embedded, CAPTIONS[4], 9, steps=60, sampler="heun")
        if aim == "exact"
        else draw(embedded, CAPTIONS[4], 9)
    )
    rivals = [draw(embedded, CAPTIONS[4], 9, steps=5, sampler=s) for s in ("euler", "dpmpp_2m")]
    assert error(ours, fine) < min(error(r, fine) for r in rivals)


def test_a_sampler_of_its_own_refuses_other_runs_before_they_begin(
    plans, embedded, call, custom, flux, condition
):
    sampler, sigmas, _ = call("DualCacheLearnedSampler", calls=5, guidance=2.0, aim="run", plans=plans)
    with pytest.raises(ValueError, match="the guidance is 3, the plan's 2"):
        custom(embedded, sampler, sigmas, cfg=3.0)
    with pytest.raises(ValueError, match="connect its sigmas"):
        custom(embedded, sampler, torch.linspace(1, 0, 7))
    with pytest.raises(ValueError, match="the model is Flux"):
        comfy.sample.sample_custom(
            flux,
            torch.randn(1, 16, SIZE, SIZE),
            2.0,
            sampler,
            sigmas,
            condition(1),
            condition(2),
            torch.zeros(1, 16, SIZE, SIZE),
            disable_pbar=True,
            seed=0,
        )


@pytest.mark.parametrize("name", ["dpmpp_2m", "uni_pc", "res_multistep"])
def test_plans_under_other_samplers(embedded, folder, call, draw, report_of, name):
    (model,) = call("DualCacheRecord", model=embedded, name="other", runs=4)
    for seed, caption in enumerate(CAPTIONS[:4]):
        draw(model, caption, seed, sampler=name)
    plans, _ = call("DualCacheFitPlan", model=embedded, name="other", calls="6")
    (fast,) = call("DualCacheUseLearnedPlan", model=embedded, speedup=1.7, plans=plans)
    plain, ours = draw(embedded, CAPTIONS[4], 9, sampler=name), draw(fast, CAPTIONS[4], 9, sampler=name)
    assert report_of(fast).totals()["full"] == 6
    assert error(ours, plain) < error(draw(embedded, CAPTIONS[4], 9, sampler=name, steps=6), plain)


def test_what_is_not_recorded_says_why(embedded, folder, call, draw, told, cached):
    (model,) = call("DualCacheRecord", model=embedded, name="shapes", runs=1)
    for options, why in (
        ({"sampler": "euler_ancestral"}, "adds noise"),
        ({"sampler": "dpmpp_2m_cfg_pp"}, "changes guidance"),
    ):
        assert torch.equal(draw(model, **options), draw(embedded, **options))
        assert why in told[-1]
    draw(cached(model, "FA" * 5))
    assert "Dual Cache is on this model too" in told[-1]
    draw(model)
    assert told[-1].startswith("Recorded 1 of 1 runs for shapes") and "Run Fit Plan next" in told[-1]
    draw(model)
    assert "1 runs are there already" in told[-1]
    (again,) = call("DualCacheRecord", model=embedded, name="shapes", runs=2)
    draw(again, cfg=1.0)
    assert "of another kind" in told[-1]
    assert [p.name for p in folder.iterdir()] == ["shapes.runs"] and len(
        list((folder / "shapes.runs").iterdir())
    ) == 1


def test_a_full_disk_costs_the_recording_alone(embedded, folder, call, draw, told, part, monkeypatch):
    files = part("nodes.comfy.learned_files")
    monkeypatch.setattr(
        files, "save_file", lambda *a, **k: (_ for _ in ()).throw(OSError("No space left on device"))
    )
    (model,) = call("DualCacheRecord", model=embedded, name="shapes")
    assert torch.equal(draw(model), draw(embedded))
    assert told[-1] == "This run was not recorded: No space left on device."
    assert list((folder / "shapes.runs").iterdir()) == []


def test_foreign_and_broken_recordings_are_named(embedded, folder, call):
    with pytest.raises(ValueError, match="no run is recorded under the name shapes"):
        call("DualCacheFitPlan", model=embedded, name="shapes")
    (folder / "shapes.runs").mkdir()
    (folder / "shapes.runs" / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="x.safetensors is no recorded run"):
        call("DualCacheFitPlan", model=embedded, name="shapes")
    (folder / "broken.plans.json").write_text("{")
    with pytest.raises(ValueError, match="broken.plans.json holds no learned plans: it is not valid JSON"):
        call("DualCacheLearnedSampler", name="broken.plans.json")
    with pytest.raises(ValueError, match="name must be the name of a file"):
        call("DualCacheRecord", model=embedded, name="../up")


@pytest.mark.parametrize("calls", ["", "ten", "5, -1", "0", "99"])
def test_wrong_numbers_of_calls_are_named(plans, embedded, call, calls):
    with pytest.raises(ValueError, match="calls must"):
        call("DualCacheFitPlan", model=embedded, name="shapes", calls=calls)


def test_conditioning_comes_back_as_it_was(part, folder):
    files = part("nodes.comfy.learned_files")
    conds = files.portable(
        {
            "positive": [
                {
                    "cross_attn": torch.ones(1, 2, 3),
                    "guidance": 3.5,
                    "reference_latents": [torch.zeros(1, 4)],
                    "uuid": 1,
                }
            ]
        }
    )
    trajectory = part("cache_core.learned.reference").Trajectory(
        (1.0, 0.0), [torch.ones(1, 2), torch.zeros(1, 2)], [torch.ones(1, 2)]
    )
    path = files.save(
        "x", files.Recorded(trajectory, {"model": "m", "area": 4}, 1.0, "euler", conds, None, 3)
    )
    back = files.load(path)
    assert json.dumps(back.identity) == '{"model": "m", "area": 4}' and back.seed == 3
    (entry,) = back.conds["positive"]
    assert torch.equal(entry["cross_attn"], torch.ones(1, 2, 3)) and entry["guidance"] == 3.5
    assert torch.equal(entry["reference_latents"][0], torch.zeros(1, 4)) and set(back.conds) == {"positive"}
    with pytest.raises(ValueError, match="control, which cannot be kept"):
        files.portable({"positive": [{"control": object()}]})
