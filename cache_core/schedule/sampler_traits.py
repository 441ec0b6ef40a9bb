"""What the name of a sampler tells: evaluations per step, fresh noise, CFG++."""

from __future__ import annotations

import re

STAGES = {
    "heun": 2,
    "dpm_2": 2,
    "dpm_2_ancestral": 2,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_2s_ancestral_cfg_pp": 2,
    "dpmpp_sde": 2,
    "dpmpp_sde_gpu": 2,
    "seeds_2": 2,
    "seeds_3": 3,
    "exp_heun_2_x0": 2,
    "exp_heun_2_x0_sde": 2,
    "sa_solver_pece": 2,
}
"""Evaluations per step of samplers with a fixed number above one, by ComfyUI's sampler names."""


LOOKS_AHEAD = {"heunpp2": 3}
"""The same of samplers that evaluate the levels of so many steps from here on, and therefore fewer in the
last steps."""


_FRESH_NOISE = re.compile(r".*(ancestral|sde|ddpm|lcm|seeds|sa_solver).*")


def stages_of(sampler: str, steps: int = 0) -> int | tuple[int, ...]:
    """Evaluations per step of a sampler name, or those of each of `steps` steps where they differ.

    1 for unknown and adaptive samplers, whose extra evaluations then run in full.
    """
    name = sampler.removeprefix("sample_")
    if name in LOOKS_AHEAD:
        return tuple(min(LOOKS_AHEAD[name], steps - i) for i in range(steps))
    return STAGES.get(name, 1)


def adds_noise(sampler: str) -> bool:
    """Whether a sampler adds fresh noise at its steps (ancestral ones, those of stochastic differential
    equations), by its name."""
    return _FRESH_NOISE.fullmatch(sampler) is not None


def is_cfg_pp(sampler: str) -> bool:
    """Whether a sampler is one of CFG++ (Chung et al., arXiv 2406.08070), which steps along the unguided
    prediction, by its name."""
    return sampler.endswith("_cfg_pp")


def breaks(sampler: str) -> str | None:
    """Why a sampler makes no picture of forecasts, by its name, or None: CFG++ beyond Euler's method
    (docs/stress.md)."""
    if is_cfg_pp(sampler) and "euler" not in sampler:
        return (
            f"{sampler.removeprefix('sample_')} enlarges what forecasts are off by until the picture breaks"
        )
    return None
