"""A host-free sampler for the embedded model: Euler and Heun with classifier-free guidance, cached or not."""

from __future__ import annotations

from collections.abc import Callable
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


def conditioned(encode: Callable, captions, guidance: float) -> dict[str, tuple[torch.Tensor, ...]]:
    """The model's inputs behind latent and time, by branch: captions under "cond" and, for a guidance other
    than 1, empty captions under "uncond". encode: one caption to a tuple of tensors."""
    branches = ["cond"] if guidance == 1 else ["uncond", "cond"]
    texts = {"cond": captions, "uncond": [""] * len(captions)}
    return {b: tuple(torch.stack(v) for v in zip(*(encode(c) for c in texts[b]))) for b in branches}


@torch.no_grad()
def denoise(
    model,
    x: torch.Tensor,
    inputs: dict[str, tuple[torch.Tensor, ...]],
    sigmas,
    *,
    guidance: float = 2.0,
    sampler: str = "euler",
    settings: CacheConfig | None = None,
    split: bool = False,
    progress=None,
    budget: Budget | None = None,
    time_scale: float = 1.0,
) -> Sampled:
    """Samples latents from unit noise x [B,16,h,w] or [B,16,F,h,w].

    inputs: what `conditioned` gives; the first tensor of a branch is its text [B,T,d].
    Two branches run in one call or, with `split`, in two. `settings` turns caching on, within `budget`. The
    model reads noise levels times `time_scale`. Raises ValueError for an unknown sampler."""
    if sampler not in STAGES:
        raise ValueError(f"sampler must be one of {', '.join(STAGES)}, not {sampler!r}.")
    device = next(model.parameters(), x).device
    x, inputs = x.to(device), {b: tuple(t.to(device) for t in v) for b, v in inputs.items()}
    branches = list(inputs)
    groups = [[b] for b in branches] if split else [branches]
    cache = Controller(settings, sigmas, STAGES[sampler], budget=budget) if settings else None
    if cache:
        cache.expect(model, [x.shape[1:]], inputs["cond"][0].shape[1], x.dtype, len(x))
    grid = (x.shape[-2] // 2, x.shape[-1] // 2)
    calls = 0

    def velocity(x, sigma):
        nonlocal calls
        if cache:
            cache.begin_evaluation(sigma)
        out = {}
        for group in groups:
            some = [torch.cat(v) for v in zip(*(inputs[b] for b in group))]
            rows = x.repeat(len(group), *[1] * (x.ndim - 1))
            times = torch.full((len(rows),), sigma * time_scale, device=device)
            run = partial(model, rows, times, *some)
            v = cache.guarded(run, model, group, grid) if cache else run()
            calls += 1
            out.update(zip(group, v.chunk(len(group))))
        if "uncond" not in out:
            return out["cond"]
        return out["uncond"] + guidance * (out["cond"] - out["uncond"])

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


def sample(
    model,
    captions,
    *,
    steps: int = 30,
    seeds=None,
    guidance: float = 2.0,
    size: int = SIZE,
    sigmas=None,
    **rest,
) -> Sampled:
    """Samples one latent per caption.

    guidance 1 runs the captions alone; above it the empty caption runs beside them. seeds default to 0, 1, 2
    ... `rest` goes to `denoise`: sampler, settings, split, progress, budget."""
    x = noise_for(range(len(captions)) if seeds is None else seeds, size)
    inputs = conditioned(encode_caption, captions, guidance)
    return denoise(model, x, inputs, sigmas or schedule_sigmas(steps), guidance=guidance, **rest)
