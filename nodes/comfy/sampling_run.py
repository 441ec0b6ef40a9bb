"""One sampling run, from ComfyUI's OUTER_SAMPLE wrapper: prepare, plan, run, finish.

The run's state is made here and gone when sampling ends, however it ends; nothing of it stays on the
model."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import comfy.model_sampling
import comfyui_version

from ...cache_core.calibration.recorder import Recorder
from ...cache_core.config import CacheConfig
from ...cache_core.controller import Controller
from ...cache_core.models.families import unknown_families
from ...cache_core.report.diagnosis import PROFILE
from ...cache_core.report.run_metadata import metadata_of_run
from ...cache_core.schedule.sampler_traits import adds_noise, breaks, is_cfg_pp, stages_of
from . import events, memory, metadata, profile_files
from .compiled import COMPILED, compilation_of, uncompiled
from .conflicts import why_run_not_cached
from .failures import only_logged
from .guidance import acting_guidance
from .identity import identity_of
from .noise_levels import NoiseLevels
from .predictions import prediction_of
from .report_box import nothing_sampled
from .requests import KEY, RUN, TOKENS, CacheRequest, ProfileRequest, Run, settings_for

log = logging.getLogger("dual_cache")
HOST = f"ComfyUI {comfyui_version.__version__}"
CFG_PP = (
    "CFG++ samplers enlarge what forecasts are off by, so the picture strays further from the "
    "uncached one than with euler."
)


@dataclass
class Preparation:
    """What is known of a run before its plan is made.

    levels: noise levels, one more than steps.
    sampler: name of the sampler's function.
    identity: what a profile of this run holds for; empty where none is needed.
    recorder: what records the run, or None.
    refusal: why the run is not cached, or None.
    sentences: what the report says beside what the controller says.
    """

    request: CacheRequest | ProfileRequest
    levels: list[float]
    sampler: str
    settings: CacheConfig
    identity: dict = field(default_factory=dict)
    recorder: Recorder | None = None
    refusal: str | None = None
    sentences: list[str] = field(default_factory=list)


_active: ContextVar[tuple] = ContextVar("dual_cache_active", default=(None, None))
"""The request that is sampled now, and its run, which is None where the sampler has no step."""
SECOND_ONLY = (
    "Nothing was cached: this model ran outside of Dual Cache's sampling, as the second model of a guider "
    "does whose first one Dual Cache has not patched. Patch the guider's first model; its settings then "
    "hold for both."
)
SECOND_TOO = (
    "The second model of the guider has a caching node of its own, which has no effect: the settings of the "
    "first model hold for both."
)


def model_runs(request: CacheRequest | ProfileRequest) -> None:
    """A model with this request is about to run: the one that is sampled, or the second one of a guider."""
    sampled, run = _active.get()
    if sampled is request:
        return
    if run is not None:
        run.controller.say(SECOND_TOO)
        if request.box not in run.boxes:
            run.boxes.append(request.box)
        return
    request.box.remark = SECOND_ONLY
    log.warning("Dual Cache: %s", SECOND_ONLY)
    events.show(SECOND_ONLY, request.node_id)


def outer_sample(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """ComfyUI's OUTER_SAMPLE wrapper: samples by the request that the model carries."""
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
        before = _active.set((request, None))
        try:
            samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            _active.reset(before)
        if isinstance(request, CacheRequest):
            request.box.add(nothing_sampled(request.settings), samples)
        return samples
    prepared = _prepare(guider, options, latent_image, sampler, levels)
    run = Run(_plan(prepared, guider), request, NoiseLevels(levels, prepared.sampler))
    if prepared.recorder is None:
        _announce(run, guider, (kwargs.get("latent_shapes") or [latent_image.shape])[0])
    guider.model_options["transformer_options"] = {**options, RUN: run}
    samples, before = None, _active.set((request, run))
    try:
        samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        _keep(prepared, run)
        return samples
    finally:
        _active.reset(before)
        guider.model_options["transformer_options"].pop(RUN, None)
        _finish(prepared, run, samples)


def _prepare(guider, options: dict, latent, sampler, levels: list[float]) -> Preparation:
    """What to do in a run, and what it is recorded for.

    options: transformer_options, whose request is read."""
    request, name = options[KEY], getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    refusal = why_run_not_cached(guider.model_options)
    if isinstance(request, ProfileRequest):
        identity, (_, unknown) = identity_of(guider, latent, name), acting_guidance(guider)
        recorder = request.recording.recorder(levels, identity, unknown)
        settings = CacheConfig(method=PROFILE, observer=recorder)
        return Preparation(request, levels, name, settings, identity, recorder, refusal or unknown)
    settings = settings_for(options, uncompiled(guider.model_patcher.model.diffusion_model))
    prepared = Preparation(request, levels, name, settings, refusal=refusal or breaks(name))
    if settings.speedup is not None and prepared.refusal is None:
        prepared.identity, (_, other) = identity_of(guider, latent, name), acting_guidance(guider)
        settings, said = profile_files.planned(settings, prepared.identity, levels, other)
        prepared.settings = replace(
            settings, speedup=None
        )  # what runs is decided, also for whoever repeats it
        prepared.sentences += [said] if said else []
    unknown = unknown_families(request.settings.families)
    if unknown:
        prepared.sentences.append(unknown)
    return prepared


def _plan(prepared: Preparation, guider) -> Controller:
    """The controller of a run, with what is to be said before it begins."""
    model, name = guider.model_patcher.model, prepared.sampler
    controller = Controller(
        prepared.settings,
        prepared.levels,
        stages_of(name, len(prepared.levels) - 1),
        prepared.refusal,
        flow=isinstance(getattr(model, "model_sampling", None), comfy.model_sampling.CONST),
        host=HOST,
        fresh_noise=adds_noise(name),
        prediction=prediction_of(getattr(model, "model_sampling", None)),
    )
    if controller.skips and is_cfg_pp(name):
        controller.say(CFG_PP)
    tokens = guider.model_options["transformer_options"].get(TOKENS)
    for sentence in (*prepared.request.notes, *(tokens.notes if tokens else ()), *prepared.sentences):
        controller.say(sentence)
    controller.compilation = compilation_of(model.diffusion_model, guider.model_options.get(COMPILED))
    return controller


def _announce(run: Run, guider, latent_shape) -> None:
    """Tells the log and the browser what the caches are expected to hold."""
    expected = memory.announce(run.controller, guider, latent_shape)
    if expected:
        log.info("Dual Cache: %s", expected)
        events.send(
            "dual_cache.expect",
            {"node": run.request.node_id, "steps": run.controller.steps, "text": expected},
        )


def _keep(prepared: Preparation, run: Run) -> None:
    """Adds the run to its profile, if it was recorded for one, and says what became of it."""
    request = run.request
    if prepared.recorder is None or not isinstance(request, ProfileRequest):
        return
    kept = request.recording.keep(prepared.recorder, prepared.levels, prepared.identity)
    run.controller.say(kept)
    events.show(kept, request.node_id)


def _finish(prepared: Preparation, run: Run, samples) -> None:
    """Frees the caches and hands the report to all that ask for it. samples: None where sampling failed."""
    request, report = run.request, run.controller.finish()
    with only_logged("keeping the report"):
        for box in run.boxes:
            box.add(report, samples)
    if samples is not None and request.node_id is not None and prepared.recorder is None:
        with only_logged("adding the run to the metadata of pictures"):
            metadata.carry({"node": request.node_id, **metadata_of_run(report, prepared.settings)})
    with only_logged("telling what the run did"):
        events.send_steps(run, report)
        events.tell(report, request.node_id)
