"""What touches ComfyUI's models and samplers: registers wrappers on a model patcher and tells the controller
what happens.

A node clones the patcher and stores immutable settings in it. State is made when sampling starts
(OUTER_SAMPLE) and gone when it ends, however it ends; nothing of a run stays on the model."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace

import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy.utils
import comfyui_version
import torch
from comfy.patcher_extension import WrappersMP

from ...cache_core.calibration.profile import fingerprint
from ...cache_core.config import Settings
from ...cache_core.controller import Controller
from ...cache_core.hooks import compilation as compiled
from ...cache_core.hooks.compilation import Compilation
from ...cache_core.hooks.module_replay import opened
from ...cache_core.models.families import find_family, unknown_families
from ...cache_core.report.diagnosis import PROFILE
from ...cache_core.report.run_metadata import keepsake
from ...cache_core.report.run_report import Report
from ...cache_core.schedule.sampler_traits import adds_noise, breaks, is_cfg_pp, stages_of
from ...cache_core.selectors.token_selection import Selector
from ..comfy import events, memory, metadata, profile_files
from ..report_box import ReportBox

log = logging.getLogger("dual_cache")
KEY = "dual_cache"
TOKENS = "dual_cache_tokens"
RUN = "dual_cache_run"
FRESH_NOISE = (
    "This sampler adds fresh noise at its steps, so the picture strays much further from the uncached "
    "one than with euler or "
    "dpmpp_2m, and visible grain may stay in it."
)
CFG_PP = (
    "CFG++ samplers enlarge what forecasts are off by, so the picture strays further from the "
    "uncached one than with euler."
)
HOST = f"ComfyUI {comfyui_version.__version__}"
OTHER_CACHES = {
    "easycache": "EasyCache or LazyCache",
    "rel_l1_thresh": "TeaCache",
    "magcache_thresh": "MagCache",
}
"""Other caches by a key that they leave in transformer_options or register a wrapper under."""
CACHE_WRAPPERS = {
    "ApplyFBCacheOnModel": "WaveSpeed's First Block Cache",
    **{name: name for name in ("TaylorSeer", "TeaCache", "MagCache")},
}
"""Other caches by how the class begins whose method made the model's function wrapper; only one such wrapper
can be on a model."""
COMPILED = "torch_compile_kwargs"
"""Where ComfyUI's torch.compile nodes leave what they were asked for."""
FORWARDS = ("forward", "_forward", "forward_orig")


@dataclass(frozen=True)
class CacheRequest:
    """What the Dual Cache node leaves in a model: the settings, the node to report to and the box for the
    report.

    memory: GB that caches may take, 0 for a share of what is free.
    """

    settings: Settings
    node_id: str | None = None
    box: ReportBox = field(default_factory=ReportBox)
    memory: float = 0.0


@dataclass(frozen=True)
class ProfileRequest:
    """What the Profile Model node leaves in a model: what to record, the node to report to and the box for
    the report."""

    recording: profile_files.Recording
    node_id: str | None = None
    box: ReportBox = field(default_factory=ReportBox)


@dataclass(frozen=True)
class TokenRequest:
    """What the V-Cache Attention Patch leaves in a model: how conservative steps choose their tokens."""

    selector: Selector
    ratio: float | None
    text_ratio: float | None
    attention: str
    seed: int


class _Run:
    """A running controller in transformer_options."""

    def __init__(self, controller: Controller, request: CacheRequest):
        self.controller, self.request, self.sent = controller, request, 0


def patch(model, key: str, request) -> object:
    """A clone of the model that carries `request` and our wrappers; patching again replaces the earlier
    request."""
    model = model.clone()
    model.model_options.setdefault("transformer_options", {})[key] = request
    wrappers = {
        WrappersMP.OUTER_SAMPLE: _outer_sample,
        WrappersMP.PREPARE_SAMPLING: _prepare_sampling,
        WrappersMP.PREDICT_NOISE: _predict_noise,
        WrappersMP.APPLY_MODEL: _apply_model,
    }
    for kind, wrapper in wrappers.items():
        model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(kind, KEY, wrapper)
    return model


def request_of(model) -> CacheRequest | None:
    """The Dual Cache request a model carries, or None."""
    return model.model_options.get("transformer_options", {}).get(KEY)


def _settings(options: dict, model) -> Settings:
    """What to do on this model: the settings of its family, with the token choice of V-Cache Attention
    Patch."""
    family, tokens = find_family(model), options.get(TOKENS)
    settings = options[KEY].settings.for_family(family.name if family else "")
    if tokens is None:
        return settings
    return replace(
        settings,
        selector=tokens.selector,
        ratio=tokens.ratio,
        text_ratio=tokens.text_ratio,
        attention=tokens.attention,
        seed=tokens.seed,
    )


def _conflict(model_options: dict) -> str | None:
    """Why caching stands aside for this run, or None."""
    options = model_options.get("transformer_options", {})
    wrappers = {key for by_key in options.get("wrappers", {}).values() for key in by_key}
    for key, name in OTHER_CACHES.items():
        if key in options or key in wrappers:
            return f"{name} is on this model too; two caches would count each other's skips"
    wrapper = getattr(model_options.get("model_function_wrapper"), "__qualname__", "")
    for start, name in CACHE_WRAPPERS.items():
        if wrapper.startswith(start):
            return f"{name} is on this model too; two caches would count each other's skips"
    if "multigpu_clones" in model_options:
        return "the model is split over several GPUs, which Dual Cache does not support yet"
    return None


def _outer_sample(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    guider = executor.class_obj
    options = guider.model_options.get("transformer_options", {})
    request = options.get(KEY)
    if request is None:
        if TOKENS in options:
            log.warning(
                "V-Cache Attention Patch chooses tokens for Dual Cache; without a Dual Cache node "
                "nothing is cached."
            )
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    levels = sigmas.tolist()
    if len(levels) < 2:
        samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        if isinstance(request, CacheRequest):
            request.box.add(nothing_sampled(request.settings), samples)
        return samples
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    model = guider.model_patcher.model
    flow = isinstance(getattr(model, "model_sampling", None), comfy.model_sampling.CONST)
    recorder, said, identity = None, None, {}
    if isinstance(request, ProfileRequest):
        identity = _identity(guider, latent_image, name)
        recorder = request.recording.recorder(levels, identity)
        settings = Settings(method=PROFILE, observer=recorder)
    else:
        settings = _settings(options, _plain(model.diffusion_model))
    conflict = _conflict(guider.model_options) or (None if recorder else breaks(name))
    if settings.speedup is not None and conflict is None:
        settings, said = profile_files.planned(settings, _identity(guider, latent_image, name), levels)
        settings = replace(settings, speedup=None)  # what runs is decided, also for whoever repeats it
    controller = Controller(
        settings, levels, stages_of(name, len(levels) - 1), conflict, flow=flow, host=HOST
    )
    if controller.skips and adds_noise(name):
        controller.say(FRESH_NOISE)
    elif controller.skips and is_cfg_pp(name):
        controller.say(CFG_PP)
    strangers = None if recorder else unknown_families(options[KEY].settings.families)
    for sentence in filter(None, (said, strangers)):
        controller.say(sentence)
    controller.compilation = _compilation(model.diffusion_model, guider.model_options.get(COMPILED))
    run = _Run(controller, request)
    if not recorder:
        expected = memory.announce(
            controller, guider, (kwargs.get("latent_shapes") or [latent_image.shape])[0]
        )
        if expected:
            log.info("Dual Cache: %s", expected)
            events.send(
                "dual_cache.expect", {"node": request.node_id, "steps": controller.steps, "text": expected}
            )
    guider.model_options["transformer_options"] = {**options, RUN: run}
    samples = None
    try:
        samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        if recorder:
            kept = request.recording.keep(recorder, levels, identity)
            controller.say(kept)
            events.show(kept, request.node_id)
        return samples
    finally:
        guider.model_options["transformer_options"].pop(RUN, None)
        report = controller.finish()
        request.box.add(report, samples)
        if samples is not None and run.request.node_id is not None and recorder is None:
            metadata.carry({"node": request.node_id, **keepsake(report, settings)})
        events.send_steps(run, report)
        events.tell(report, request.node_id)


def _identity(guider, latent, sampler: str) -> dict:
    """What a profile of this run holds for."""
    return {
        "model": name_of(guider.model_patcher),
        "level": "final",
        "sampler": sampler,
        "guidance": float(getattr(guider, "cfg", 1.0)),
        "resolution": list(latent.shape[2:]),
    }


def name_of(patcher) -> str:
    """What tells a patcher's model from others, whether or not ComfyUI has its patches in the weights now."""
    kept = {key.removeprefix("diffusion_model."): backup.weight for key, backup in patcher.backup.items()}
    return fingerprint(_plain(patcher.model.diffusion_model), kept)


def _prepare_sampling(executor, model, noise_shape, *args, model_options=None, **kwargs):
    run = (model_options or {}).get("transformer_options", {}).get(RUN)
    kwargs["model_options"] = model_options
    if run is None or not isinstance(run.request, CacheRequest):
        return executor(model, noise_shape, *args, **kwargs)
    return memory.load(
        executor, run.controller, run.request.memory * memory.GB, model, noise_shape, args, kwargs
    )


def _predict_noise(executor, x, timestep, model_options=None, seed=None):
    options = (model_options or {}).get("transformer_options", {})
    run = options.get(RUN)
    if run is not None:
        run.controller.begin_evaluation(float(timestep.flatten()[0]))
        events.send_steps(run, run.controller)
    return executor(x, timestep, {} if model_options is None else model_options, seed)


def _apply_model(
    executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs
):
    options = {} if transformer_options is None else transformer_options
    arguments = (x, t, c_concat, c_crossattn, control, options)
    run = options.get(RUN)
    if run is None:
        return executor(*arguments, **kwargs)
    model = _plain(executor.class_obj.diffusion_model)
    if run.controller.compilation is None:  # one that is put in place when the model is loaded
        run.controller.compilation = _compilation(executor.class_obj.diffusion_model)
    chunks = [
        (*chunk, _strengths(executor.class_obj))
        for chunk in _chunks(x, c_concat, c_crossattn, control, options, kwargs)
    ]
    replaced = next((name for name in FORWARDS if name in vars(model)), None)
    if replaced and run.controller.skips:
        run.controller.say(
            f"Another node runs {type(model).__name__} by a {replaced} of its own; what that skips or "
            "adds is not counted."
        )
    patch_size = getattr(model, "patch_size", 2)
    grid = (
        tuple(math.ceil(n / patch_size) for n in x.shape[-2:])
        if isinstance(patch_size, int) and x.ndim == 4
        else None
    )

    def call():
        return executor(
            x, t, c_concat, c_crossattn, opened(control), options, **kwargs
        )  # a model may take controls out of their lists

    return run.controller.guarded(call, model, chunks, grid, _plain_call(options))


def _compilation(model, asked: dict | None = None) -> Compilation | None:
    """How a compiled model is compiled, or, where it is given, what ComfyUI's torch.compile nodes were asked
    for; None where nothing is."""
    if not compiled.AVAILABLE or (asked is None and not hasattr(model, "_orig_mod")):
        return None
    return Compilation(model.dynamo_ctx if asked is None else compiled.compiler(asked, KEY))


def is_compiled(patcher) -> bool:
    """Whether torch.compile is on a MODEL as a whole."""
    return COMPILED in patcher.model_options or hasattr(
        patcher.get_model_object("diffusion_model"), "_orig_mod"
    )


def _plain_call(options: dict) -> str | None:
    """Why this call runs plainly, or None."""
    if options.get("ar_state") is not None:
        return "its sampler makes the video part by part and keeps keys and values of its own"
    return None


def _plain(model):
    """The model itself where torch.compile stands around it."""
    return getattr(model, "_orig_mod", model)


def _shape(value):
    if hasattr(value, "shape"):
        return tuple(value.shape[1:])
    return tuple(_shape(v) for v in value) if isinstance(value, (list, tuple)) else None


def _chunks(x, c_concat, c_crossattn, control, options, conds) -> list[tuple]:
    """One key per branch in the batch, from all that tells branches apart."""
    branches = list(zip(options.get("cond_or_uncond") or [0], options.get("uuids") or [None]))
    window = options.get("context_window")
    patches = {**options.get("patches", {}), **options.get("patches_replace", {}).get("dit", {})}
    names = tuple(
        sorted(
            (
                str(k),
                tuple(
                    getattr(f, "__qualname__", type(f).__name__) for f in (v if isinstance(v, list) else [v])
                ),
            )
            for k, v in patches.items()
        )
    )
    # Other nodes switch parts of a model on and off by such flags, those of LTX-2 for one.
    flags = tuple(sorted((k, v) for k, v in options.items() if isinstance(v, bool)))
    shared = (
        flags,
        x.shape[0] // len(branches),
        tuple(x.shape[1:]),
        str(x.dtype),
        _shape(c_concat),
        _shape(c_crossattn),
        control is not None,
        tuple(window.index_list) if window is not None else None,
        names,
        tuple((k, _shape(v)) for k, v in sorted(conds.items())),
    )
    return [(*branch, *shared) for branch in branches]


def _strengths(model) -> tuple:
    """Strengths of the hooks (LoRAs on a part of the conditioning) that are on the model now; keyframes
    change them during a run."""
    hooks = getattr(getattr(model, "current_patcher", None), "current_hooks", None)
    return tuple(float(hook.strength) for hook in hooks.hooks) if hooks else ()


def nothing_sampled(settings: Settings) -> Report:
    """The report of a sampler that had no step to run."""
    return Report(
        records=[],
        method=settings.method,
        family="",
        predictor=settings.predictor.name,
        selector=settings.selector.score,
        steps=0,
        wall_seconds=0.0,
        messages=[],
        peak_bytes=0,
        schedule={},
    )


def sample(
    model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent, denoise, last_step=None
):
    """ComfyUI's own KSampler on a patched model, up to `last_step` if that is given; returns its LATENT."""
    from nodes import common_ksampler  # ComfyUI's module, not this package's

    return common_ksampler(
        model,
        seed,
        steps,
        cfg,
        sampler_name,
        scheduler,
        positive,
        negative,
        latent,
        denoise=denoise,
        last_step=last_step,
    )[0]


def encode(clip, text: str) -> list:
    """The CONDITIONING of a text by ComfyUI's own CLIP Text Encode."""
    from nodes import CLIPTextEncode

    return CLIPTextEncode().encode(clip, text)[0]


def decode(vae, latent) -> torch.Tensor:
    """The pictures [B,H,W,3] of a LATENT by ComfyUI's own VAE Decode; frames of a video stand one behind the
    other."""
    from nodes import VAEDecode

    return VAEDecode().decode(vae, latent)[0]


def settle() -> None:
    """Waits until the device has done what it was asked to, so that a clock can be read."""
    device = comfy.model_management.get_torch_device()
    wait = getattr(getattr(torch, device.type, None), "synchronize", None)
    if wait is not None:
        wait()


SAMPLERS = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS = comfy.samplers.KSampler.SCHEDULERS


def load_flux(path):
    """A FLUX-layout MODEL from a safetensors file, through ComfyUI's own loader.

    ComfyUI before 0.4 takes every FLUX for 3072 wide; there the model is built from the widths in the file.
    """
    state = comfy.utils.load_torch_file(str(path))
    found = comfy.model_detection.detect_unet_config(state, "")
    width = state["img_in.weight"].shape[0]
    if found["hidden_size"] == width:
        return comfy.sd.load_diffusion_model_state_dict(state)
    found.update(
        hidden_size=width,
        num_heads=width // sum(found["axes_dim"]),
        context_in_dim=state["txt_in.weight"].shape[1],
    )
    config = comfy.supported_models.FluxSchnell(found)
    device = comfy.model_management.get_torch_device()
    config.set_inference_dtype(
        comfy.model_management.unet_dtype(device, comfy.utils.calculate_parameters(state)), None
    )
    model = config.get_model(state, "")
    model.load_model_weights(state, "")
    return comfy.model_patcher.ModelPatcher(
        model, load_device=device, offload_device=comfy.model_management.unet_offload_device()
    )


def load_vae(path):
    """A VAE from a safetensors file, through ComfyUI's own loader."""
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))
