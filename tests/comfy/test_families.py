"""Every row of the registry on tiny random models in ComfyUI, at every level that the row has."""

from __future__ import annotations

import importlib
import json

import comfy.sample
import pytest
import torch

from stress.comfy_start import comfyui_version, nearest
from tests.comfy import tiny_families as tiny
from tests.comfy.tiny_families import PAGES, call, close, joined, left_behind

VERSION = comfyui_version()
NEW = ["minimax h3", "minimax music 3", "wan animate 2", "mage flow", "joyimage", "trellis 2"]
"""Models of `tiny_families` that ComfyUI 0.33 has and 0.26 not."""
LACKING = {
    "0.3.64": [
        *NEW,
        "ltx 2",
        "ltx 2 without sound",
        "pid",
        "triposplat",
        "wan scail 2",
        "wan self forcing",
        "z-image pixel",
        "ace-step 1.5",
        "anima",
        "boogu",
        "cogvideox",
        "ernie image",
        "flux 2",
        "hunyuan video 1.5",
        "ideogram 4",
        "kandinsky 5",
        "krea 2",
        "lens",
        "pixeldit",
        "wan dancer",
        "wan scail",
        "z-image",
    ],
    "0.26.0": NEW,
    "0.33.0": [],
}
"""Models of `tiny_families` that a ComfyUI version does not have."""
NAMES = tiny.present()


STRIDED = ("ace-step 1.5",)
"""Their tokens lie transposed in memory, and their norms round otherwise on ours."""


LEVELS = ("final", "output", "stack", "block", "module")


def known(pages):
    """What a page by version says of this ComfyUI, or of the nearest version that it has."""
    return pages[nearest(VERSION, pages)]


def test_the_versions_lack_what_is_written_down():
    assert sorted(set(tiny.TINY) - set(NAMES)) == sorted(LACKING[nearest(VERSION, LACKING)])


@pytest.mark.parametrize("name", NAMES)
def test_the_row_is_found(models, part, name):
    families = part("cache_core.models.families")
    net = models(name).diffusion_model
    family = families.find_family(net)
    assert family.name == tiny.TINY[name].row
    assert bool(families.blocks_of(net, family)) == bool(family.lists)


@pytest.mark.parametrize("name", NAMES)
def test_full_steps_are_bit_identical(models, runs, name):
    base, data = models(name), tiny.arguments(name)
    plain = call(base, 1.0, data)
    for level in LEVELS:
        _, evaluate = runs(base, "FA", level=level)
        assert torch.equal(evaluate(1.0, data), plain), level


@pytest.mark.parametrize("name", NAMES)
def test_aggressive_steps_at_the_same_input_are_exact_and_skip_the_blocks(
    models, runs, count, replayed, levels, name
):
    base, data, later = models(name), tiny.arguments(name), tiny.arguments(name, seed=1)
    net = base.diffusion_model
    exact = call(base, 0.8, data)
    seen = count(net)
    for level in levels(net):
        cache, evaluate = runs(base, "FFA", level=level)
        evaluate(1.0, later), evaluate(0.8, data)
        seen.clear()
        out = evaluate(0.8, data)
        assert (
            torch.equal(out, exact)
            if level in ("final", "output") and name not in STRIDED
            else close(out, exact, 1e-6)
        ), level
        assert not {b for b, path in seen if level != "module" or path in replayed(net, b)}, level
        report = cache.finish()
        assert (
            "".join(r.actual for r in report.records) == "FFA"
            and not report.messages
            and report.peak_bytes > 0
        )
        assert not left_behind(base)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_repeats_exactly_and_leaves_nothing(models, runs, name):
    """Tokens that change between steps: skipped steps differ from plain ones, and a second run from the first
    in nothing."""
    base, frames = models(name), [tiny.arguments(name, seed=i) for i in range(4)]
    outs = []
    for _ in range(2):
        given = [x.clone() for d in frames for x in d.values() if isinstance(x, torch.Tensor)]
        cache, evaluate = runs(base, "FFAF", level="final")
        outs.append([evaluate(sigma, data) for sigma, data in zip((1.0, 0.8, 0.6, 0.4), frames)])
        assert all(
            torch.equal(a, b)
            for a, b in zip(given, (x for d in frames for x in d.values() if isinstance(x, torch.Tensor)))
        )
        assert (
            not left_behind(base)
            and not cache.finish().messages[1:]
            and not cache._store
            and not cache._models
        )
    assert all(torch.equal(a, b) for a, b in zip(*outs))
    assert all(
        torch.equal(outs[0][i], call(base, sigma, frames[i])) for i, sigma in ((0, 1.0), (1, 0.8), (3, 0.4))
    )
    assert not close(outs[0][2], call(base, 0.6, frames[2]), 1e-3) and outs[0][2].isfinite().all()


AT_EVERY_LEVEL = ("flux 2", "wan", "qwen image", "cosmos", "boogu", "ltx 2", "pixeldit")
"""Of every way in which tokens lie in the blocks' calls, one model."""
PLAIN_PAIRS = [name for name in NAMES if not tiny.TINY[name].pair and name not in tiny.ONE_BY_ONE]


@pytest.mark.parametrize("name", PLAIN_PAIRS)
def test_two_branches_in_one_call_equal_two_calls(models, runs, levels, name):
    """And free memory may regroup them in the middle of a run."""
    base = models(name)
    u, c = [tiny.arguments(name, seed=i) for i in (3, 4)]
    two, has = joined(u, c), levels(base.diffusion_model)
    for level in has if name in AT_EVERY_LEVEL else has[:1]:
        (_, apart), (_, together), (_, mixed) = (runs(base, "FFA", level=level) for _ in range(3))
        for i, sigma in enumerate((1.0, 0.9, 0.8)):
            outs = [apart(sigma, u, [(1, "u")]), apart(sigma, c, [(0, "c")], begin=False)]
            whole = together(sigma, two, [(1, "u"), (0, "c")])
            if i < 2:
                parts = mixed(sigma, two, [(1, "u"), (0, "c")]).chunk(2)
            else:
                parts = mixed(sigma, c, [(0, "c")]), mixed(sigma, u, [(1, "u")], begin=False)
                parts = parts[::-1]
            for out, part, other in zip(outs, whole.chunk(2), parts):
                assert close(part, out, 1e-4) and close(other, out, 1e-4), (level, i)


SECOND_SIZES = [name for name in NAMES if tiny.TINY[name].other]


@pytest.mark.parametrize("name", SECOND_SIZES)
def test_another_number_of_frames_is_another_branch(models, runs, levels, name):
    base, short, long = models(name), tiny.arguments(name), tiny.arguments(name, other=True)
    for level in levels(base.diffusion_model):
        cache, evaluate = runs(base, "FFA", level=level)
        for sigma in (1.0, 0.8):
            evaluate(sigma, short)
        assert torch.equal(evaluate(0.8, long), call(base, 0.8, long)), (
            level
        )  # planned to be skipped, but nothing is cached for it
        assert close(evaluate(0.8, short, begin=False), call(base, 0.8, short)), level
        cache.finish()


@pytest.mark.parametrize("name", SECOND_SIZES)
def test_tokens_of_another_size_under_one_key_run_in_full(models, runs, levels, part, monkeypatch, name):
    """As if the host could not tell the sizes apart."""
    monkeypatch.setattr(part("nodes.comfy.branch_keys"), "chunks", lambda *_: ["one key"])
    base, short, long = models(name), tiny.arguments(name), tiny.arguments(name, other=True)
    for level in levels(base.diffusion_model):
        cache, evaluate = runs(base, "FFAA", level=level)
        for sigma in (1.0, 0.8):
            evaluate(sigma, short)
        assert torch.equal(evaluate(0.8, long), call(base, 0.8, long)), level
        assert close(evaluate(0.8, long), call(base, 0.8, long)), level
        report = cache.finish()
        assert [r.actual for r in report.records] == list("FFFA") and report.records[2].reason == "mismatch"
        assert not left_behind(base)


SAMPLED = {
    "wan": {},
    "qwen image": {},
    "sd 3.5": {"pooled_output": torch.zeros(1, 32)},
    "lumina 2": {"attention_mask": torch.ones(1, 5, dtype=torch.long)},
}


@pytest.mark.parametrize("preset", ["balanced", "duca", "off"])
@pytest.mark.parametrize("name", SAMPLED)
def test_presets_sample_through_comfyui(cached, fill, report_of, shims, name, preset):
    model, latent = tiny.build(name, fill), torch.zeros(1, *tiny.TINY[name].latent)
    patched = cached(model, preset=preset)

    def sample(model):
        conds = [[[tiny.arguments(name, seed=i)["c_crossattn"], dict(SAMPLED[name])]] for i in (1, 2)]
        noise = comfy.sample.prepare_noise(latent, 0)
        return comfy.sample.sample(
            model, noise, 14, 3.0, "euler", "simple", *conds, latent, disable_pbar=True, seed=0
        )

    out, plain = sample(patched), sample(model)
    report, off = report_of(patched), preset == "off"
    assert torch.equal(out, plain) == off and out.isfinite().all() and not shims(model)
    kinds = {r.actual for r in report.records}
    assert report.family == tiny.TINY[name].row and ("A" in kinds) == (not off)
    assert ("C" in kinds) == (
        preset == "duca" and "tokens" in known(json.loads(PAGES.read_text()))[report.family]
    )


def test_a_wrapper_of_another_node_around_a_block_is_called_and_left(models, runs):
    base = models("qwen image")
    data, last, calls = tiny.arguments("qwen image"), base.diffusion_model.transformer_blocks[-1], []
    cache, evaluate = runs(base, "FFA")
    last.forward = wrapper = lambda **kw: calls.append(1) or type(last).forward(last, **kw)
    try:
        for sigma in (1.0, 0.8, 0.8):
            out = evaluate(sigma, data)
        assert len(calls) == 2 and last.__dict__["forward"] is wrapper
        assert torch.equal(out, call(base, 0.8, data))
    finally:
        del last.forward
    assert "".join(r.actual for r in cache.finish().records) == "FFA"


def test_a_video_made_part_by_part_is_sampled_plainly(models, runs, monkeypatch):
    name = "wan"
    base, data = models(name), tiny.arguments(name)
    cache, evaluate = runs(base, "FAA")
    seen = []
    monkeypatch.setattr(base, "_apply_model", lambda *a, **kw: seen.append(1) or data["x"])
    for sigma in (1.0, 0.8, 0.6):
        evaluate(sigma, data, more={"ar_state": {"start_frame": 0}})
    report = cache.finish()
    assert len(seen) == 3 and {r.actual for r in report.records} == {"F"}
    assert report.messages == [
        "Wan is sampled plainly: its sampler makes the video part by part and keeps keys and values of "
        "its own."
    ]


def test_rows_and_their_levels_are_those_of_the_page(models, part):
    """tests/fixtures/families.json, from which docs/families.md is made."""
    families, fitting = part("cache_core.models.families"), part("cache_core.models.capabilities")
    rows = [families.find_family(models(name).diffusion_model) for name in NAMES]
    rows += [r for r in families.FAMILIES if r.refusal and has_class(r.module, r.model)]
    found = {row.name: fitting.abilities(row) for row in sorted(rows, key=lambda r: r.name.lower())}
    pages = json.loads(PAGES.read_text(encoding="utf-8"))
    assert known(pages) == found, (
        "If this is meant, run `python -m tools.regenerate snapshots FOLDER` with the folder of this ComfyUI."
    )


def has_class(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return False


BY_TOKEN = {"by": "token", "pool": [{"name": "reuse"}, {"name": "taylor", "order": 1, "coordinate": "index"}]}


@pytest.mark.parametrize("flags", [{}, {"run_vx": False}, {"run_ax": False}], ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if name in ("ltx 2", "ltx video")])
def test_a_probe_of_blocks_that_write_into_their_input_changes_nothing(models, runs, part, name, flags):
    """Also where a flag leaves out the attention at which the probe ends."""
    base, data = models(name), tiny.arguments(name)
    cache, evaluate = runs(
        base, "FFA", level="final", predictor=part("cache_core.predictors.build").forecast(BY_TOKEN)
    )
    for sigma in (1.0, 0.8):
        assert torch.equal(evaluate(sigma, data, more=flags), call(base, sigma, data, flags))
    assert torch.isfinite(evaluate(0.8, data, more=flags)).all()
    cache.finish()


@pytest.mark.parametrize("name", [name for name in NAMES if name in ("ltx 2", "ltx video")])
def test_flags_that_leave_out_parts_of_a_model_tell_branches_apart(models, runs, name):
    base, data = models(name), tiny.arguments(name)
    cache, evaluate = runs(base, "FFA", level="final")
    evaluate(0.8, data, more={"run_vx": True}), evaluate(0.8, data, more={"run_vx": False})
    assert close(evaluate(0.8, data, more={"run_vx": True}), call(base, 0.8, data, {"run_vx": True}), 1e-6)
    cache.finish()


def test_branches_that_do_not_come_back_are_freed(models, runs):
    """As those of context windows that move with every step."""
    base, data, held = models("wan"), tiny.arguments("wan"), []
    cache, evaluate = runs(base, "FAF" * 4, level="final", sigmas=[1 - i / 12 for i in range(13)])
    for i in range(12):
        evaluate(1 - i / 12, data, [(0, f"window {i}")])
        held.append(sum(b.bytes for b in cache._store.values()))
    assert len(cache._store) <= 4 and held[-1] <= max(held[:5])
    cache.finish()


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name in ("anima", "cosmos predict 2", "stable audio", "ace-step")]
)
def test_modules_are_not_kept_where_no_conservative_step_can_use_them(models, runs, name):
    base, data, peaks = models(name), tiny.arguments(name), []
    for kinds in ("FFAA", "FFCA"):
        cache, evaluate = runs(base, kinds, level="final")
        for sigma in (1.0, 0.8, 0.6, 0.4):
            evaluate(sigma, data)
        peaks.append(cache.finish().peak_bytes)
    assert peaks[0] == peaks[1]


@pytest.mark.parametrize("name", [name for name in NAMES if name == "ltx 2"])
def test_blocks_whose_attention_is_left_out_tell_branches_apart(models, runs, name):
    """As the guidance of LTX 2.5 calls its model, whether or not this ComfyUI reads the option."""
    base, data = models(name), tiny.arguments(name)
    cache, evaluate = runs(base, "FAF", level="final")
    perturbed = {"stg_self_attn_blocks": (1,)}
    evaluate(0.8, data)
    assert close(evaluate(0.8, data, more=perturbed), call(base, 0.8, data, perturbed), 1e-6)
    assert cache.finish().records[1].reason == "no_snapshot"
