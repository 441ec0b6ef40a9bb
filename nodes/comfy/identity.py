"""What a run was sampled with, as profiles name it."""

from __future__ import annotations

from ...cache_core.calibration.profile import fingerprint
from .compiled import uncompiled
from .guidance import acting_guidance


def identity_of(guider, latent, sampler: str) -> dict:
    """What a profile of this run holds for. sampler: its name."""
    return {
        "model": name_of(guider.model_patcher),
        "level": "final",
        "sampler": sampler,
        "guidance": acting_guidance(guider)[0],
        "resolution": list(latent.shape[2:]),
    }


def name_of(patcher) -> str:
    """What tells a patcher's model from others, whether or not ComfyUI has its patches in the weights now."""
    kept = {key.removeprefix("diffusion_model."): backup.weight for key, backup in patcher.backup.items()}
    return fingerprint(uncompiled(patcher.model.diffusion_model), kept)
