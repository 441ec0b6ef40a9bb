"""Guidance, regions, hooks, windows, masks, batches and passes: does every branch keep a cache of its own?

Between equal noise levels an aggressive step must put back exactly what the full step before it had. A branch
that met another one's cache would show there. Beside that each case runs 12 steps of the preset `balanced`,
and its distance to plain sampling is recorded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial

from . import embedded  # before all of ComfyUI

import comfy.context_windows  # isort: skip
import comfy.hooks  # isort: skip
import comfy.sample  # isort: skip
import comfy.samplers  # isort: skip
import torch  # isort: skip

from .embedded import CAPTIONS, caption, close  # isort: skip
from .rows import Deadline, Row, tried  # isort: skip

STILL = torch.tensor([1.0, 1.0, 0.7, 0.7, 0.4, 0.4, 0.0])
"""Euler leaves x as it is between equal neighbours."""
STILL_HALVES = (
    torch.tensor([1.0, 1.0, 0.7, 0.7, 0.6, 0.6, 0.5]),
    torch.tensor([0.5, 0.5, 0.4, 0.4, 0.2, 0.2, 0.0]),
)


@dataclass
class Case:
    """How a case samples: a change of the model, conditioning and options of `embedded.sample`; or a function
    of its own."""

    model: object = staticmethod(lambda m: m)
    positive: object = caption
    negative: object = partial(caption, "")
    options: dict = field(default_factory=lambda: {"cfg": 3.0})
    run: object = embedded.sample
    cached: object = staticmethod(embedded.cached)
    tolerance: float = 0.0

    def __call__(self, base, **more):
        return self.run(base, self.positive(), self.negative(), **{**self.options, **more})


def lora_hooks(*strengths, keyframes=()) -> comfy.hooks.HookGroup:
    """One LoRA hook per strength, of random weights; keyframes: (start in per cent, strength)."""
    group = comfy.hooks.HookGroup()
    for i, strength in enumerate(strengths):
        g = torch.Generator().manual_seed(i)
        name, weight = next(
            (n, p)
            for n, p in embedded.model().model.diffusion_model.named_parameters()
            if n.startswith(f"double_blocks.{i}.") and n.endswith("img_mlp.0.weight")
        )
        lora = {
            f"diffusion_model.{name.removesuffix('.weight')}.lora_up.weight": 0.2
            * torch.randn(weight.shape[0], 4, generator=g),
            f"diffusion_model.{name.removesuffix('.weight')}.lora_down.weight": 0.2
            * torch.randn(4, weight.shape[1], generator=g),
        }
        group = group.clone_and_combine(comfy.hooks.create_hook_lora(lora, strength, 0.0))
    if keyframes:
        frames = comfy.hooks.HookKeyframeGroup()
        for start, strength in keyframes:
            frames.add(comfy.hooks.HookKeyframe(strength, start_percent=start))
        group.set_keyframes_on_hooks(frames)
    return group


def hooked(*strengths, text=CAPTIONS[0], **keyframes) -> list:
    return comfy.hooks.set_hooks_for_conditioning(caption(text), lora_hooks(*strengths, **keyframes))


@contextmanager
def short_of_memory(base):
    """Makes ComfyUI believe that a batch of two does not fit."""
    real = base.model.memory_required
    base.model.memory_required = lambda shape, **kw: 1e30 if shape[0] > 1 else real(shape, **kw)
    try:
        yield
    finally:
        del base.model.memory_required


def apart(base, *conds, **options):
    with short_of_memory(base):
        return embedded.sample(base, *conds, **options)


def node(module: str, name: str, method: str, **inputs):
    """A change of the model by one of ComfyUI's own nodes."""

    def change(model):
        import importlib

        cls = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
        out = (
            cls.execute(model, **inputs)
            if hasattr(cls, "execute")
            else getattr(cls(), method)(model, **inputs)
        )
        return out[0]

    return change


def guided(guider, base, steps=12, size=embedded.SIZE, cfg=3.0, sigmas=None, **conds):
    """Samples with another guider than CFG's."""
    latent = torch.zeros(1, 16, size // 8, size // 8)
    sigmas = (
        comfy.samplers.calculate_sigmas(base.get_model_object("model_sampling"), "simple", steps)
        if sigmas is None
        else sigmas
    )
    with torch.no_grad():
        return guider.sample(
            comfy.sample.prepare_noise(latent, 0),
            latent,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            seed=0,
            disable_pbar=True,
        )


def perp_neg(base, positive, negative, **options):
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    guider = Guider_PerpNeg(base)
    guider.set_conds(positive, caption(CAPTIONS[1]), negative)
    guider.set_cfg(3.0, 0.8)
    return guided(guider, base, **options)


def windows(model):
    model = model.clone()
    name = comfy.context_windows.ContextSchedules.STATIC_STANDARD
    model.model_options["context_handler"] = comfy.context_windows.IndexListContextHandler(
        comfy.context_windows.get_matching_context_schedule(name),
        comfy.context_windows.get_matching_fuse_method(comfy.context_windows.ContextFuseMethods.PYRAMID),
        context_length=2,
        context_overlap=1,
        dim=0,
    )
    comfy.context_windows.create_prepare_sampling_wrapper(model)
    return model


def tiled(base, positive, negative, size=embedded.SIZE, **options):
    """A wrapper that evaluates the picture in two halves, as packs for tiled diffusion do."""

    def halves(apply, kwargs):
        x, t, c = kwargs["input"], kwargs["timestep"], kwargs["c"]
        return torch.cat([apply(part, t, **c) for part in x.split(x.shape[-2] // 2, -2)], -2)

    base = base.clone()
    base.set_model_unet_function_wrapper(halves)
    return embedded.sample(base, positive, negative, size=size, **options)


def two_passes(base, positive, negative, **options):
    """A small picture, then a larger one from it with half of the noise."""
    first = embedded.sample(base, positive, negative, size=64, **options)
    grown = torch.nn.functional.interpolate(first, scale_factor=2, mode="nearest")
    if "sigmas" not in options:
        options["denoise"] = 0.5
    return embedded.sample(base, positive, negative, latent=grown, size=128, **options)


@cache
def second_expert() -> dict:
    """Differences that make another model of the embedded one; read once, as ComfyUI changes the weights in
    place."""
    return {
        k: (0.05 * w.clone(),)
        for k, w in embedded.load().model_state_dict().items()
        if k.endswith("linear2.weight")
    }


def two_experts(base, positive, negative, sigmas=None, **options):
    """Two models share a run: the one for high noise begins, the one for low noise ends (the second is the
    first, changed a little)."""
    host, requests = (embedded.comfy_start.part(f"nodes.comfy.{name}") for name in ("patching", "requests"))
    other = base.clone()
    other.add_patches(second_expert())
    if requests.request_of(base) is not None:
        other = host.patch(other, host.KEY, host.CacheRequest(requests.request_of(base).settings))
    if sigmas is not None:
        middle = embedded.sample(base, positive, negative, sigmas=STILL_HALVES[0], **options)
        return embedded.sample(
            other,
            positive,
            negative,
            sigmas=STILL_HALVES[1],
            latent=middle,
            noise=torch.zeros_like(middle),
            **options,
        )
    middle = embedded.sample(base, positive, negative, start_step=0, last_step=6, **options)
    return embedded.sample(
        other,
        positive,
        negative,
        start_step=6,
        last_step=12,
        latent=middle,
        noise=torch.zeros_like(middle),
        disable_noise=True,
        force_full_denoise=True,
        **options,
    )


def picture(seed=1, size=embedded.SIZE):
    return torch.randn(1, 16, size // 8, size // 8, generator=torch.Generator().manual_seed(seed))


def several(*texts):
    """One conditioning with a prompt per picture of the batch."""
    conds = [caption(t)[0] for t in texts]
    return [
        [
            torch.cat([c[0] for c in conds]),
            {"pooled_output": torch.cat([c[1]["pooled_output"] for c in conds])},
        ]
    ]


def half_mask():
    return torch.ones(1, 1, 8, 8).tril()


CASES = {
    "guidance 1": Case(options={"cfg": 1.0}),
    "guidance 3 in one call": Case(),
    "guidance 3 in two calls": Case(run=apart),
    "perturbed attention guidance": Case(node("nodes_pag", "PerturbedAttentionGuidance", "patch", scale=2.0)),
    "skip layer guidance": Case(
        node(
            "nodes_slg",
            "SkipLayerGuidanceDiT",
            "skip_guidance",
            scale=2.0,
            start_percent=0.0,
            end_percent=1.0,
            double_layers="1",
            single_layers="0",
        )
    ),
    "Perp-Neg": Case(run=perp_neg, options={}),
    "area conditioning": Case(
        positive=lambda: caption() + caption(CAPTIONS[1], area=(4, 4, 2, 2), strength=0.8)
    ),
    "mask conditioning": Case(
        positive=lambda: (
            caption() + caption(CAPTIONS[1], mask=torch.ones(1, 64, 64).tril(), mask_strength=0.9)
        )
    ),
    "timestep ranges": Case(
        positive=lambda: (
            caption(start_percent=0.0, end_percent=0.4)
            + caption(CAPTIONS[1], start_percent=0.4, end_percent=1.0)
        )
    ),
    "LoRA hooks on the positive": Case(positive=lambda: hooked(1.0, 0.5)),
    "LoRA hooks, another on each": Case(
        positive=lambda: hooked(1.0), negative=lambda: hooked(0.4, 0.7, text="")
    ),
    "LoRA hooks with keyframes": Case(positive=lambda: hooked(1.0, 0.5, keyframes=((0.0, 1.0), (0.3, 0.2)))),
    "batch with different prompts": Case(
        positive=lambda: several(*CAPTIONS[:2]), options={"cfg": 3.0, "batch": 2}
    ),
    "context windows": Case(windows, options={"cfg": 3.0, "batch": 4}),
    "inpainting mask": Case(options={"cfg": 3.0, "latent": picture(), "noise_mask": half_mask()}),
    "image to image, denoise 0.6": Case(options={"cfg": 3.0, "latent": picture(), "denoise": 0.6}),
    "two passes at two sizes": Case(run=two_passes),
    "tiled sampling": Case(run=tiled),
    "two experts": Case(run=two_experts),
}


def try_case(name: str, case: Case) -> Row:
    """Exact between equal noise levels, and what every run promises with `balanced`."""
    still = {"sigmas": STILL, "denoise": 1.0}
    try:
        model = case.model(embedded.model())
        plain_still = case(model, **still)
    except Exception as error:  # whatever it is, it is not ours
        return Row(
            name, True, f"fails in this ComfyUI without the pack too: {type(error).__name__}: {error}"[:160]
        )
    patched = case.cached(model, "fora", "FAFAFA")
    out = case(patched, **still)
    wrong = [] if close(out, plain_still, case.tolerance) else ["another result where nothing changes"]
    kinds = kinds_of(patched)
    if "A" not in kinds:
        wrong.append("nothing was skipped")
    patched = case.cached(model)
    run = embedded.Pair(case(model), case(patched), embedded.report_of(patched))
    again = case(patched)
    if not close(again, run.cached, case.tolerance):
        wrong.append("the second run differs")
    if run.wrong:
        wrong.append(run.wrong)
    totals = run.report.totals()
    return Row(
        name,
        not wrong,
        "; ".join(wrong) or f"{kinds}, then {kinds_of(patched)}",
        {
            "calls": totals["calls"],
            "skipped": totals["skipped"],
            "psnr": run.psnr if math.isfinite(run.psnr) else str(run.psnr),
        },
    )


def kinds_of(patched) -> str:
    return "".join(r.actual for r in embedded.report_of(patched).records)


def batch_of_four() -> Row:
    """A batch of four noises against the same four alone, plain and cached."""
    noise = torch.cat([picture(i) for i in range(4)])
    far = []
    for preset in ("balanced", "duca", "off"):
        patched = embedded.cached(embedded.model(), preset)
        batch = embedded.sample(patched, cfg=3.0, noise=noise, batch=4)
        alone = [embedded.sample(patched, cfg=3.0, noise=n[None]) for n in noise]
        if not all(close(a[0], b) for a, b in zip(alone, batch)):
            far.append(preset)
    return Row(
        "batch of 4 equals 4 singles",
        not far,
        f"differs with {', '.join(far)}" if far else "balanced, duca and off",
    )


def one_or_two_calls() -> Row:
    """Guidance in one call against two."""
    far = []
    for preset in ("balanced", "duca"):
        patched = embedded.cached(embedded.model(), preset)
        if not close(apart(patched, cfg=3.0), embedded.sample(patched, cfg=3.0)):
            far.append(preset)
    return Row(
        "one call equals two", not far, f"differs with {', '.join(far)}" if far else "balanced and duca"
    )


def cases(names=None) -> list:
    found = [(name, partial(try_case, name, case)) for name, case in CASES.items()] + [
        ("batch of 4 equals 4 singles", batch_of_four),
        ("one call equals two", one_or_two_calls),
    ]
    return [case for case in found if names is None or case[0] in names]


def rows(deadline: Deadline, names=None) -> Iterator[Row]:
    """One row per case."""
    yield from tried(cases(names), deadline)
