"""ComfyUI's samplers: their names, and sampling as KSampler does it."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.samplers
import torch

_samplers: Any = comfy.samplers  # the type checker takes this file for ComfyUI's module
SAMPLERS, SCHEDULERS = _samplers.KSampler.SAMPLERS, _samplers.KSampler.SCHEDULERS
Sampler, CFGGuider, KSAMPLER = _samplers.Sampler, _samplers.CFGGuider, _samplers.KSAMPLER


def sample(
    model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent, denoise, last_step=None
):
    """The LATENT of ComfyUI's own KSampler on a patched model, up to `last_step` if that is given."""
    # ComfyUI's module, which the type checker takes for this package.
    from nodes import common_ksampler  # pyright: ignore[reportAttributeAccessIssue]

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


def settle() -> None:
    """Waits until the device has done what it was asked to, so that a clock can be read."""
    device = comfy.model_management.get_torch_device()
    wait = getattr(getattr(torch, device.type, None), "synchronize", None)
    if wait is not None:
        wait()
