"""Registers our wrappers on a MODEL, and tells a run's controller of evaluations and model calls.

A node clones the patcher and stores immutable settings in it; `sampling_run` makes the state of a run."""

from __future__ import annotations

import math

from comfy.patcher_extension import WrappersMP

from ...cache_core.hooks.module_replay import opened
from . import branch_keys, events, memory
from .compiled import compilation_of, uncompiled
from .conflicts import replaced_forward, why_call_not_cached
from .requests import KEY, RUN, CacheRequest, Run
from .sampling_run import outer_sample

__all__ = ["KEY", "RUN", "CacheRequest", "Run", "apply_model", "patch"]


def patch(model, key: str, request) -> object:
    """A clone of the MODEL that carries `request` and our wrappers; patching again replaces the earlier
    request.

    key: KEY or TOKENS."""
    model = model.clone()
    model.model_options.setdefault("transformer_options", {})[key] = request
    wrappers = {
        WrappersMP.OUTER_SAMPLE: outer_sample,
        WrappersMP.PREPARE_SAMPLING: prepare_sampling,
        WrappersMP.PREDICT_NOISE: predict_noise,
        WrappersMP.APPLY_MODEL: apply_model,
    }
    for kind, wrapper in wrappers.items():
        model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(kind, KEY, wrapper)
    return model


def prepare_sampling(executor, model, noise_shape, *args, model_options=None, **kwargs):
    """ComfyUI's PREPARE_SAMPLING wrapper: loads the model with room for the caches."""
    run = (model_options or {}).get("transformer_options", {}).get(RUN)
    kwargs["model_options"] = model_options
    if run is None or not isinstance(run.request, CacheRequest):
        return executor(model, noise_shape, *args, **kwargs)
    return memory.load(
        executor, run.controller, run.request.memory * memory.GB, model, noise_shape, args, kwargs
    )


def predict_noise(executor, x, timestep, model_options=None, seed=None):
    """ComfyUI's PREDICT_NOISE wrapper: an evaluation of the sampler begins."""
    run = (model_options or {}).get("transformer_options", {}).get(RUN)
    if run is not None:
        run.controller.begin_evaluation(run.levels.of(timestep))
        events.send_steps(run, run.controller)
    return executor(x, timestep, {} if model_options is None else model_options, seed)


def apply_model(
    executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs
):
    """ComfyUI's APPLY_MODEL wrapper: one model call, under the controller of the run."""
    options = {} if transformer_options is None else transformer_options
    run = options.get(RUN)
    if run is None:
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    base, controller = executor.class_obj, run.controller
    model = uncompiled(base.diffusion_model)
    if controller.compilation is None:  # one that is put in place when the model is loaded
        controller.compilation = compilation_of(base.diffusion_model)
    replaced = replaced_forward(model)
    if replaced and controller.skips:
        controller.say(replaced)
    keys = branch_keys.keys(base, x, c_concat, c_crossattn, control, options, kwargs)

    def call():
        return executor(
            x, t, c_concat, c_crossattn, opened(control), options, **kwargs
        )  # a model may take controls out of their lists

    return controller.guarded(call, model, keys, _grid(model, x), why_call_not_cached(options))


def _grid(model, x) -> tuple[int, int] | None:
    """Rows and columns of the tokens of a picture x [B,C,H,W]; None where the model does not tell, and for
    video."""
    patch_size = getattr(model, "patch_size", 2)
    if not isinstance(patch_size, int) or x.ndim != 4:
        return None
    height, width = (math.ceil(n / patch_size) for n in x.shape[-2:])
    return height, width
