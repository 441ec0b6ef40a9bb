"""Registers our wrappers on a MODEL, and tells a run's controller of evaluations and model calls.

A node clones the patcher and stores immutable settings in it; `sampling_run` makes the state of a run."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

from comfy.patcher_extension import CallbacksMP, WrappersMP

from ...cache_core.hooks.module_replay import opened
from . import branch_keys, events, memory
from .compiled import compilation_of, uncompiled
from .conflicts import replaced_forward, why_call_not_cached
from .controls import size_of_control
from .requests import KEY, RUN, CacheRequest, Run, request_of
from .sampling_run import model_runs, outer_sample

__all__ = ["KEY", "RUN", "CacheRequest", "Run", "apply_model", "patch"]

log = logging.getLogger("dual_cache")


MOVING_WINDOWS = (
    "Context windows move in this run: a window that was not used in the evaluation before runs in full."
)


def patch_by_node(model, request) -> object:
    """`patch` for a node: where another node before it has patched the model, the report says that only this
    node acts."""
    earlier = request_of(model)
    if earlier is not None:
        where = f"Node #{earlier.node_id}" if earlier.node_id else "Another node"
        what = earlier.settings.method if isinstance(earlier, CacheRequest) else "Profile Model"
        note = (
            f"{where} has patched this model before ({what}) and has no effect: of several caching nodes in "
            "a row only the last one acts. Remove one of them."
        )
        log.warning("Dual Cache: %s", note)
        request = replace(request, notes=(*request.notes, note))
    return patch(model, KEY, request)


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
    model.remove_callbacks_with_key(CallbacksMP.ON_PRE_RUN, KEY)
    model.add_callback_with_key(CallbacksMP.ON_PRE_RUN, KEY, before_run)
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


def before_run(model) -> None:
    """ComfyUI's callback before a patcher's model runs, also one that is not sampled by our wrapper."""
    request = request_of(model)
    if request is not None:
        model_runs(request)


def predict_noise(executor, x, timestep, model_options=None, seed=None):
    """ComfyUI's PREDICT_NOISE wrapper: an evaluation of the sampler begins."""
    run = (model_options or {}).get("transformer_options", {}).get(RUN)
    if run is not None:
        run.controller.begin_evaluation(run.levels.of(timestep))
        run.windows.begin_evaluation()
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
    keys = branch_keys.keys(base, x, c_concat, c_crossattn, control, options, kwargs, run.windows)
    if run.windows.moved and controller.skips:
        controller.say(MOVING_WINDOWS)

    def call():
        return executor(
            x, t, c_concat, c_crossattn, opened(control), options, **kwargs
        )  # a model may take controls out of their lists

    return controller.guarded(
        call, model, keys, _grid(model, x), why_call_not_cached(options), x, size_of_control(control)
    )


def _grid(model, x) -> tuple[int, int] | None:
    """Rows and columns of the tokens of a picture x [B,C,H,W]; None where the model does not tell, and for
    video."""
    patch_size = getattr(model, "patch_size", 2)
    if not isinstance(patch_size, int) or x.ndim != 4:
        return None
    height, width = (math.ceil(n / patch_size) for n in x.shape[-2:])
    return height, width
