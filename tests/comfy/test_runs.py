"""Masks that hold back runs of blocks, one delta each, on every family of ComfyUI and with what stands
between the blocks."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.comfy import tiny_families as tiny
from tests.comfy.test_between_blocks import CASES, arguments, opened
from tests.comfy.test_family_modules import CAN
from tests.comfy.tiny_families import call, close, left_behind

NAMES = [name for name in tiny.present() if "block" in CAN.get(tiny.TINY[name].row, ())]
READ_INSIDE = {"hunyuan dit": "block.3"}
"""Models whose later blocks read what earlier ones gave, and the kept block that then reads what a run left
out."""


@pytest.fixture
def blocks_at(part):
    """`blocks_at(base)`: the blocks of a model."""
    families = part("cache_core.models.families")
    return lambda base: families.blocks_of(base.diffusion_model, families.find_family(base.diffusion_model))


def masks_for(blocks, part):
    """A block kept at the front, in the middle and at the end, at the last three of five steps."""
    names = [".".join(map(str, b.name)) for b in blocks]
    assert len(names) > 1
    for kept in {0, len(names) // 2, len(names) - 1}:
        yield part("cache_core.schedule.masks").Mask.of(5, {"*": [1], names[kept]: [2, 3, 4]}, runs=True)


@pytest.mark.parametrize("name", NAMES)
def test_runs_of_every_family_are_exact_at_the_same_input(models, runs, count, blocks_at, part, name):
    base, data = models(name), tiny.arguments(name)
    exact, blocks, seen = call(base, 0.8, data), blocks_at(base), count(base.diffusion_model)
    for mask in masks_for(blocks, part):
        cache, evaluate = runs(base, "FFCCC", mask=mask)
        evaluate(1.0, tiny.arguments(name, seed=1))
        assert torch.equal(evaluate(0.8, data), exact)
        seen.clear()
        outs = [evaluate(0.8, data) for _ in range(3)]
        report = cache.finish()
        kinds = "".join(r.actual for r in report.records)
        assert all(close(out, exact, 1e-4) for out in outs) and not left_behind(base)
        assert kinds == (
            "FFFFF" if name in READ_INSIDE and mask.names == (READ_INSIDE[name],) else "FFCCC"
        ), report.messages
        assert ("C" not in kinds) == any(
            "do not behave" in m and "conservative steps run in full" in m for m in report.messages
        )
        assert report.peak_bytes <= report.estimated_bytes <= 1.5 * report.peak_bytes
        if "C" in kinds:
            assert {".".join(map(str, block)) for block, _ in seen} == set(mask.names)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.model in NAMES])
def test_runs_stay_exact_with_what_stands_between_the_blocks(
    models, runs, monkeypatch, blocks_at, part, name
):
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
    for mask in masks_for(blocks_at(base), part):
        cache, evaluate = runs(base, "FFCCC", mask=mask)
        run = partial(evaluate, more=case.options)
        run(1.0, opened(later))
        assert torch.equal(run(0.8, opened(data)), exact)
        outs = [run(0.8, opened(data)) for _ in range(3)]
        report = cache.finish()
        assert all(close(out, exact, 1e-4) for out in outs) and not left_behind(base)
        never = (
            case.model in READ_INSIDE or "skips" in name
        )  # a block that does not run leaves nothing to put back
        assert never or "".join(r.actual for r in report.records) == "FFCCC", report.messages
