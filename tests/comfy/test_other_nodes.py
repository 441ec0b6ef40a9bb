"""What nodes of others do to a model's options and to a run, on the tiny FLUX."""

import copy

import pytest
import torch

STEPS = 6


@pytest.fixture
def uncopyable(flux, monkeypatch):
    """The tiny FLUX; copying its diffusion model is an error."""

    def refuse(self, memo):
        raise AssertionError("the diffusion model was copied")

    monkeypatch.setattr(type(flux.model.diffusion_model), "__deepcopy__", refuse, raising=False)
    return flux


@pytest.mark.parametrize("copier", [copy.deepcopy, copy.copy], ids=["deepcopy", "copy"])
@pytest.mark.parametrize("preset", ["off", "balanced", "duca"])
@pytest.mark.parametrize("place", ["pre-CFG function", "model function wrapper"])
def test_options_that_other_nodes_copy_share_what_is_ours(
    part, uncopyable, cached, sample, ran, preset, place, copier
):
    """As nodes do that change the options of one evaluation."""
    requests, seen = part("nodes.comfy.requests"), []

    def look(options):
        copied = {key: copier(value) for key, value in options.items()}
        seen.append([options[k] is copied[k] for k in (requests.KEY, requests.RUN)])

    def before_cfg(args):
        look(args["model_options"]["transformer_options"])
        copier(args["model_options"])
        return args["conds_out"]

    def wrapper(apply, arguments):
        look(arguments["c"]["transformer_options"])
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    model = cached(uncopyable, preset=preset)
    plain = sample(model, steps=STEPS, cfg=3.0)
    if place == "pre-CFG function":
        model.set_model_sampler_pre_cfg_function(before_cfg)
    else:
        model.set_model_unet_function_wrapper(wrapper)
    assert torch.equal(sample(model, steps=STEPS, cfg=3.0), plain)
    assert len(seen) >= STEPS and all(all(same) for same in seen)


def test_a_recording_is_shared_by_copies_too(part, uncopyable, sample, tmp_path):
    requests, files = part("nodes.comfy.requests"), part("nodes.comfy.profile_files")
    path = tmp_path / "tiny.profile.safetensors"
    request = requests.ProfileRequest(files.Recording(path, tokens=2))
    model = part("nodes.comfy.patching").patch(uncopyable, requests.KEY, request)

    def wrapper(apply, arguments):
        copy.deepcopy(arguments["c"]["transformer_options"])
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    model.set_model_unet_function_wrapper(wrapper)
    sample(model, steps=STEPS, cfg=1.0)
    assert len(files.read(path).grams) == 1 and copy.deepcopy(request) is request


def test_what_holds_tensors_or_models_copies_to_itself(part, flux):
    recorder, controller = part("cache_core.calibration.recorder"), part("cache_core.controller")
    settings, requests = part("cache_core.config").CacheConfig(), part("nodes.comfy.requests")
    run = controller.Controller(settings, [1.0, 0.5, 0.0])
    for held in (
        run,
        recorder.Recorder(tokens=2),
        recorder.ModuleRecorder(2),
        recorder.PathRecorder(),
        requests.CacheRequest(settings),
        requests.CacheRequest(settings).box,
        requests.TokenRequest(None, 0.1, None, "frozen", 0),
        requests.Run(run, requests.CacheRequest(settings)),
    ):
        assert copy.deepcopy(held) is held and copy.copy(held) is held, type(held).__name__
