"""Sub-modules of blocks in every family of ComfyUI: outputs replayed, rows of MLPs refreshed, the probe at
the first block's attention."""

from __future__ import annotations

import json

import pytest

from stress.comfy_start import comfyui_version, nearest
from tests.comfy import tiny_families as tiny
from tests.comfy.tiny_families import PAGES, call, close, left_behind

NAMES = tiny.present()
FLUX_BLOCKS = ("FLUX", "FLUX.2", "Chroma", "Chroma Radiance", "HunyuanVideo", "Hunyuan3D 2")
"""Families whose blocks have an adapter of their own, which other tests look at."""
KNOWN = json.loads(PAGES.read_text(encoding="utf-8"))
CAN = KNOWN[nearest(comfyui_version(), KNOWN)]
TOKENS = [row for row, can in CAN.items() if "tokens" in can]
REFRESHED = [
    name for name in NAMES if tiny.TINY[name].row in TOKENS and tiny.TINY[name].row not in FLUX_BLOCKS
]
UNPROBED = (
    "cogvideox",
    "cosmos",
    "pixeldit",
    "pid",
    "hunyuan 3d 2.1",
    "minimax music 3",
    "trellis 2",
    "wan animate 2",
    *(["hunyuan video"] if comfyui_version() == "0.3.64" else []),
)
"""Models of which the table has no word on what their attention reads, or that have no tokens to put back."""


@pytest.mark.parametrize("name", NAMES)
def test_conservative_steps_run_or_say_why_not(models, runs, part, name):
    base, data = models(name), tiny.arguments(name)
    cache, evaluate = runs(base, "FFC", level="final")
    evaluate(1.0, tiny.arguments(name, seed=1)), evaluate(0.8, data)
    assert close(evaluate(0.8, data), call(base, 0.8, data), 1e-4)
    report = cache.finish()
    told = [m for m in report.messages if m.startswith("Conservative steps ran in full")]
    assert (report.records[2].actual, len(told)) == (("C", 0) if tiny.TINY[name].row in TOKENS else ("F", 1))


@pytest.mark.parametrize("name", REFRESHED)
def test_conservative_steps_replay_attention_and_refresh_rows_of_the_mlps(models, runs, part, name):
    """With all rows a step is the model with the attention of the last full step, here put back by hooks."""
    families = part("cache_core.models.families")
    base, before, now = models(name), tiny.arguments(name, seed=1), tiny.arguments(name, seed=2)
    blocks = families.blocks_of(base.diffusion_model, families.find_family(base.diffusion_model))
    kept, handles = {}, []
    for block in blocks:
        for path, m in block.module.named_modules():
            if path in block.spec.modules and path not in block.spec.rows:
                mark = (block.name, path)
                handles.append(
                    m.register_forward_hook(lambda _, a, out, mark=mark: kept.setdefault(mark, out))
                )
    call(base, 0.8, before)
    expected = call(
        base, 0.5, now
    )  # setdefault gives what was kept, and a hook's result replaces the module's
    for handle in handles:
        handle.remove()
    outs = {}
    for ratio in (1.0, 0.5, 0.0):
        cache, evaluate = runs(base, "FC", level="final", ratio=ratio)
        evaluate(0.8, before)
        outs[ratio] = evaluate(0.5, now)
        assert "".join(r.actual for r in cache.finish().records) == "FC"
    assert close(outs[1.0], expected, 1e-4)
    assert not close(outs[0.0], expected, 1e-3) and not close(outs[0.0], outs[0.5], 1e-3)
    assert not left_behind(base)


MASKED = [
    name
    for name in NAMES
    if "module" in CAN.get(tiny.TINY[name].row, ()) and tiny.TINY[name].row not in FLUX_BLOCKS
]


@pytest.mark.parametrize("name", MASKED)
def test_masks_compute_the_modules_that_they_name(models, runs, part, name):
    """All of them give the model's own result; without the MLPs it is that of the MLPs of the full step, put
    back by hooks."""
    families, masks = part("cache_core.models.families"), part("cache_core.schedule.masks")
    base, before, now = models(name), tiny.arguments(name, seed=1), tiny.arguments(name, seed=2)
    blocks = families.blocks_of(base.diffusion_model, families.find_family(base.diffusion_model))
    names, kept, handles = [".".join(map(str, b.name)) for b in blocks], {}, []
    whole = call(base, 0.5, now)
    for block in blocks:
        for path, m in block.module.named_modules():
            if path in block.spec.modules and block.spec.part(path) == "mlp":
                mark = (block.name, path)
                handles.append(
                    m.register_forward_hook(lambda _, a, out, mark=mark: kept.setdefault(mark, out))
                )
    call(base, 0.8, before)
    expected = call(base, 0.5, now)
    for handle in handles:
        handle.remove()
    for computed, exact in ((names, whole), ([f"{n}.attn" for n in names], expected)):
        cache, evaluate = runs(
            base, "FC", level="final", mask=masks.Mask.of(2, dict.fromkeys(computed, (1,)))
        )
        evaluate(0.8, before)
        assert close(evaluate(0.5, now), exact, 1e-4)
        report = cache.finish()
        assert "".join(r.actual for r in report.records) == "FC" and not report.messages
    assert not left_behind(base)


@pytest.mark.parametrize("name", NAMES)
def test_the_probe_is_of_the_tokens_that_are_put_back(models, runs, count, part, name):
    """A forecast that chooses a rule for each token by a look at what the first block reads."""
    base, forecasts = models(name), part("cache_core.predictors.build")
    rules = [{"name": "reuse"}, {"name": "linear"}, {"name": "newton"}]
    seen, final = count(base.diffusion_model), part("cache_core.hooks.wiring").FINAL
    cache, evaluate = runs(
        base, "FFFA", level="final", predictor=forecasts.forecast({"by": "token", "pool": rules})
    )
    for i, sigma in enumerate((1.0, 0.8, 0.6)):
        evaluate(sigma, tiny.arguments(name, seed=i))
    sites = [(b.sites[final], b.evidence) for b in cache._store.values() if final in b.sites]
    full = dict(seen)
    seen.clear()
    assert evaluate(0.5, tiny.arguments(name, seed=5)).isfinite().all()
    assert sum(seen.values()) <= 0.5 * sum(full.values()) / 3
    probed = bool(sites) and all(
        [seen.shape[:2] for seen in e.past.snapshots] == [x.shape[:2] for x in s.snapshots] for s, e in sites
    )
    assert probed == (name not in UNPROBED)
    cache.finish()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"attention": "live"},
            "Attention of single tokens of Wan cannot be computed afresh; it is replayed.",
        ),
        (
            {"selector": "value_norm_high"},
            "The attention values of Wan cannot be read; tokens are chosen at random.",
        ),
    ],
)
def test_what_rows_of_a_family_cannot_have_gives_way_with_a_sentence(models, runs, part, changes, sentence):
    if "selector" in changes:
        changes = {"selector": part("cache_core.selectors.token_selection").Selector(changes["selector"])}
    base = models("wan")
    cache, evaluate = runs(base, "FC", **changes)
    assert all(evaluate(s, tiny.arguments("wan")).isfinite().all() for s in (0.8, 0.5))
    report = cache.finish()
    assert report.messages == [sentence] and report.records[1].actual == "C"
