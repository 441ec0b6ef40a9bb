"""Profiles inside ComfyUI: runs are recorded without a change, other runs are refused, and a plan takes its
forecast along."""

import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

STEPS = 12


@pytest.fixture
def folder(part, monkeypatch, tmp_path):
    """A models folder of its own."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "cache_profiles", ([str(tmp_path)], set()))
    return tmp_path


@pytest.fixture(scope="module")
def call(part):
    """`call("PlanCache", profile=...)`: runs a node of nodes/profiles.py; gives its outputs."""
    nodes = {n.GET_SCHEMA().node_id: n for n in part("nodes").NODES}

    def run(node, /, **inputs):
        clone = type(node, (nodes[node],), {"hidden": SimpleNamespace(unique_id=None)})
        return clone.EXECUTE_NORMALIZED(**inputs).result

    return run


@pytest.fixture(scope="module")
def recording(build_flux, call, sample, tmp_path_factory):
    """The file of a profile of three runs of a tiny FLUX, recorded once."""
    import folder_paths

    flux, path = build_flux(), tmp_path_factory.mktemp("recording")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(folder_paths.folder_names_and_paths, "cache_profiles", ([str(path)], set()))
        (model,) = call("DualCacheProfileModel", model=flux, name="tiny")
        for seed in range(3):
            assert torch.equal(sample(model, steps=STEPS, seed=seed), sample(flux, steps=STEPS, seed=seed))
    (file,) = path.iterdir()
    return file


@pytest.fixture
def recorded(recording, folder, call):
    """That profile, in the folder of the test."""
    shutil.copy(recording, folder)
    return call("LoadCacheProfile", name="tiny.profile.safetensors")[0]


def test_runs_are_recorded_one_after_the_other(recorded, folder, shims, flux):
    assert recorded.grams.shape == (3, STEPS, STEPS)
    assert recorded.identity["model"].startswith("Flux ") and recorded.identity["sampler"] == "sample_euler"
    assert [p.name for p in folder.iterdir()] == ["tiny.profile.safetensors"] and shims(flux) == []


def test_a_run_of_another_kind_is_refused_and_its_picture_kept(
    recorded, flux, call, sample, report_of, folder
):
    before = (folder / "tiny.profile.safetensors").read_bytes()
    (model,) = call("DualCacheProfileModel", model=flux, name="tiny")
    for options, why in (
        ({"steps": 8}, "the run has 8 steps, the profile 12"),
        ({"size": 12}, "resolution"),
        ({"sampler": "dpmpp_2m"}, "sampler"),
        ({"sampler": "heun"}, "one evaluation per step"),
    ):
        options = {"steps": STEPS, **options}
        assert torch.equal(sample(model, **options), sample(flux, **options))
        said = " ".join(report_of(model).messages)
        assert "was not added to tiny.profile.safetensors" in said and why in said
    assert (folder / "tiny.profile.safetensors").read_bytes() == before


def test_a_plan_takes_its_forecast_along(recorded, flux, call, cached, sample, ran, report_of, part):
    schedule, text = call("PlanCache", profile=recorded, target="speed-up", speedup=3.0)
    assert schedule.kinds.count("F") == 4 and schedule.kinds[0] == "F" and "4 full of 12 steps" in text
    settings = part("cache_core.recipes").from_preset("balanced", schedule)
    linear = sample(cached(flux, schedule.kinds, preset="balanced"), steps=STEPS)
    solved = part("nodes.comfy.patching").patch(
        flux, "dual_cache", part("nodes.comfy.patching").CacheRequest(settings)
    )
    plain = sample(flux, steps=STEPS)
    found = sample(solved, steps=STEPS)
    assert ran(solved) == schedule.kinds and report_of(solved).predictor == "table"
    assert not torch.equal(found, linear) and not torch.equal(found, plain)
    again = part("cache_core.schedule.plan").CacheSchedule.from_json(schedule.to_json())
    assert again == schedule


def test_a_plan_at_another_step_count_says_so_and_falls_back(recorded, flux, sample, report_of, call, part):
    schedule, _ = call("PlanCache", profile=recorded, target="speed-up", speedup=2.0)
    host = part("nodes.comfy.patching")
    model = host.patch(
        flux, host.KEY, host.CacheRequest(part("cache_core.recipes").from_preset("balanced", schedule))
    )
    sample(model, steps=9)
    assert (
        "The forecast was solved for 12 steps, and this run has 9; using a linear forecast instead. "
        "Make a plan for 9 steps." in report_of(model).messages
    )


def test_a_plan_that_cannot_be_trusted_says_so(part, call):
    embedded = call("LoadCacheProfile", name="embedded-30-steps.profile.safetensors")[0]
    for speedup, warned in ((2.0, False), (6.0, True)):
        text = call("PlanCache", profile=embedded, target="speed-up", speedup=speedup)[1]
        assert ("Expect more than that" in text) is warned


def test_an_error_is_reached_with_the_fewest_steps(recorded, call):
    loose, _ = call("PlanCache", profile=recorded, target="error", error=1.0)
    tight, text = call("PlanCache", profile=recorded, target="error", error=1e-9)
    assert loose.kinds.count("F") == 1 and tight.kinds == "F" * STEPS and "not reachable" in text


def test_what_cannot_be_reached_is_said(recorded, call):
    schedule, text = call("PlanCache", profile=recorded, target="speed-up", speedup=10.0, warmup=3)
    assert (
        schedule.kinds.count("F") == 3
        and "A speed-up of 10 is not reachable with 3 full steps at the beginning; nearest is 4." in text
    )


def test_other_noise_levels_adapt_the_profile(recorded, call):
    sigmas = torch.linspace(1, 0, 17)
    schedule, text = call("PlanCache", profile=recorded, sigmas=sigmas, target="speed-up", speedup=2.0)
    assert schedule.steps == 16 and "recorded at 12 steps and adapted to 16" in text
    with pytest.raises(ValueError, match="12 recorded steps where the run has 30, too few"):
        call("PlanCache", profile=recorded, sigmas=torch.linspace(1, 0, 31))


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", "", ".hidden", "con", "NUL.profile", "x" * 300, "a\0b"]
)
def test_names_that_leave_the_folder_are_refused(name, part, folder):
    for new in (True, False):
        with pytest.raises(ValueError, match="name must be the name of a file"):
            part("nodes.comfy.profile_files").path_of(name, new=new)


def test_links_are_not_followed(part, folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.safetensors"
    outside.write_bytes(b"x")
    (folder / "link.safetensors").symlink_to(outside)
    with pytest.raises(ValueError, match="There is no profile named link.safetensors"):
        part("nodes.comfy.profile_files").path_of("link.safetensors")


# --- ERTACache -------------------------------------------------------------------------------------


@pytest.fixture
def sampled(condition):
    """`sampled(model, sigmas)`: a run at given noise levels, as SamplerCustom makes it."""
    import comfy.sample
    import comfy.samplers

    def run(model, sigmas, positive=None, size=8):
        latent, sampler = torch.zeros(1, 16, size, size), comfy.samplers.sampler_object("euler")
        positive = positive or condition(1)
        return comfy.sample.sample_custom(
            model,
            comfy.sample.prepare_noise(latent, 0),
            1.0,
            sampler,
            sigmas,
            positive,
            positive,
            latent,
            disable_pbar=True,
            seed=0,
        )

    return run


@pytest.mark.parametrize("parts", [(True, True), (False, True), (True, False), (False, False)], ids=str)
def test_an_erta_plan_runs_at_its_noise_levels(recorded, flux, call, part, sampled, ran, report_of, parts):
    lengths, rectifier = parts
    schedule, sigmas, text = call(
        "ERTACachePlan", profile=recorded, speedup=3.0, step_lengths=lengths, rectifier=rectifier
    )
    assert (
        1 < schedule.kinds.count("F") <= 4 and len(sigmas) == schedule.steps + 1 and schedule.steps <= STEPS
    )
    assert (sigmas[0], sigmas[-1]) == (recorded.sigmas[0], recorded.sigmas[-1]) and bool(
        (sigmas.diff() < 0).all()
    )
    same = len(sigmas) == STEPS + 1 and torch.allclose(sigmas, torch.tensor(recorded.sigmas))
    assert same is not lengths and ("connect sigmas to the sampler" in text) is lengths
    host = part("nodes.comfy.patching")
    model = host.patch(
        flux, host.KEY, host.CacheRequest(part("cache_core.recipes").from_preset("balanced", schedule))
    )
    found = sampled(model, sigmas)
    assert ran(model) == schedule.kinds and report_of(model).messages == [] and torch.isfinite(found).all()
    if "A" in schedule.kinds:
        assert report_of(model).predictor == ("rectified residual" if rectifier else "residual")
        assert not torch.equal(found, sampled(flux, sigmas))


def test_the_embedded_models_own_profile_serves_erta_too(part, call, embedded, sampled):
    own = call("LoadCacheProfile", name="embedded-30-steps.profile.safetensors")[0]
    schedule, sigmas, text = call(
        "ERTACachePlan", profile=own, target="threshold", threshold=0.16, step_lengths=False
    )
    assert 8 <= schedule.kinds.count("F") <= 14 and len(sigmas) == 31 and "Threshold 0.16" in text
    host, (model, caption) = part("nodes.comfy.patching"), embedded
    cached = host.patch(
        model, host.KEY, host.CacheRequest(part("cache_core.recipes").from_preset("balanced", schedule))
    )
    bare, _, _ = call(
        "ERTACachePlan", profile=own, target="threshold", threshold=0.16, step_lengths=False, rectifier=False
    )
    worse = host.patch(
        model, host.KEY, host.CacheRequest(part("cache_core.recipes").from_preset("balanced", bare))
    )
    plain, rectified, reused = (sampled(m, sigmas, caption, 32) for m in (model, cached, worse))
    assert (rectified - plain).norm() < (reused - plain).norm()  # what is taken off is what was wrong
    few, levels, text = call("ERTACachePlan", profile=own, speedup=3.0)
    assert few.kinds == "F" * 10 and len(levels) == 11 and "this is sampling with fewer steps" in text


def test_a_profile_without_the_path_makes_no_erta_plan(recorded, call):
    from dataclasses import replace

    with pytest.raises(ValueError, match="does not hold the model's inputs and outputs; record it anew"):
        call("ERTACachePlan", profile=replace(recorded, path=None))
    with pytest.raises(ValueError, match="sigmas holds no step to plan"):
        call("ERTACachePlan", profile=recorded, sigmas=torch.tensor([1.0]))


# --- the preset that plans by itself ----------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded(part):
    """The embedded model as its loader node gives it, and a conditioning."""
    module = part("nodes.demo_model")
    caption = module.DemoCaption.execute("a large red heart center on a checkered white background").result[0]
    return module.DemoModel.execute().result[0], caption


def test_the_embedded_models_own_profile_is_found_and_used(embedded, part, sample, ran, report_of, cached):
    model, caption = embedded
    planned = cached(model, preset="planned")
    options = {"positive": caption, "negative": caption, "steps": 30, "size": 32, "cfg": 2.0}
    out = sample(planned, **options)
    report = report_of(planned)
    assert "Planned from embedded-30-steps.profile.safetensors." in report.messages
    assert report.predictor == "table" and ran(planned).count("F") == 10
    plain, fewer = sample(model, **options), sample(model, **{**options, "steps": 10})
    assert (out - plain).norm() < (fewer - plain).norm()  # closer than as many calls without caching


def test_a_profile_recorded_a_little_otherwise_is_used_and_said(embedded, sample, report_of, cached):
    model, caption = embedded
    planned = cached(model, preset="planned")
    sample(planned, positive=caption, negative=caption, steps=12, size=24, cfg=1.0)
    said = " ".join(report_of(planned).messages)
    assert (
        "It was recorded otherwise: guidance is 1.0, the profile's 2.0; resolution is [24, 24], the "
        "profile's [32, 32]; " in said
    )
    assert "the run has 12 steps, the profile 30" in said


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"size": 16}, "recorded at another size"),
        ({"sampler": "dpmpp_2m"}, "recorded with sample_euler, the run uses sample_dpmpp_2m"),
        ({"steps": 50}, "has 30 recorded steps where the run has 50"),
        ({"cfg": 4.0}, "recorded at guidance 2, the run has 4"),
    ],
    ids=str,
)
def test_a_profile_too_far_off_is_not_used(embedded, sample, report_of, ran, cached, options, why):
    model, caption = embedded
    planned, balanced = cached(model, preset="planned"), cached(model, preset="balanced")
    options = {"positive": caption, "negative": caption, "steps": 12, "size": 32, **options}
    out, own = sample(planned, **options), sample(balanced, **options)
    said = " ".join(report_of(planned).messages)
    assert (
        "No profile fits this run, so the preset's own plan runs. embedded-30-steps.profile.safetensors: "
        in said
        and why in said
    )
    assert ran(planned) == ran(balanced) and torch.equal(out, own)


def test_without_a_profile_the_presets_own_plan_runs(flux, sample, report_of, ran, cached, folder):
    model = cached(flux, preset="planned")
    sample(model, steps=STEPS)
    assert ran(model) == "FFFAAFAAFAAF"
    assert (
        "No profile fits this run, so the preset's own plan runs. Profile Model records one."
        in report_of(model).messages
    )


def test_a_broken_file_in_the_folder_harms_nothing(flux, sample, report_of, cached, folder):
    (folder / "broken.safetensors").write_bytes(b"no")
    model = cached(flux, preset="planned")
    assert torch.isfinite(sample(model, steps=STEPS)).all()
    assert any(
        "No profile fits" in m and "broken.safetensors: broken.safetensors is not a profile" in m
        for m in report_of(model).messages
    )


def test_a_profile_that_cannot_be_written_costs_no_picture(
    flux, folder, call, sample, report_of, part, monkeypatch
):
    def fails(*args, **kwargs):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(part("cache_core.calibration.profile"), "save_file", fails)
    (model,) = call("DualCacheProfileModel", model=flux, name="tiny")
    assert torch.equal(sample(model, steps=STEPS), sample(flux, steps=STEPS))
    assert any(
        "was not added to tiny.profile.safetensors: " in m and "could not be written" in m
        for m in report_of(model).messages
    )


def test_a_plan_at_other_noise_levels_says_so_and_falls_back(recorded, flux, sample, report_of, call, part):
    schedule, _ = call("PlanCache", profile=recorded, target="speed-up", speedup=2.0)
    host = part("nodes.comfy.patching")
    model = host.patch(
        flux, host.KEY, host.CacheRequest(part("cache_core.recipes").from_preset("balanced", schedule))
    )
    sample(model, steps=STEPS, scheduler="karras")
    assert any(
        m.startswith("The forecast was solved for other noise levels; using a linear forecast")
        for m in report_of(model).messages
    )


def test_a_scheduler_without_steps_is_refused_in_words(recorded, call):
    with pytest.raises(ValueError, match="sigmas holds no step to plan"):
        call("PlanCache", profile=recorded, sigmas=torch.tensor([]))


def test_a_model_keeps_its_profile_whatever_is_patched_into_it(
    recorded, flux, cached, sample, report_of, part
):
    """ComfyUI leaves a LoRA in the weights after a run, and compiled blocks in their places."""
    name_of, known = part("nodes.comfy.identity").name_of, recorded.identity["model"]
    weights = {
        f"diffusion_model.{n}": w
        for n, w in flux.get_model_object("diffusion_model").named_parameters()
        if w.ndim > 1
    }
    patched = flux.clone()
    patched.add_patches(
        {
            key: (torch.randn(w.shape, generator=torch.Generator().manual_seed(0)),)
            for key, w in weights.items()
        }
    )
    patched.add_object_patch(
        "diffusion_model.double_blocks.0",
        torch.compile(flux.get_model_object("diffusion_model.double_blocks.0"), backend="eager"),
    )
    planned, said = cached(patched, preset="planned", speedup=2.0), []
    for model in (planned, planned, flux):
        assert name_of(model) == known
        sample(model, steps=STEPS)
        assert name_of(model) == known
        if model is planned:
            said.append(report_of(model).messages[0])
    assert said == ["Planned from tiny.profile.safetensors."] * 2


ADD = """
import importlib, sys, types
from pathlib import Path

import torch

root = Path(sys.argv[1])
for name in ("pack", "pack.nodes", "pack.nodes.comfy"):  # without their __init__, which load the nodes
    sys.modules[name] = made = types.ModuleType(name)
    made.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
files = importlib.import_module("pack.nodes.comfy.profile_files")
profile = importlib.import_module("pack.cache_core.calibration.profile").Profile


class Recorded:
    def profile(self, levels, identity, prompt):
        return profile(torch.eye(3, dtype=torch.float64)[None], tuple(levels), identity)


for _ in range(8):
    said = files.Recording(Path(sys.argv[2])).keep(Recorded(), [1.0, 0.7, 0.4, 0.0], {"model": "x"})
    assert "now holds" in said, said
"""


def test_two_servers_that_record_into_one_profile_lose_no_run(part, tmp_path):
    """Each of three processes adds eight runs at once."""
    root, path = part("nodes.comfy.profile_files").OWN_PROFILES.parents[1], tmp_path / "x.safetensors"
    running = [subprocess.Popen([sys.executable, "-c", ADD, str(root), str(path)]) for _ in range(3)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    assert len(part("cache_core.calibration.profile").Profile.load(path).grams) == 24
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_process_that_ended_while_it_wrote_locks_nothing(part, tmp_path):
    lock, path = part("nodes.comfy.file_lock"), tmp_path / "x.safetensors"
    (tmp_path / "x.safetensors.lock").touch()  # as a crash leaves it
    with (
        lock.locked(path, patience=0.0),
        pytest.raises(OSError, match="another process has been writing to x.safetensors"),
        lock.locked(path, patience=0.0),
    ):
        raise AssertionError("the lock was given twice")
    assert not list(tmp_path.iterdir())


# --- guidance that another node changes ---------------------------------------------------------------


def cfg_override(model):
    """As ComfyUI's CFG Override sets guidance 4 for all steps."""
    from comfy.patcher_extension import WrappersMP

    def wrapper(executor, *args, **kwargs):
        guider, saved = executor.class_obj, executor.class_obj.cfg
        guider.cfg = 4.0
        try:
            return executor(*args, **kwargs)
        finally:
            guider.cfg = saved

    model.add_wrapper(WrappersMP.PREDICT_NOISE, wrapper)


OVERRIDES = {
    "CFG Override": cfg_override,
    "pre-CFG function": lambda m: m.set_model_sampler_pre_cfg_function(
        lambda args: args["conds_out"], disable_cfg1_optimization=True
    ),
    "post-CFG function": lambda m: m.set_model_sampler_post_cfg_function(lambda args: args["denoised"]),
    "CFG function": lambda m: m.set_model_sampler_cfg_function(lambda args: args["cond"] * 4),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_profile_is_refused_where_another_node_may_change_guidance(
    recorded, flux, cached, sample, report_of, ran, name
):
    model, balanced = cached(flux, preset="planned"), cached(flux, preset="balanced")
    sample(model, steps=STEPS)
    assert any(m.startswith("Planned from tiny") for m in report_of(model).messages)
    for patched in (model, balanced):
        OVERRIDES[name](patched)
        sample(patched, steps=STEPS)
    assert any("the guidance that acts cannot be known" in m for m in report_of(model).messages)
    assert not any(m.startswith("Planned") for m in report_of(model).messages)


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_run_whose_guidance_another_node_may_change_is_not_recorded(
    recorded, flux, call, sample, report_of, folder, name
):
    before = (folder / "tiny.profile.safetensors").read_bytes()
    (model,) = call("DualCacheProfileModel", model=flux, name="tiny")
    OVERRIDES[name](model)
    assert torch.isfinite(sample(model, steps=STEPS)).all()
    assert (folder / "tiny.profile.safetensors").read_bytes() == before
    assert any("was not added" in m and "cannot be known" in m for m in report_of(model).messages)


def test_guidance_of_comfyuis_own_guiders(part, flux):
    import comfy.samplers
    from comfy_extras import nodes_custom_sampler as custom

    acting, seen = part("nodes.comfy.guidance").acting_guidance, {}
    for name in ("Guider_Basic", "Guider_DualCFG", "Guider_DualModel"):
        if hasattr(custom, name):  # the last one is new
            seen[name] = getattr(custom, name)(*[flux] * (1 + (name == "Guider_DualModel")))
    seen["CFGGuider"] = comfy.samplers.CFGGuider(flux)
    for name, guider in seen.items():
        cfg, other = acting(guider)
        assert cfg == 1.0 and bool(other) == (name == "Guider_DualCFG"), name
