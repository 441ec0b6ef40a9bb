"""The self-check in ComfyUI: blocks that another node or a newer ComfyUI has changed, at every level, on real
families."""

from __future__ import annotations

from types import MethodType

import comfyui_version
import pytest
import torch

from tests.comfy import tiny_families as tiny
from tests.comfy.tiny_families import call, close, left_behind

NAMES = [
    name
    for name in ("flux", "wan", "qwen image", "z-image", "ltx video", "hidream")
    if name in tiny.present()
]
STILL = torch.tensor([1.0, 1.0, 0.7, 0.7, 0.4, 0.4, 0.0])


def blocks_of(part, net):
    families = part("cache_core.models.families")
    return families.blocks_of(net, families.find_family(net))


@pytest.fixture
def reuse_buffers(part, monkeypatch):
    """`reuse_buffers(model)`: what the parts of a block give is overwritten behind it, as by kernels that
    keep their buffers."""

    def change(net):
        for block in blocks_of(part, net):
            real, outs = block.module.forward, []
            outputs = getattr(block.spec, "outputs", None)
            paths = set(outputs.values() if outputs else block.spec.modules)
            for module in (m for path, m in block.module.named_modules() if path in paths):
                module.register_forward_hook(lambda m, a, out, outs=outs: outs.append(out))

            def forward(self, *args, real=real, outs=outs, **kwargs):
                outs.clear()
                result = real(*args, **kwargs)
                for out in outs:
                    for t in out if isinstance(out, tuple) else (out,):
                        t.mul_(-1)
                return result

            monkeypatch.setattr(block.module, "forward", MethodType(forward, block.module), raising=False)

    return change


@pytest.fixture
def look_back(part, monkeypatch):
    """`look_back(model)`: the model's output takes something of its first block beside the last."""

    def change(net, monkeypatch=monkeypatch):
        kept, real = [], net.forward
        first = blocks_of(part, net)[0].module

        def keep(module, args, out):
            kept[:] = [t.mean() for t in (out if isinstance(out, tuple) else (out,))[:1]]

        first.register_forward_hook(keep)
        monkeypatch.setattr(net, "forward", lambda *a, **k: real(*a, **k) + kept[0], raising=False)

    return change


@pytest.fixture
def made(fill):
    """`made(name)`: a fresh model, which a test may change."""
    return lambda name: tiny.build(name, fill).model


WAYS = {
    "modules": ("module", "FAFAFA", "FFFAFA", ["aggressive steps put back what each block adds"]),
    "rows": ("final", "FCFCFA", "FFFFFA", ["conservative steps run in full"]),
}


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_parts_of_blocks_that_are_not_what_they_were(made, runs, part, reuse_buffers, name, how):
    base, data = made(name), tiny.arguments(name)
    level, kinds, ran, instead = WAYS[how]
    reuse_buffers(base.diffusion_model)
    exact = call(base, 0.8, data)
    cache, evaluate = runs(base, kinds, level=level)
    for _ in kinds:
        assert close(evaluate(0.8, data), exact)
    report = cache.finish()
    assert "".join(r.actual for r in report.records) == ran
    assert report.messages == [
        f"The blocks of {tiny.TINY[name].row} do not behave as registered in this pack, or another node "
        "has changed "
        f"them; {s}."
        for s in instead
    ]


@pytest.mark.parametrize("level", ["final", "stack"])
@pytest.mark.parametrize("name", NAMES)
def test_models_that_read_more_than_the_last_block(made, runs, levels, part, look_back, name, level):
    base, data = made(name), tiny.arguments(name)
    look_back(base.diffusion_model)
    exact = call(base, 0.8, data)
    cache, evaluate = runs(base, "FAFAFA", level=level)
    for kind in "FFFAFA":
        out = evaluate(0.8, data)
        assert torch.equal(out, exact) if kind == "F" else close(out, exact)
    report = cache.finish()
    assert "".join(r.actual for r in report.records) == "FFFAFA"
    assert left_behind(base) == ["diffusion_model"]  # theirs
    assert [m for m in report.messages if "do not behave" in m][-1].endswith(
        "aggressive steps put back the model's output."
    )


def test_the_sentence_names_the_family_and_the_version(
    flux, cached, sample, report_of, shims, look_back, monkeypatch
):
    plain = sample(flux, sigmas=STILL)
    with monkeypatch.context() as changes:
        look_back(flux.model.diffusion_model, changes)
        changed, patched = sample(flux, sigmas=STILL), cached(flux, "FAFAFA")
        assert not close(changed, plain)
        assert torch.equal(sample(patched, sigmas=STILL), changed)
    report = report_of(patched)
    assert "".join(r.actual for r in report.records) == "FFFAFA" and not shims(flux)
    assert [m for m in report.messages if "do not behave" in m] == [
        f"The blocks of FLUX do not behave in ComfyUI {comfyui_version.__version__} as registered in "
        "this pack, or another node has changed "
        "them; aggressive steps put back the model's output."
    ]
    assert (
        torch.equal(sample(patched, sigmas=STILL), plain) and not report_of(patched).messages
    )  # the next run looks again
