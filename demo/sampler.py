"""A host-free sampler for the embedded model: Euler and Heun with classifier-free guidance, cached or not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from cache_core.config import CacheConfig
from cache_core.controller import Controller
from cache_core.memory.budget import Budget
from cache_core.report.run_report import Report

from .scenes import SIZE, encode_caption

STAGES = {"euler": 1, "heun": 2}


@dataclass(frozen=True)
class Sampled:
    """Latents [B,16,h,w] in the model's space, how often the model was called, and the caching report (None
    without caching)."""

    latents: torch.Tensor
    calls: int
    report: Report | None


def schedule_sigmas(steps: int) -> list[float]:
    """Noise levels 1 .. 0, evenly spaced: FLUX.1-schnell's "simple" schedule. Raises ValueError for fewer
    than one step."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}.")
    return [1 - i / steps for i in range(steps + 1)]


def noise_for(seeds, size: int = SIZE) -> torch.Tensor:
    """Unit noise [B,16,size/8,size/8], one generator per seed, so that a batch equals its single pictures."""
    shape = (1, 16, size // 8, size // 8)
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])


@torch.no_grad()
def sample(
    model,
    captions,
    *,
    steps: int = 30,
    seeds=None,
    guidance: float = 2.0,
    sampler: str = "euler",
    settings: CacheConfig | None = None,
    split: bool = False,
    size: int = SIZE,
    sigmas=None,
    progress=None,
    budget: Budget | None = None,
) -> Sampled:
    """Samples one latent per caption.

    guidance 1 runs the captions alone; above it the empty caption runs beside them, in the same call or, with
    `split`, in a second one. seeds default to 0, 1, 2 ... `settings` turns caching on, within `budget`.
    Raises ValueError for an unknown sampler."""
    if sampler not in STAGES:
        raise ValueError(f"sampler must be one of {', '.join(STAGES)}, not {sampler!r}.")
    sigmas = sigmas or schedule_sigmas(steps)
    x = noise_for(range(len(captions)) if seeds is None else seeds, size)
    branches = ["cond"] if guidance == 1 else ["uncond", "cond"]
    texts = {"cond": captions, "uncond": [""] * len(captions)}
    encoded = {
        b: tuple(torch.stack(v) for v in zip(*(encode_caption(c) for c in texts[b]))) for b in branches
    }
    groups = [[b] for b in branches] if split else [branches]
    cache = Controller(settings, sigmas, STAGES[sampler], budget=budget) if settings else None
    if cache:
        tokens, _ = encoded[branches[-1]]
        cache.expect(model, [x.shape[1:]], tokens.shape[1], x.dtype, len(captions))
    calls = 0

    def velocity(x, sigma):
        nonlocal calls
        if cache:
            cache.begin_evaluation(sigma)
        out = {}
        for group in groups:
            tokens, pooled = (torch.cat([encoded[b][i] for b in group]) for i in range(2))
            inputs = x.repeat(len(group), 1, 1, 1), torch.full((len(tokens),), sigma), tokens, pooled
            run = partial(model, *inputs)
            v = cache.guarded(run, model, group, (x.shape[2] // 2, x.shape[3] // 2)) if cache else run()
            calls += 1
            out.update(zip(group, v.chunk(len(group))))
        return out["cond"] if guidance == 1 else out["uncond"] + guidance * (out["cond"] - out["uncond"])

    steps_iter = list(zip(sigmas, sigmas[1:]))
    try:
        for a, b in progress(steps_iter) if progress else steps_iter:
            v = velocity(x, a)
            if sampler == "heun" and b > 0:
                v = (v + velocity(x + (b - a) * v, b)) / 2
            x = x + (b - a) * v
    finally:
        report = cache.finish() if cache else None
    return Sampled(x, calls, report)
