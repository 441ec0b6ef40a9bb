"""Writes docs/memory.md: what the caches of well-known models hold at their usual sizes, as the estimate
before sampling gives it.

Run `python -m tools.regenerate` from the project's folder after a change of the estimate, the registry or
the presets; a test compares the committed page with the result. The models are not built: the estimate reads
their blocks and the sizes of their tokens alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from torch import nn

from cache_core.base.wording import size
from cache_core.config import CacheConfig
from cache_core.memory.estimate import Shapes, footprint
from cache_core.models.block_spec import Family
from cache_core.models.capabilities import fit, levels_of
from cache_core.models.families import Block
from cache_core.models.registry import FAMILIES
from cache_core.recipes import from_preset
from cache_core.schedule.plan import explicit

PAGE = Path(__file__).parents[1] / "docs" / "memory.md"
STEPS = 30
PRESETS = ("balanced", "duca", "taylorseer")


HEAD = """\
# How much memory caches take

Made by `python -m tools.regenerate`: the estimate that the pack makes before it samples, for models at their usual sizes in bfloat16,
one picture or video and one branch. Guidance keeps two branches and doubles everything, as do a batch of two and samplers with two
evaluations per step. Text is as long as such prompts usually are.

The first four columns are one snapshot at each level (docs/families.md), which is what reuse keeps; a line keeps two and a parabola
three. At `stack` it is as much as at `final`. The others are what whole presets hold at the worst moment of 30 steps: `balanced`, which
is the default, keeps three snapshots of the final hidden state and three looks at the step; `duca` has conservative steps (in full where
the model cannot refresh single tokens); `taylorseer` keeps two snapshots of every module.
"""
TAIL = """
## When it is told

- Before the model is loaded: tokens of the picture or video by the model's patch size, text as long as it comes from its encoder, one
  branch per conditioning. ComfyUI's log and the node show it, and ComfyUI makes room for it while it loads the model. Padding (Z-Image),
  tokens that a model adds of its own (HiDream, AuraFlow), sound (LTX-2) and pixels (PixelDiT) are not in it.
- At the first full call, before the first block runs and anything is kept: the same from the real sizes. On the embedded model and
  on tiny models of every row it is within 10 % of what is then held (tests), but where modules of a row have nothing to do in a run, such
  as the sound of HuMo without sound; there it is too high. The report has it beside the measured peak.

## The budget

The input `memory` of **Dual Cache** and **Dual Cache Sampler** is the most GB that caches may take. With 0 it is four fifths of what is
free once the model is loaded and its own working memory, as ComfyUI estimates it, is set aside, and at least a quarter of what is free.
What would not fit gives way before anything is kept, in this order, as far as needed: snapshots are kept in main memory and brought back
in time (CUDA only, in up to half of what is free there); conservative steps run as aggressive ones, and in full where a mask names their
modules; single modules and blocks give way to the final hidden state; forecasts to a line through two snapshots, then to reuse; the final
hidden state to the model's output; at last nothing is cached. The report says what gave way.

If memory runs out all the same, in the model or while something is kept, the caches are freed, the call is repeated once, and the rest of
the run is sampled plainly. Other models give way to the caches when the model is loaded, for up to a quarter of the device's memory, and
the model's own weights for up to a sixteenth.
"""


@dataclass(frozen=True)
class Real:
    """A model at one size. depth: blocks in each list of its row. streams: (name, tokens, width) of what goes
    into the first block.

    latent: values of the output. without: modules of the row that this model's blocks lack.
    """

    name: str
    row: str
    depth: tuple[int, ...]
    streams: tuple[tuple[str, int, int], ...]
    latent: tuple[int, ...]
    without: tuple[str, ...] = ()


_AUDIO = ("audio_cross_attn_wrapper.audio_cross_attn",)


def _two(image: int, text: int, width: int):
    return ("img", image, width), ("txt", text, width)


REAL = (
    Real("FLUX.1-dev, 1024 x 1024", "FLUX", (19, 38), _two(4096, 512, 3072), (16, 128, 128)),
    Real(
        "FLUX.1 Kontext, 1024 x 1024 and one reference",
        "FLUX",
        (19, 38),
        _two(8192, 512, 3072),
        (16, 128, 128),
    ),
    Real("FLUX.2-dev, 1024 x 1024", "FLUX.2", (8, 48), _two(4096, 512, 6144), (128, 64, 64)),
    Real("Chroma, 1024 x 1024", "Chroma", (19, 38), _two(4096, 512, 3072), (16, 128, 128)),
    Real("Qwen-Image, 1328 x 1328", "Qwen-Image", (60,), _two(6889, 256, 3072), (16, 166, 166)),
    Real("Z-Image, 1024 x 1024", "Lumina2, Z-Image", (30,), (("x", 4096 + 256, 3840),), (16, 128, 128)),
    Real("Lumina 2, 1024 x 1024", "Lumina2, Z-Image", (26,), (("x", 4096 + 256, 2304),), (16, 128, 128)),
    Real("HiDream-I1, 1024 x 1024", "HiDream-I1", (16, 32), _two(4096, 384, 2560), (16, 128, 128)),
    Real("Stable Diffusion 3.5 large, 1024 x 1024", "SD3", (38,), _two(4096, 154, 2432), (16, 128, 128)),
    Real("PixArt sigma, 1024 x 1024", "PixArt", (28,), (("x", 4096, 1152),), (4, 128, 128)),
    Real(
        "Cosmos-Predict2 2B, 1024 x 1024",
        "Cosmos-Predict2",
        (28,),
        (("x_B_T_H_W_D", 4096, 2048),),
        (16, 1, 128, 128),
    ),
    Real(
        "Wan 2.1 and 2.2 14B, 832 x 480, 81 frames",
        "Wan",
        (40,),
        (("x", 32760, 5120),),
        (16, 21, 60, 104),
        _AUDIO,
    ),
    Real(
        "Wan 2.1 and 2.2 14B, 1280 x 720, 81 frames",
        "Wan",
        (40,),
        (("x", 75600, 5120),),
        (16, 21, 90, 160),
        _AUDIO,
    ),
    Real("Wan 2.2 5B, 1280 x 704, 121 frames", "Wan", (30,), (("x", 27280, 3072),), (48, 31, 44, 80), _AUDIO),
    Real(
        "HunyuanVideo, 1280 x 720, 129 frames",
        "HunyuanVideo",
        (20, 40),
        _two(118800, 256, 3072),
        (16, 33, 90, 160),
    ),
    Real("LTX-Video 13B, 768 x 512, 97 frames", "LTX-Video", (48,), (("x", 4992, 4096),), (128, 13, 16, 24)),
    Real("CogVideoX 5B, 720 x 480, 49 frames", "CogVideoX", (42,), _two(17550, 226, 3072), (16, 13, 60, 90)),
)


def _module(spec, without) -> nn.Module:
    """A block of bare modules at the places that the estimate looks at."""
    root = nn.Module()
    for path in set(spec.modules) - set(without):
        here = root
        for name in path.split("."):
            if name not in here._modules:
                here.add_module(name, nn.Module())
            here = here._modules[name]
    return root


def _row(real: Real) -> Family:
    """The last row of the name, which is that of the newest ComfyUI."""
    return [row for row in FAMILIES if row.name == real.row][-1]


def _blocks(real: Real, row: Family) -> list[Block]:
    found = [
        ((kind, i), spec) for (_, kind, spec), n in zip(row.lists, real.depth, strict=True) for i in range(n)
    ]
    return [
        Block(name, _module(spec, real.without), spec, i == len(found) - 1)
        for i, (name, spec) in enumerate(found)
    ]


def needed(real: Real, settings: CacheConfig) -> int:
    """Bytes of one branch of one picture or video in bfloat16."""
    row = _row(real)
    blocks, plan = (
        _blocks(real, row),
        settings.schedule_for(STEPS if settings.schedule is None else settings.schedule.steps),
    )
    settings, _ = fit(settings.for_family(row.name), row, blocks, row.model, "C" in plan.kinds)
    first, _ = settings.blocks_run([b.name[0] for b in blocks])
    shapes = Shapes({row.lists[0][1]: {s: (n, d) for s, n, d in real.streams}}, prod(real.latent))
    return footprint(settings, plan.kinds, plan.ratios, None, blocks, shapes, first, row.tokens).total


def _cells(real: Real) -> list[str]:
    row = _row(real)
    assert set(row.lists[0][2].streams) == {s for s, _, _ in real.streams}
    at = {
        level: size(needed(real, CacheConfig(schedule=explicit("FA"), level=level)))
        if level in levels_of(row)
        else "none"
        for level in ("output", "final", "block", "module")
    }
    return [*at.values(), *(size(needed(real, from_preset(preset))) for preset in PRESETS)]


def page() -> str:
    """The page as Markdown."""
    rows = [
        f"| model | output | final | block | module | {' | '.join(PRESETS)} |",
        f"|---|{'---|' * (4 + len(PRESETS))}",
        *(f"| {real.name} | {' | '.join(_cells(real))} |" for real in REAL),
    ]
    return "\n".join([HEAD, *rows, TAIL])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
