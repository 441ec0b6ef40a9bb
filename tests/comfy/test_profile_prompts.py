"""Profile Prompts records a list of prompts in one run, goes on where it has stopped, and mixes nothing."""

import gc
import hashlib
import shutil
import weakref
from types import SimpleNamespace

import comfy.model_management
import pytest
import torch

PROMPTS = ["a cat", "a dog", "a bird"]
STEPS = 5


@pytest.fixture
def folder(part, monkeypatch, tmp_path):
    """A models folder of its own."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "cache_profiles", ([str(tmp_path)], set()))
    return tmp_path


class Clip:
    """A text encoder that knows how often it was asked."""

    def __init__(self, condition):
        self.condition, self.asked = condition, []

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, tokens):
        self.asked.append(tokens)
        return self.condition(int(hashlib.sha256(tokens.encode()).hexdigest()[:6], 16))


@pytest.fixture
def clip(condition):
    return Clip(condition)


@pytest.fixture
def record(part, flux, clip, folder):
    """`record(prompts, **inputs)`: runs the node on a tiny FLUX; gives its profile and text."""
    node = part("nodes.profile_prompts").ProfilePrompts
    clone = type("clone", (node,), {"hidden": SimpleNamespace(unique_id=None)})

    def run(prompts=PROMPTS, **inputs):
        given = {
            "model": flux,
            "clip": clip,
            "latent_image": {"samples": torch.zeros(1, 16, 8, 8)},
            "name": "tiny",
            "steps": STEPS,
        }
        return clone.EXECUTE_NORMALIZED(prompts="\n".join(prompts), **{**given, **inputs}).result

    return run


def test_a_list_is_recorded_in_one_run(record, folder, clip, flux, shims, sample):
    before = sample(flux)
    profile, text = record([*PROMPTS, "", "  a cat "])
    assert profile.grams.shape == (3, STEPS, STEPS) and profile.path.shape == (
        3,
        2 * STEPS + 1,
        2 * STEPS + 1,
    )
    assert len(set(profile.prompts)) == 3 and not any("cat" in mark for mark in profile.prompts)
    assert "Recorded 3 of 3 prompts" in text and [p.name for p in folder.iterdir()] == [
        "tiny.profile.safetensors"
    ]
    assert clip.asked == ["", *PROMPTS] and shims(flux) == [] and torch.equal(sample(flux), before)
    assert not torch.allclose(profile.path[0], profile.path[1])


def test_runs_are_those_of_plain_sampling(record, part, folder, flux, condition, sample):
    """The same prompt and seed by KSampler and Profile Model tell the same."""
    profile, _ = record(["a cat"], seed=7)
    host, files = part("nodes.comfy.patching"), part("nodes.comfy.profile_files")
    model = host.patch(
        flux,
        host.KEY,
        part("nodes.comfy.requests").ProfileRequest(files.Recording(folder / "other.safetensors")),
    )
    seed = 7 + int(hashlib.sha256(b"a cat").hexdigest()[:8], 16)
    positive = condition(int(hashlib.sha256(b"a cat").hexdigest()[:6], 16))
    assert torch.equal(
        sample(model, positive, positive, steps=STEPS, seed=seed),
        sample(flux, positive, positive, steps=STEPS, seed=seed),
    )
    assert torch.equal(files.read(folder / "other.safetensors").grams, profile.grams)


def test_what_is_there_is_not_sampled_again(record, clip, folder):
    first, _ = record(PROMPTS[:2])
    clip.asked.clear()
    profile, text = record()
    assert (
        clip.asked == ["", "a bird"]
        and torch.equal(profile.grams[:2], first.grams)
        and len(profile.grams) == 3
    )
    clip.asked.clear()
    same, text = record()
    assert clip.asked == [] and "Recorded 0 of 3" in text and torch.equal(same.grams, profile.grams)
    other, _ = record(PROMPTS[:1], seed=5)  # other noise is another run
    assert len(other.grams) == 4
    alone, _ = record(["a bird"], name="alone")  # whatever its place in the list
    assert torch.equal(alone.grams[0], profile.grams[2])


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ({"steps": 8}, "the run has 8 steps, the profile 5"),
        ({"cfg": 2.0}, "guidance is 2.0, the profile's 1.0"),
        ({"latent_image": {"samples": torch.zeros(1, 16, 12, 12)}}, "resolution is"),
        ({"sampler_name": "dpmpp_2m"}, "sampler is"),
        ({"scheduler": "karras"}, "the noise levels are others"),
    ],
    ids=str,
)
def test_other_settings_are_refused_before_anything_is_sampled(
    record, folder, inputs, why, monkeypatch, flux
):
    record(PROMPTS[:1])
    before, calls = (folder / "tiny.profile.safetensors").read_bytes(), []
    forward = type(flux.model.diffusion_model).forward
    monkeypatch.setattr(
        type(flux.model.diffusion_model), "forward", lambda *a, **k: calls.append(1) or forward(*a, **k)
    )
    with pytest.raises(
        ValueError,
        match="tiny.profile.safetensors was recorded otherwise, and nothing is added to it: .*" + why,
    ):
        record(PROMPTS[1:], **inputs)
    with pytest.raises(ValueError, match=why):  # nor where all prompts are there
        record(PROMPTS[:1], **inputs)
    assert not calls and (folder / "tiny.profile.safetensors").read_bytes() == before
    assert record()[0].grams.shape[0] == 3


def test_another_model_is_refused(record, build_flux):
    record(PROMPTS[:1])
    with pytest.raises(ValueError, match="was recorded otherwise, and nothing is added to it: model is"):
        record(PROMPTS[:1], model=build_flux(seed=1))


def test_an_interrupt_keeps_what_is_done(record, part, folder, flux, monkeypatch, shims):
    forward, calls = type(flux.model.diffusion_model).forward, []

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == STEPS + 3:
            raise comfy.model_management.InterruptProcessingException
        return forward(*args, **kwargs)

    monkeypatch.setattr(type(flux.model.diffusion_model), "forward", stopping)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        record()
    assert (
        len(part("nodes.comfy.profile_files").read(folder / "tiny.profile.safetensors").prompts) == 1
        and shims(flux) == []
    )
    assert "Recorded 2 of 3 prompts" in record()[1]


def test_what_cannot_be_recorded_is_an_error(record, folder):
    with pytest.raises(ValueError, match="prompts is empty"):
        record(["", "  "])
    with pytest.raises(ValueError, match="name must be the name of a file"):
        record(name="../x")
    with pytest.raises(
        ValueError, match="was not added to tiny.profile.safetensors: .*one evaluation per step"
    ):
        record(sampler_name="heun")
    (folder / "tiny.profile.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="tiny.profile.safetensors is not a profile"):
        record()
    assert (folder / "tiny.profile.safetensors").read_bytes() == b"no"


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_modules_and_clusters_are_recorded_too_and_plan(record, part, cfg):
    profile, _ = record(module_tokens=4, clusters=3, cfg=cfg)
    branches = 2 if cfg > 1 else 1
    assert len(profile.grams) == 3 * branches
    assert profile.clusters.grams.shape == (3 * branches, 3, STEPS, STEPS)
    assert list(profile.modules) == [
        "double.0.attn",
        "double.0.mlp",
        "double.1.attn",
        "double.1.mlp",
        "single.0",
        "single.1",
    ]
    assert {len(g) for g in profile.modules.values()} == {3 * branches}
    assert torch.allclose(profile.clusters.grams.sum(1), profile.grams, rtol=1e-5)
    planner = part("nodes.profiles").PlanCache
    clone = type("clone", (planner,), {"hidden": SimpleNamespace(unique_id=None)})
    schedule, _ = clone.EXECUTE_NORMALIZED(profile=profile, speedup=2.0, by_cluster=True).result
    assert '"by": "cluster"' in schedule.forecast


def test_a_plan_by_cluster_runs(record, part, flux, sample, ran, report_of, clip):
    profile, _ = record(clusters=2)
    planner = type("clone", (part("nodes.profiles").PlanCache,), {"hidden": SimpleNamespace(unique_id=None)})
    schedule, _ = planner.EXECUTE_NORMALIZED(profile=profile, speedup=2.0, by_cluster=True).result
    host = part("nodes.comfy.patching")
    model = host.patch(
        flux, host.KEY, host.CacheRequest(part("cache_core.recipes").from_preset("balanced", schedule))
    )
    assert torch.isfinite(sample(model, steps=STEPS)).all() and ran(model) == schedule.kinds
    assert report_of(model).predictor == "table by channel"
    whole, _ = record(name="whole")
    with pytest.raises(ValueError, match="holds no clusters of channels; record it with them"):
        planner.EXECUTE_NORMALIZED(profile=whole, by_cluster=True)


def test_modules_of_a_model_without_them_are_left_out_and_that_is_said(part, folder, models, record):
    files = part("nodes.comfy.profile_files")
    recorder = part("cache_core.calibration.recorder").Recorder(4)
    recorder.grams = lambda: torch.ones(1, 2, 2, dtype=torch.float64)
    recorder.tokens = recorder.clusters = lambda: None
    said = files.Recording(folder / "x.safetensors", tokens=4).keep(recorder, [1.0, 0.5, 0.0], {"model": "x"})
    assert "now holds 1 recorded runs" in said and said.endswith("Its modules are out of reach.")


def test_the_embedded_model_is_recorded_from_its_own_captions(part, folder, sample):
    module = part("nodes.demo_model")
    model, encoder = module.DemoModel.execute().result[0], module.DemoClip.execute().result[0]
    caption = "a large red heart center on a checkered white background"
    ((encoded, _),) = encoder.encode_from_tokens_scheduled(encoder.tokenize(caption))
    assert torch.equal(encoded, module.DemoCaption.execute(caption).result[0][0][0])
    clone = type(
        "clone", (part("nodes.profile_prompts").ProfilePrompts,), {"hidden": SimpleNamespace(unique_id=None)}
    )
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    profile, _ = clone.EXECUTE_NORMALIZED(
        model=model,
        clip=encoder,
        latent_image=latent,
        name="own",
        steps=4,
        prompts=caption + "\na small blue circle center",
    ).result
    assert profile.grams.shape == (2, 4, 4)


# --- files ----------------------------------------------------------------------------------------


def test_files_of_the_model_are_parsed_once_until_they_change(part, record, folder, monkeypatch):
    files, profile = part("nodes.comfy.profile_files"), part("cache_core.calibration.profile").Profile
    record(PROMPTS[:1])
    (folder / "broken.safetensors").write_bytes(b"no")
    parsed, load = [], profile.load
    monkeypatch.setattr(profile, "load", lambda path: parsed.append(path.name) or load(path))
    settings = part("cache_core.recipes").from_preset("planned")
    identity = dict(files.read(folder / "tiny.profile.safetensors").identity)
    files._kept.clear()
    for _ in range(3):
        files.planned(settings, identity, [1.0, 0.5, 0.0])
    assert parsed == ["tiny.profile.safetensors"]
    assert (
        "broken.safetensors is not a profile"
        in files.planned(settings, {**identity, "model": "another"}, [1.0, 0.5, 0.0])[1]
    )
    parsed.clear()
    record(PROMPTS[:2])
    files.planned(settings, identity, [1.0, 0.5, 0.0])
    assert (
        set(parsed) == {"tiny.profile.safetensors"}
        and len(files.read(folder / "tiny.profile.safetensors").grams) == 2
    )
    (folder / "tiny.profile.safetensors").unlink()
    with pytest.raises(ValueError, match="tiny.profile.safetensors is not there"):
        files.read(folder / "tiny.profile.safetensors")


def test_few_parsed_files_are_kept(part, record, folder):
    files, seen = part("nodes.comfy.profile_files"), []
    record(PROMPTS[:1])
    for i in range(5):
        shutil.copy(folder / "tiny.profile.safetensors", folder / f"{i}.safetensors")
        seen.append(weakref.ref(files.read(folder / f"{i}.safetensors")))
    gc.collect()
    assert [r() is not None for r in seen] == [False, False, True, True, True]
