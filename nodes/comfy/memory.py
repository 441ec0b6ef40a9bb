"""What ComfyUI tells us about memory, and what it is told about our caches.

ComfyUI loads a model for a run by what the model says it needs to work (`memory_required`). While it does,
that figure is raised by what the caches will hold, so that other models give way to them at once and not in
the middle of the run."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import comfy.model_management
import torch

from ...cache_core.base.wording import size
from ...cache_core.controller import Controller
from .guidance import acting_guidance

GB = 2**30
AUTO_SHARE = 0.8
"""Of what is free once the model has been loaded and its own working memory set aside: the budget "auto"."""
LEAST_SHARE = 0.25
"""Of all that is free: the least that "auto" allows, since working memory is estimated generously."""
OTHERS_SHARE = 0.25
"""Of the device's memory: how much other models give way for at most, with "auto"."""
WEIGHTS_SHARE = 1 / 16
"""Of the device's memory: how much of the model's own weights give way for at most, where not all of them
fit."""
ELSEWHERE_SHARE = 0.5
"""Of the free main memory: how much of it snapshots may take that do not fit on the device."""


def branches(guider) -> int:
    """How many conditionings an evaluation has at most."""
    conds = getattr(guider, "conds", {})
    cfg, other = acting_guidance(guider)
    if cfg == 1 and not other and not guider.model_options.get("disable_cfg1_optimization"):
        conds = {k: v for k, v in conds.items() if k != "negative"}
    return max(1, sum(map(len, conds.values())))


def announce(controller: Controller, guider, noise_shape) -> str | None:
    """Estimates the caches before sampling, for the controller too; a sentence about them, or None when
    nothing will be kept.

    Tokens of the picture follow from the latent and those of the text from the conditioning; what a model
    pads, drops or adds to them is known at the first call only, where the estimate is made again."""
    base = guider.model_patcher.model
    conds = [cond for entries in getattr(guider, "conds", {}).values() for cond in entries]
    text = max(
        (c["cross_attn"].shape[1] for c in conds if getattr(c.get("cross_attn"), "ndim", 0) > 1), default=0
    )
    beside = max((c.get("reference_latents") or [] for c in conds), key=len, default=[])
    latents = [tuple(noise_shape[1:]), *(tuple(x.shape[1:]) for x in beside)]
    controller.memory.budget = replace(controller.memory.budget, branches=branches(guider))
    model = getattr(base.diffusion_model, "_orig_mod", base.diffusion_model)
    dtype = getattr(base, "manual_cast_dtype", None) or base.get_dtype()
    expected = controller.expect(model, latents, text, dtype, noise_shape[0])
    if not expected:
        return None
    count = controller.memory.budget.branches * controller.memory.stages
    return f"Caches of about {size(expected)} are expected, of {count} branch{'es' if count > 1 else ''}."


@contextmanager
def declared(base, noise_shape, cache: float, device):
    """Raises what a model says it needs by the caches' bytes; gives the list of its own figures.

    ComfyUI asks twice: for two batches, by which other models give way, and for one, which is kept free of
        the model's own weights."""
    own, before = [], base.__dict__.get("memory_required")
    total = comfy.model_management.get_total_memory(device)
    required = base.memory_required

    def raised(input_shape, *args, **kwargs):
        own.append(required(input_shape, *args, **kwargs))
        return own[-1] + (cache if input_shape[0] != noise_shape[0] else min(cache, WEIGHTS_SHARE * total))

    base.memory_required = raised
    try:
        yield own
    finally:
        del base.memory_required
        if before is not None:
            base.memory_required = before


def free_memory(patcher, device) -> float:
    """Bytes of a device that caches and working memory may take.

    With DynamicVRAM the patcher knows: weights that can give way are not counted as taken there."""
    ask = getattr(patcher, "get_free_memory", None)
    return ask(device) if ask is not None else comfy.model_management.get_free_memory(device)


def load(executor, controller: Controller, limit: float, model, noise_shape, args, kwargs):
    """Loads the model for a run with room for the caches, and sets what they may hold.

    executor: ComfyUI's own preparation. limit: bytes that the user allows, 0 for a share of what is free.
    """
    memory, device = controller.memory, model.load_device
    total, expected = comfy.model_management.get_total_memory(device), memory.estimate
    room = min(expected, limit) if limit else min(expected / AUTO_SHARE, OTHERS_SHARE * total)
    with declared(model.model, noise_shape, room, device) as own:
        out = executor(model, noise_shape, *args, **kwargs)
    if not limit:
        free = free_memory(model, device)
        limit = max(AUTO_SHARE * (free - max(own, default=0)), LEAST_SHARE * free, 0)
    elsewhere = 0.0
    if getattr(device, "type", None) == "cuda":
        elsewhere = ELSEWHERE_SHARE * comfy.model_management.get_free_memory(torch.device("cpu"))
    memory.budget = replace(memory.budget, limit=limit, elsewhere=elsewhere)
    return out
