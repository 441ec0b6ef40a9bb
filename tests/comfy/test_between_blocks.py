"""What stands between the blocks, or reaches into them: on a tiny model of each sort, every level stays exact
at the same input.

Controls, adapters with face, pose and audio, reference latents, modulation that differs between tokens, and
other nodes' patches."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch

from stress.comfy_start import comfyui_version, nearest
from tests.comfy import tiny_families as tiny
from tests.comfy.tiny_families import call, close, left_behind

NAMES = tiny.present()


def random(*shape, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Case:
    """A model of `tiny_families`, what its call has beside the usual, and the plain call that it must differ
    from (without all of it).

    refuses: the beginning of the sentence with which conservative steps run in full. lacks: a level that
        needs what a node holds back."""

    model: str
    more: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    refuses: str | None = None
    lacks: str = ""


def control(key, tokens, width, count=2):
    return {"control": {key: [random(1, tokens, width, seed=i) for i in range(count)]}}


def replaced(*keys, skip=False):
    """A node that stands around blocks, or in place of them."""

    def theirs(args, extra):
        out = {k: args[k] for k in ("img", "txt") if k in args} if skip else extra["original_block"](args)
        return {**out, "img": out["img"] * torch.linspace(0.7, 1.3, out["img"].shape[-1])}

    return {"patches_replace": {"dit": dict.fromkeys(keys, theirs)}}


def patched(name, patch):
    return {"patches": {name: [patch]}}


def query(q, k, v, **kwargs):
    return {"q": q * 1.3, "k": k, "v": v}


def scaled(args):
    """An attention patch as Wan has it, behind the attention."""
    return args["x"] * torch.linspace(0.5, 1.5, args["x"].shape[-1])


def after(args):
    """A patch behind every block, as control models of Z-Image and Qwen-Image have it; it writes into what
    the block gave."""
    img = args["img"]
    img += 0.2 * torch.linspace(-1, 1, img.shape[-1]) * (1 + args["block_index"])
    return {**args, "img": img}


def override(func, *args, **kwargs):
    out = func(*args, **kwargs)
    return out * torch.linspace(0.5, 1.5, out.shape[-1])


FIRST, LAST, SINGLE = ("double_block", 0), ("double_block", 1), ("single_block", 1)
FLUX_LATENT, VIDEO = (1, 16, 8, 8), (1, 16, 2, 8, 8)
FIRST_FRAME = torch.ones(1, 1, 2, 8, 8).index_fill(2, torch.tensor([0]), 0.0)

CASES = {
    # Controls add to what the blocks give, in place.
    "control flux": Case(
        "flux",
        {"control": {"input": [random(1, 16, 64, seed=i) for i in range(2)], "output": [random(1, 16, 64)]}},
    ),
    "control chroma": Case(
        "chroma", {"control": {"input": [random(1, 16, 32)], "output": [random(1, 16, 32)] * 2}}
    ),
    "control hunyuan video": Case(
        "hunyuan video", {"control": {"input": [random(1, 32, 64)] * 2, "output": []}}
    ),
    "control qwen image": Case("qwen image", control("input", 16, 64)),
    "control lens": Case("lens", control("input", 36, 64)),
    "control sd 3.5": Case("sd 3.5", control("output", 16, 128)),
    "control hunyuan dit": Case("hunyuan dit", control("output", 16, 64, 1)),
    # Adapters.
    "vace": Case("wan vace", {"vace_strength": [1.3]}),
    "animate face and pose": Case(
        "wan animate", {"face_pixel_values": random(1, 3, 4, 8, 8), "pose_latents": random(1, 16, 1, 8, 8)}
    ),
    "s2v audio": Case("wan s2v", {"audio_embed": random(1, 25, 1024, 8)}),
    "s2v all": Case(
        "wan s2v",
        {
            "audio_embed": random(1, 25, 1024, 8),
            "reference_latent": random(1, 16, 1, 8, 8),
            "control_video": random(*VIDEO),
            "reference_motion": random(1, 16, 19, 8, 8),
        },
    ),
    "humo audio": Case("wan humo", {"audio_embed": random(1, 2, 8, 5, 1280)}),
    "humo audio and reference": Case(
        "wan humo", {"audio_embed": random(1, 2, 8, 5, 1280), "reference_latent": random(1, 16, 1, 8, 8)}
    ),
    "dancer music": Case("wan dancer", {"audio_embed": random(1, 8, 35)}),
    "camera": Case("wan camera", {"camera_conditions": random(1, 24, 2, 64, 64)}),
    "scail pose": Case(
        "wan scail", {"pose_latents": random(1, 16, 2, 4, 4), "reference_latent": random(1, 16, 1, 8, 8)}
    ),
    # References beside the picture.
    "kontext": Case("flux", {"ref_latents": [random(*FLUX_LATENT), random(1, 16, 4, 4)]}),
    "flux 2 references": Case("flux 2", {"ref_latents": [random(1, 128, 6, 6), random(1, 128, 4, 4)]}),
    "qwen edit": Case("qwen image", {"ref_latents": [random(1, 16, 1, 8, 8), random(1, 16, 1, 4, 4)]}),
    "qwen edit at time zero": Case(
        "qwen image", {"ref_latents": [random(1, 16, 1, 8, 8)], "ref_latents_method": "index_timestep_zero"}
    ),
    "omnigen 2 references": Case("omnigen 2", {"ref_latents": [random(*FLUX_LATENT)]}),
    "boogu references": Case("boogu", {"ref_latents": [random(*FLUX_LATENT)]}),
    # Modulation that differs between tokens.
    "flux 2 references at time zero": Case(
        "flux 2",
        {"ref_latents": [random(1, 128, 6, 6)], "ref_latents_method": "index_timestep_zero"},
        refuses="Conservative steps ran in full: the modulation differs between tokens",
    ),
    "5b first frame": Case("wan 2.2 5b", {"denoise_mask": FIRST_FRAME.expand(1, 48, 2, 8, 8)}),
    "ltx first frame": Case(
        "ltx video", {"denoise_mask": torch.ones(1, 1, 2, 4, 4).index_fill(2, torch.tensor([0]), 0.0)}
    ),
    # Nodes around blocks, in them and behind them.
    "wraps flux": Case("flux", options=replaced(FIRST, SINGLE)),
    "wraps chroma": Case("chroma", options=replaced(FIRST, SINGLE)),
    "skips flux": Case("flux", options=replaced(FIRST, skip=True), lacks="stack"),
    "skips wan": Case("wan", options=replaced(LAST, skip=True)),
    "wraps the last of wan": Case("wan", options=replaced(("double_block", 5))),
    **{
        f"wraps {name}": Case(name, options=replaced(FIRST, LAST))
        for name in (
            "hunyuan video",
            "qwen image",
            "wan vace",
            "sd 3.5",
            "auraflow",
            "ltx video",
            "mochi",
            "lens",
            "hunyuan dit",
            "hunyuan video 1.5",
            "wan animate",
            "wan s2v",
        )
    },
    "attn1 flux": Case(
        "flux",
        options=patched("attn1_patch", query),
        refuses="Conservative steps ran in full: another node patches attention (attn1_patch)",
    ),
    "attn1 output flux": Case(
        "flux",
        options=patched("attn1_output_patch", lambda out, extra: out * 0.7),
        refuses="Conservative steps ran in full: another node patches attention (attn1_output_patch)",
    ),
    "attn1 wan": Case("wan", options=patched("attn1_patch", scaled)),
    "attn2 wan": Case("wan", options=patched("attn2_patch", scaled)),
    "attn1 qwen image": Case("qwen image", options=patched("attn1_patch", query)),
    **{
        f"behind blocks of {name}": Case(name, options=patched("double_block", after))
        for name in ("qwen image", "z-image", "lens")
    },
    **{
        f"override {name}": Case(name, options={"optimized_attention_override": override})
        for name in ("wan", "qwen image", "z-image")
    },
}
IGNORED = {
    "0.3.64": ("attn1 flux", "attn1 output flux", "attn1 wan", "attn2 wan", "attn1 qwen image"),
    "0.26.0": (),
    "0.33.0": (),
}
"""Patches that a ComfyUI version does not read in these models."""


def arguments(case, seed=0):
    return {**tiny.arguments(case.model, seed), **case.more}


def opened(data):
    """A call's own lists, since models take controls out of theirs."""
    given = data.get("control")
    return data if given is None else {**data, "control": {k: list(v) for k, v in given.items()}}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.model in NAMES])
def test_every_level_stays_exact(models, runs, levels, monkeypatch, name):
    case = CASES[name]
    base, data, later = models(case.model), arguments(case), arguments(case, 1)
    if (
        "face_pixel_values" in case.more
    ):  # the encoder of 512 pixels in the square stands before the blocks and takes long
        monkeypatch.setattr(
            base.diffusion_model.motion_encoder,
            "get_motion",
            lambda face: face.flatten(1).repeat(1, 3)[:, :512],
        )
    exact = call(base, 0.8, opened(data), case.options)
    same = close(exact, call(base, 0.8, tiny.arguments(case.model)), 1e-4)
    assert same == (name in IGNORED[nearest(comfyui_version(), IGNORED)]), (
        "the case makes no difference" if same else "it makes one"
    )
    for level in levels(base.diffusion_model):
        cache, evaluate = runs(base, "FFAAC", level=level)
        run = partial(evaluate, more=case.options)
        run(1.0, opened(later))
        assert torch.equal(run(0.8, opened(data)), exact), level
        outs = [run(0.8, opened(data)) for _ in range(3)]
        report = cache.finish()
        kinds = "".join(r.actual for r in report.records)
        assert all(close(out, exact, 1e-4) for out in outs) and not left_behind(base), (level, kinds)
        told = [m for m in report.messages if "ran in full" in m]
        if level == "module" and case.refuses:  # its aggressive steps need what conservative ones need
            assert kinds == "FFFFF" and told
        else:
            assert kinds[:4] == "FFAA", (level, report.messages)
            assert kinds[4] == ("F" if told else "C"), (level, report.messages)
            assert not case.refuses or any(m.startswith(case.refuses) for m in told)
        assert len([m for m in report.messages if "do not behave" in m]) == (level == case.lacks), level


class Window:
    """A context window, as ComfyUI hands it on."""

    def __init__(self, *frames):
        self.index_list = list(frames)


@pytest.mark.parametrize("name", ["wan", "wan vace", "hunyuan video"])
def test_context_windows_of_a_step_have_caches_of_their_own(models, runs, levels, name):
    base = models(name)
    parts = [(tiny.arguments(name, seed), {"context_window": Window(seed, seed + 1)}) for seed in (1, 2)]
    exact = [call(base, 0.8, data, dict(options)) for data, options in parts]
    for level in levels(base.diffusion_model):
        cache, evaluate = runs(base, "FAAA", level=level)
        for _ in range(4):
            for i, (data, options) in enumerate(parts):
                assert close(evaluate(0.8, data, more=options, begin=i == 0), exact[i]), level
        report = cache.finish()
        assert (
            "".join(r.actual for r in report.records) == "FAAA"
            and report.totals()["calls"] == 8
            and not report.messages
        )
