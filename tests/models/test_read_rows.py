"""Rows of models that no ComfyUI of the tests has, on models with the same class names and the same call
shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cache_core.config import CacheConfig
from cache_core.controller import Controller
from cache_core.models.capabilities import levels_of
from cache_core.models.families import blocks_of, find_family
from cache_core.models.read_rows import READ_ROWS
from cache_core.schedule.plan import explicit
from tests.tiny_flux import assert_untouched

WIDTH = 8
STILL = [0.9] * 6 + [0.0]


class Block(nn.Module):
    """Counts how often it runs, by whichever of its functions."""

    runs = 0

    def __init__(self):
        super().__init__()
        self.img, self.audio = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def moved(self, x, sigma):
        Block.runs += 1
        return x + 0.3 * self.img(x) * sigma


class VisualBlock(Block):
    def forward(self, visual, audio, ctx_v, ctx_a, tev, tea, rope_v, rope_a, transformer_options=None):
        out = self.moved(visual, tev) + ctx_v + 0.1 * self.audio(audio).mean(1, keepdim=True)
        return out, audio + self.audio(audio) * tea + ctx_a + 0.1 * visual.mean(1, keepdim=True)


class Kandinsky6(nn.Module):
    """Two streams that every block takes and returns, and both are read."""

    def __init__(self):
        super().__init__()
        self.visual_blocks = nn.ModuleList(VisualBlock() for _ in range(3))

    def forward(self, x, sigma):
        visual, audio = (part * 1.0 for part in x)
        for block in self.visual_blocks:
            visual, audio = block(visual, audio, 0.1, 0.2, sigma, sigma, None, None, transformer_options={})
        return visual * sigma, audio * 2


class QwenImage21Transformer2DModel(nn.Module):
    """Keeps what its prefix gives at the first call, which a block with a changed `forward` would forbid."""

    def __init__(self):
        super().__init__()
        self.transformer_blocks = nn.ModuleList(Block() for _ in range(3))
        self.prefix, self.used = None, 0
        for block in self.transformer_blocks:
            type(block).forward = Block.moved

    def forward(self, x, sigma):
        assert not any("forward" in block.__dict__ for block in self.transformer_blocks)
        first, self.used = self.prefix is None, self.used + 1
        prefix = torch.ones(1, 2, WIDTH)
        for block in self.transformer_blocks if first else ():
            prefix = block(prefix, 0.0)
        self.prefix = prefix if first else self.prefix
        for block in self.transformer_blocks:
            x = block(x + self.prefix.mean(), sigma)
        return x


class SenseNovaU15(nn.Module):
    """Runs functions of its layers that are not their `forward`."""

    def __init__(self):
        super().__init__()
        self.language_model = nn.ModuleDict({"layers": nn.ModuleList(Block() for _ in range(3))})

    def forward(self, x, sigma):
        for layer in self.language_model["layers"]:
            x = layer.moved(x, sigma)
        return x


class Prism(nn.Module):
    """Blocks of two towers in turn; gives a picture and a sound."""

    def __init__(self):
        super().__init__()
        self.video, self.sound = (nn.ModuleList(Block() for _ in range(2)) for _ in range(2))

    def forward(self, x, sigma):
        video, sound = x
        for one, other in zip(self.video, self.sound):
            video, sound = one.moved(video + sound.mean(), sigma), other.moved(sound, sigma)
        return video, sound


PAIR = (Kandinsky6, Prism)
MODELS = (Kandinsky6, QwenImage21Transformer2DModel, SenseNovaU15, Prism)
for _model, _place in zip(MODELS, ("kandinsky6", "qwen_image21", "sensenova", "prism")):
    _model.__module__ = f"comfy.ldm.{_place}.model"


def data(kind):
    g = torch.Generator().manual_seed(0)
    sizes = ((1, 6, WIDTH), (1, 3, WIDTH)) if kind in PAIR else ((1, 6, WIDTH),)
    made = [torch.randn(size, generator=g) for size in sizes]
    return made if kind in PAIR else made[0]


def parts(out):
    return out if isinstance(out, (list, tuple)) else (out,)


CASES = [(kind, level) for kind in MODELS for level in ("final", "output", "stack", "block", "module")]


@pytest.mark.parametrize(("kind", "level"), CASES, ids=lambda v: getattr(v, "__name__", v))
def test_steps_are_skipped_and_put_back_what_they_skip(kind, level):
    torch.manual_seed(0)
    model = kind().eval().requires_grad_(False)
    exact = parts(model(data(kind), 0.9))
    cache = Controller(CacheConfig(schedule=explicit("FAFAFA"), level=level), STILL)
    for step in range(6):
        cache.begin_evaluation(0.9)
        Block.runs = 0
        with cache.call(model, ["cond"]):
            out = parts(model(data(kind), 0.9))
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(out, exact))
        assert (Block.runs == 0) == (step % 2 == 1)
        assert_untouched(model)
    report = cache.finish()
    assert "".join(r.actual for r in report.records) == "FAFAFA"
    told = [m for m in report.messages if "do not behave" in m]
    assert not told and report.family == find_family(model).name


def test_every_row_that_was_read_has_a_model_here():
    found = [find_family(kind()) for kind in MODELS]
    assert sorted(row.name for row in found) == sorted(row.name for row in READ_ROWS)
    assert (
        levels_of(found[0]) == ("final", "output", "stack", "block")
        and len(blocks_of(Kandinsky6(), found[0])) == 3
    )
    assert all(levels_of(row) == ("output",) and row.output_only for row in found[1:])
