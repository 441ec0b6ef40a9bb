"""The embedded model inside ComfyUI, sampled by ComfyUI's own sampler with and without the pack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from . import comfy_start  # before all of ComfyUI

import comfy.sample  # isort: skip
import torch  # isort: skip

CAPTIONS = (
    "a large red heart center on a checkered white background",
    "a small blue star left on a plain black background",
    "a large green circle right on a plain white background",
    "a small yellow square center on a checkered black background",
)
SIZE = 64


def load():
    """A fresh MODEL of the embedded transformer."""
    from demo.weights import MODEL, WEIGHTS

    return comfy_start.part("nodes.comfy.loading").load_flux(WEIGHTS / MODEL)


@cache
def model():
    """The embedded transformer, loaded once."""
    return load()


def caption(text: str = CAPTIONS[0], **extra) -> list:
    """A caption as conditioning in ComfyUI's list form; an empty one is the negative."""
    tokens, pooled = comfy_start.part("demo.scenes").encode_caption(text)
    return [[tokens[None], {"pooled_output": pooled[None], **extra}]]


def cached(base, preset: str = "balanced", kinds: str | None = None, **changes):
    """The model as the Dual Cache node patches it; letters are a plan in place of the preset's."""
    host, recipes, schedule = (
        comfy_start.part(f"{name}")
        for name in ("nodes.comfy.patching", "cache_core.recipes", "cache_core.schedule.plan")
    )
    settings = recipes.from_preset(
        preset, None if kinds is None else schedule.explicit(kinds, 0.3), **changes
    )
    return host.patch(base, host.KEY, host.CacheRequest(settings))


def report_of(patched):
    return comfy_start.part("nodes.comfy.requests").request_of(patched).box.report


def sample(
    base,
    positive=None,
    negative=None,
    *,
    steps=12,
    cfg=1.0,
    sampler="euler",
    scheduler="simple",
    seed=0,
    batch=1,
    size=SIZE,
    latent=None,
    **options,
) -> torch.Tensor:
    """Latents [B,16,size/8,size/8] from the function behind KSampler; noise comes from `seed` alone. size:
    pixels."""
    latent = torch.zeros(batch, 16, size // 8, size // 8) if latent is None else latent
    noise = options.pop("noise", None)
    noise = comfy.sample.prepare_noise(latent, seed) if noise is None else noise
    positive, negative = positive or caption(), negative or caption("")
    with torch.no_grad():
        return comfy.sample.sample(
            base,
            noise,
            steps,
            cfg,
            sampler,
            scheduler,
            positive,
            negative,
            latent,
            disable_pbar=True,
            seed=seed,
            **options,
        )


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """PSNR in dB of latents, the peak being the range of the second; inf where they are equal."""
    error = float((a.double() - b.double()).square().mean())
    return (
        math.inf
        if error == 0
        else 10 * math.log10(float(b.max() - b.min()) ** 2 / error)
        if math.isfinite(error)
        else -math.inf
    )


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> bool:
    """Equal but for the rounding of another batch size."""
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


@dataclass
class Pair:
    """A cached run beside its uncached one."""

    plain: torch.Tensor
    cached: torch.Tensor
    report: object

    @property
    def psnr(self) -> float:
        return psnr(self.cached, self.plain)

    @property
    def wrong(self) -> str:
        """What the run broke of what every run promises: finite, counted, never more skipped than planned;
        empty where nothing."""
        report, totals = self.report, self.report.totals()
        plan = report.schedule["kinds"]
        if not bool(self.cached.isfinite().all()):
            return "not finite"
        if any(r.actual not in ("F", r.planned) for r in report.records):
            return "a step ran cheaper than planned"
        if any(r.planned != (plan[r.step] if r.step < len(plan) else "F") for r in report.records):
            return "a step has another kind than its plan"
        if any(r.full_calls != r.calls for r in report.records if r.actual == "F"):
            return "a full step was not full"
        if totals["evaluations"] != totals["full"] + totals["conservative"] + totals["aggressive"]:
            return "evaluations do not add up"
        return ""


def pair(base=None, preset: str = "balanced", plain: torch.Tensor | None = None, **options) -> Pair:
    """Samples the model with and without a preset."""
    base = base or model()
    patched = cached(base, preset)
    plain = sample(base, **options) if plain is None else plain
    out = sample(patched, **options)
    return Pair(plain, out, report_of(patched))
