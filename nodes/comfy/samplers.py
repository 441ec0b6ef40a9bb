"""ComfyUI's samplers: their names, and sampling as KSampler does it."""

from __future__ import annotations

import comfy.model_management
import comfy.samplers
import torch

from .executing import host_nodes

# The type checker takes nodes/comfy/samplers.py for ComfyUI's module.
_KSampler = comfy.samplers.KSampler  # pyright: ignore[reportAttributeAccessIssue]
SAMPLERS, SCHEDULERS = _KSampler.SAMPLERS, _KSampler.SCHEDULERS


def sample(
    model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent, denoise, last_step=None
):
    """The LATENT of ComfyUI's own KSampler on a patched model, up to `last_step` if that is given."""
    return host_nodes().common_ksampler(
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
