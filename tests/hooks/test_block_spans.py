"""Runs of blocks that a mask holds back together: one delta each, of full steps alone, and nothing of a run
is computed."""

from itertools import groupby

import pytest
import torch
from torch import nn

from cache_core.base.names import LEVELS
from cache_core.config import CacheConfig
from cache_core.controller import Controller
from cache_core.hooks import model_binding as models
from cache_core.memory.budget import Budget
from cache_core.models.block_spec import Family, one
from cache_core.models.detection import DETECTED
from cache_core.predictors.build import forecast
from cache_core.recipes import from_json, settings_of, to_json
from cache_core.schedule.cost import CostModel, peak_bytes
from cache_core.schedule.masks import Mask
from demo.scenes import TOKENS
from tests.models.test_block_spec import data, evaluate, toy  # noqa: F401 (a fixture)
from tests.tiny_flux import RED, STAR, assert_untouched, follow, inputs, plain, random_flux, run
from tests.tiny_flux import evaluate as step_of

SIGMAS = [1.0, 0.85, 0.7, 0.6, 0.45, 0.3, 0.1, 0.0]
KEPT = ("double.1", "single.2")
MASK = Mask.of(7, {"*": [2], **{name: range(7) for name in KEPT}}, runs=True)
DELTAS = {
    ("double", 0, "img"),
    ("double", 0, "txt"),
    ("double", 2, "img"),
    ("double", 2, "txt"),
    ("single", 1, "x"),
    ("single", 3, "x"),
}
"""Sites of the runs double 0, double 2, single 0 to 1 and single 3."""


@pytest.fixture(scope="module")
def model():
    return random_flux(double=3, single=4)


# --- a stack of random blocks ---------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x, sigma):
        return x + torch.tanh(self.inner(x)) * sigma


class Stack(nn.Module):
    """`between` writes into what a block gives; `memory` reads what the second block gave behind the last;
    `lost` blocks do not run."""

    between, memory, lost = False, False, ()

    def __init__(self, count=9):
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.ran = nn.ModuleList(Layer() for _ in range(count)), []
        for i, block in enumerate(self.blocks):
            block.inner.register_forward_pre_hook(lambda *_, i=i: self.ran.append(i))

    def forward(self, x, sigma, text=None):
        h, second = x * 1.0, 0.0
        for i, block in enumerate(self.blocks):
            h = h if i in self.lost else block(h, sigma)
            second = h.clone() if i == 1 and self.memory else second
            if self.between:
                h += 0.1 * (i + 1)
        return (h + second).cumsum(-1)


@pytest.fixture
def stack(monkeypatch):
    family = Family("Stack", __name__, "Stack", (("blocks", "block", one("x")),))
    monkeypatch.setattr(models, "find_family", lambda net: family)
    return Stack().eval().requires_grad_(False)


def keeping(*blocks, steps=5, full=(2,)):
    return CacheConfig(
        mask=Mask.of(steps, {"*": full, **{f"block.{i}": range(steps) for i in blocks}}, runs=True)
    )


@pytest.mark.parametrize(
    "kept",
    [(0,), (8,), (4,), (0, 8), (1, 3, 5, 7), (2, 3, 6), tuple(range(8)), (0, 1, 3, 4, 5, 6, 7, 8)],
    ids=str,
)
def test_a_run_adds_what_it_added_on_the_last_full_step(stack, kept):
    """The oracle adds the deltas by hand, at inputs and noise levels that differ from step to step."""
    cache, runs, deltas = Controller(keeping(*kept), SIGMAS[:5] + [0.0]), [], {}
    for free, places in groupby(range(9), lambda i: i not in kept):
        runs += [(free, list(places))]
    for step, kind in enumerate("FCFCC"):
        x, sigma = data(step)[0], SIGMAS[step]
        h = x * 1.0
        for free, places in runs:
            before = h
            for i in places:
                h = h + torch.tanh(stack.blocks[i].inner(h)) * sigma
            if free and kind == "F":
                deltas[places[-1]] = h - before
            elif free:
                h = before + deltas[places[-1]]
        stack.ran.clear()
        really, out = evaluate(cache, stack, sigma, (x, None))
        assert really == kind and (kind == "F" or stack.ran == list(kept))
        assert torch.allclose(out, h.cumsum(-1), atol=1e-5)
    (branch,) = cache._store.values()
    assert {name: site.bytes for name, site in branch.sites.items()} == {
        ("block", i, "x"): x.numel() * 4 for i in deltas
    }
    assert not cache.finish().messages
    assert_untouched(stack)


def test_what_other_code_adds_between_the_blocks_of_a_run_is_not_added_twice(stack):
    stack.between = True
    cache, x = Controller(keeping(4, 6), [0.5] * 5 + [0.0]), data()[0]
    exact = stack(x, 0.5)
    for kind in "FCFCC":
        really, out = evaluate(cache, stack, 0.5, (x, None))
        assert really == kind and torch.allclose(out, exact, atol=1e-4)
    assert not cache.finish().messages


def test_a_model_that_reads_blocks_inside_a_run_is_found_and_runs_in_full(stack):
    stack.memory = True
    cache, x = Controller(keeping(4), [0.5] * 5 + [0.0], host="Host 1"), data()[0]
    outs = [evaluate(cache, stack, 0.5, (x, None)) for _ in range(5)]
    assert "".join(kind for kind, _ in outs) == "FFFFF" and all(
        torch.equal(out, stack(x, 0.5)) for _, out in outs
    )
    assert cache.finish().messages == [
        "The blocks of Stack do not behave in Host 1 as registered in this pack, or another node has changed "
        "them; conservative steps run in full."
    ]
    assert_untouched(stack)


def test_runs_of_guessed_blocks_are_computed(stack, monkeypatch):
    guess = Family("Stack", DETECTED, "Stack", (("blocks", "block", one("x")),))
    monkeypatch.setattr(models, "find_family", lambda net: guess)
    cache, x = Controller(keeping(4), SIGMAS[:5] + [0.0]), data()[0]
    for sigma in SIGMAS[:5]:
        kind, out = evaluate(cache, stack, sigma, (x, None))
        assert kind == "F" and torch.equal(out, stack(x, sigma))
    assert (
        "Conservative steps ran in full: the modules of Stack cannot be chosen one by one."
        in cache.finish().messages
    )


@pytest.mark.parametrize("lost", [5, 8])
def test_a_run_whose_first_or_last_block_another_node_holds_back_is_never_put_back(stack, lost):
    """From the second full step's successor on."""
    cache, x = Controller(keeping(4, steps=6, full=(3,)), [0.5] * 6 + [0.0]), data()[0]
    assert [evaluate(cache, stack, 0.5, (x, None))[0] for _ in range(2)] == ["F", "C"]
    stack.lost = (lost,)
    exact = stack(x, 0.5)
    for _ in range(3):
        kind, out = evaluate(cache, stack, 0.5, (x, None))
        assert kind == "F" and torch.equal(out, exact)
    stack.lost = ()
    assert_untouched(stack)


def test_tokens_of_another_number_run_in_full(stack):
    cache = Controller(keeping(4), [0.5] * 5 + [0.0])
    evaluate(cache, stack, 0.5, data(tokens=6))
    kind, out = evaluate(cache, stack, 0.5, data(tokens=7))
    assert kind == "F" and torch.equal(out, stack(data(tokens=7)[0], 0.5))
    assert (
        evaluate(cache, stack, 0.5, data(tokens=7))[0] == "F"
        and evaluate(cache, stack, 0.5, data(tokens=7))[0] == "C"
    )


# --- FLUX, and blocks described by a layout -------------------------------------------------------


@pytest.mark.parametrize("predictor", ["reuse", "linear", "newton"])
@pytest.mark.parametrize("level", LEVELS)
def test_flux_is_exact_at_the_same_input_whatever_the_level(model, level, predictor):
    cache = Controller(
        CacheConfig(mask=MASK, level=level, predictor=forecast({"name": predictor})), [0.5] * 7 + [0.0]
    )
    kinds, outs = follow(cache, model, [0.5] * 7)
    assert kinds == MASK.kinds == "FCFCCCC"
    exact = plain(model, 0.5, inputs(model))
    assert all(
        torch.equal(out, exact) if k == "F" else torch.allclose(out, exact, atol=1e-4)
        for k, out in zip(kinds, outs)
    )
    assert not torch.allclose(plain(model, 0.4, inputs(model)), exact, atol=1e-2)


def test_kept_are_the_deltas_of_full_steps_and_nothing_else(model):
    cache = Controller(CacheConfig(mask=MASK, predictor=forecast({"name": "linear"})), SIGMAS)
    for step, sigma in enumerate(SIGMAS[:-1]):
        step_of(cache, model, sigma)
        (branch,) = cache._store.values()
        assert set(branch.sites) == DELTAS and not branch.kept
        nodes = [0.0] if step < 2 else [2.0, 0.0]
        assert all(
            [n.index for n in s.nodes] == nodes and s.correction is None for s in branch.sites.values()
        )


def test_only_kept_blocks_run(model):
    seen = []
    inner = {f"double.{i}": b.img_mlp[0] for i, b in enumerate(model.double_blocks)}
    inner |= {f"single.{i}": b.linear1 for i, b in enumerate(model.single_blocks)}
    handles = [
        m.register_forward_pre_hook(lambda *_, name=name: seen.append(name)) for name, m in inner.items()
    ]
    cache = Controller(CacheConfig(mask=MASK), SIGMAS)
    try:
        for sigma, kind in zip(SIGMAS, MASK.kinds):
            seen.clear()
            assert step_of(cache, model, sigma)[0] == kind and (kind == "F" or seen == list(KEPT))
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    "sampled",
    [
        dict(guidance=2),
        dict(guidance=2, split=True),
        dict(guidance=1, sampler="heun"),
        dict(guidance=1, captions=(RED, STAR)),
    ],
    ids=["two", "apart", "heun", "batch"],
)
@pytest.mark.parametrize("predictor", ["reuse", "newton"])
def test_memory_is_one_tensor_per_run_and_foreseen(model, sampled, predictor):
    report = run(
        model, CacheConfig(mask=MASK, predictor=forecast({"name": predictor})), steps=7, **sampled
    ).report
    assert report.estimated_bytes == report.peak_bytes > 0 and not report.messages
    size = CostModel(width=128, image_tokens=16, text_tokens=TOKENS, double=3, single=4)
    kept = {"reuse": 1, "newton": 2}[predictor]
    assert report.peak_bytes == peak_bytes(
        MASK.schedule(), size, snapshots=kept, bytes_per_value=4, branches=2
    )
    assert peak_bytes(MASK.schedule(), size, bytes_per_value=4) == 4 * size.tokens * 128 * 4
    assert report.conservative_cost == pytest.approx(2 / 7)


def test_guidance_in_one_call_and_pictures_in_one_batch_change_nothing(model):
    settings, kw = CacheConfig(mask=MASK), {"guidance": 2, "steps": 7}
    one_call = run(model, settings, (RED, STAR), **kw)
    assert torch.allclose(
        one_call.latents, run(model, settings, (RED, STAR), split=True, **kw).latents, atol=1e-5, rtol=0
    )
    assert torch.allclose(
        one_call.latents[1:], run(model, settings, (STAR,), seeds=[1], **kw).latents, atol=1e-5, rtol=0
    )


def test_deltas_that_do_not_fit_are_not_kept(model):
    cache = Controller(CacheConfig(mask=MASK), SIGMAS, budget=Budget(1000))
    outs = []
    for sigma in SIGMAS[:-1]:
        cache.begin_evaluation(sigma)
        outs.append(cache.guarded(lambda sigma=sigma: plain(model, sigma, inputs(model)), model, ["cond"]))
    report = cache.finish()
    assert "".join(r.actual for r in report.records) == "F" * 7 and report.peak_bytes == 0
    assert report.messages == [
        "The caches would need about 42 KiB, and 1000 B are allowed: conservative steps run as full ones."
    ]
    assert all(torch.equal(out, plain(model, s, inputs(model))) for s, out in zip(SIGMAS, outs))


def test_a_mask_that_keeps_every_block_computes_them_all(model):
    every = [f"double.{i}" for i in range(3)] + [f"single.{i}" for i in range(4)]
    result = run(model, CacheConfig(mask=Mask.of(6, {name: range(6) for name in every}, runs=True)))
    assert torch.equal(result.latents, run(model).latents) and result.report.peak_bytes == 0


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("kept", ["double.0", "double.1", "single.0", "single.1"])
def test_layouts_are_exact_at_the_same_input(toy, kept, writes):  # noqa: F811
    net, given = toy(writes), data()
    cache = Controller(CacheConfig(mask=Mask.of(5, {"*": [2], kept: range(5)}, runs=True)), [0.5] * 5 + [0.0])
    exact = net(given[0].clone(), 0.5, given[1].clone())
    for kind in "FCFCC":
        really, out = evaluate(cache, net, 0.5, given)
        assert really == kind and torch.allclose(out, exact, atol=1e-5)
    assert not cache.finish().messages
    assert_untouched(net)


# --- the value ------------------------------------------------------------------------------------


def test_runs_break_where_a_block_is_kept_and_where_the_kind_changes():
    blocks = [("double", i) for i in range(4)] + [("single", i) for i in range(5)]

    def held(*kept):
        return Mask.of(2, dict.fromkeys(kept, (1,)), runs=True).held(blocks)

    assert held("single.9") == ((0, 3), (4, 8)) and held("double.1", "single.0") == ((0, 0), (2, 3), (5, 8))
    assert held("double.3", "single.4") == ((0, 2), (4, 7))
    assert held(*(f"{kind}.{i}" for kind, i in blocks)) == ()


@pytest.mark.parametrize(("steps", "new"), [(7, 3), (7, 5), (7, 12), (7, 50), (7, 1)])
def test_scaled_to_other_steps_every_cached_step_keeps_the_same_blocks(steps, new):
    made = MASK.scaled(new)
    assert made.runs and made.steps == new and set(made.kinds) <= set("FC")
    assert all(made.at(i) in ({"*"}, set(KEPT)) for i in range(new))


def test_runs_travel_with_recipes_and_schedules():
    assert Mask.from_json(MASK.to_json()) == MASK and MASK.to_dict()["runs"] is True
    assert MASK != Mask(MASK.steps, MASK.refresh) and "runs" not in Mask(MASK.steps, MASK.refresh).to_dict()
    recipe = {"name": "mine", "mask": MASK.to_dict()}
    assert settings_of(from_json(to_json(recipe))).mask == MASK
    assert settings_of({"kinds": "FA"}, MASK.schedule()).mask == MASK


@pytest.mark.parametrize(
    "refresh",
    [{"*": [0, 2]}, {"single.0": [1]}, {"single.0.mlp": [1, 2]}, {"single.0": [1, 2], "double.0": [2]}],
    ids=str,
)
def test_masks_whose_runs_would_differ_are_refused_in_a_sentence(refresh):
    with pytest.raises(
        ValueError,
        match=r"^mask.runs needs the same whole blocks, at least one, at every step that is not full\.$",
    ):
        Mask.read({"steps": 3, "refresh": refresh, "runs": True})
    assert not Mask.read({"steps": 3, "refresh": refresh}).runs


@pytest.mark.parametrize("runs", [1, "true", None, []])
def test_runs_are_true_or_false(runs):
    with pytest.raises(ValueError, match=r"^mask.runs must be true or false\.$"):
        Mask.read({"steps": 2, "refresh": {"single.0": [1]}, "runs": runs})
