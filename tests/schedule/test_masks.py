"""A mask computes what it names and nothing else, and every other module gives what it gave last."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch

from cache_core.config import CacheConfig
from cache_core.controller import Controller
from cache_core.hooks import model_binding
from cache_core.models.families import find_family
from cache_core.predictors.build import forecast
from cache_core.recipes import from_json, settings_of, to_json
from cache_core.schedule.cost import CostModel, estimated_speedup, peak_bytes
from cache_core.schedule.masks import MAX_CELLS, MAX_NAMES, Mask, parts_of
from cache_core.schedule.plan import CacheSchedule, explicit
from demo.scenes import TOKENS
from tests.tiny_flux import (
    RED,
    STAR,
    assert_untouched,
    evaluate,
    follow,
    inputs,
    plain,
    ran,
    random_flux,
    run,
)

SITES = {"attn": ("img_attn.proj", "txt_attn.proj"), "mlp": ("img_mlp", "txt_mlp"), "out": ("linear2",)}
MODULES = ("double.0.attn", "double.0.mlp", "double.1.attn", "double.1.mlp", "single.0", "single.1")
SIGMAS = [1.0, 0.85, 0.7, 0.6, 0.45, 0.3, 0.1, 0.0]
MIXED = Mask.of(
    7, {"*": [4], "double.0.attn": [1, 2], "double.0.mlp": [2, 3], "double.1": [3, 5], "single.1": [1, 5, 6]}
)


@pytest.fixture(scope="module")
def model():
    return random_flux()


def paths(name):
    """The sub-modules of the model that a name stands for."""
    kind, i, *part = name.split(".")
    parts = part or (("attn", "mlp") if kind == "double" else ("out",))
    return [f"{kind}_blocks.{i}.{site}" for p in parts for site in SITES[p]]


def computed(mask, step):
    """Sub-modules that a mask computes at a step."""
    return {p for name in (MODULES if "*" in mask.at(step) else mask.at(step)) for p in paths(name)}


class Oracle:
    """The plain model, whose module outputs are overwritten by what they were when the mask last computed
    them."""

    def __init__(self, model, mask):
        self.model, self.mask, self.kept, self.step = model, mask, {}, 0

    def outputs(self, data, sigmas):
        def hook(path):
            def overwrite(module, args, out):
                if path in computed(self.mask, self.step):
                    self.kept[path] = out.clone()
                return self.kept[path].clone()

            return overwrite

        handles = [
            self.model.get_submodule(p).register_forward_hook(hook(p))
            for name in MODULES
            for p in paths(name)
        ]
        try:
            made = []
            for self.step, (own, sigma) in enumerate(zip(data, sigmas)):
                made.append(plain(self.model, sigma, own))
            return made
        finally:
            for handle in handles:
                handle.remove()


def moving(model, count, batch=2):
    """What each step gets: its own latent, the same text."""
    return [(inputs(model, batch=batch, seed=i)[0], *inputs(model, batch=batch)[1:]) for i in range(count)]


def of_steps(mask, predictor="reuse", level="module"):
    return CacheConfig(mask=mask, level=level, predictor=forecast({"name": predictor}))


EACH = {
    "+".join(names) or "none": Mask.of(3, {n: [1] for n in names})
    for names in [(), *((n,) for n in MODULES), ("double.0",), MODULES[:2], MODULES[1:3], MODULES[3:]]
}


@pytest.mark.parametrize("mask", [MIXED, *EACH.values()], ids=["mixed", *EACH])
def test_with_reuse_every_module_gives_what_was_computed_last(model, mask):
    data = moving(model, mask.steps)
    cache = Controller(of_steps(mask), SIGMAS[: mask.steps] + [0.0])
    outs = [evaluate(cache, model, s, data=d) for s, d in zip(SIGMAS, data[: mask.steps])]
    assert_untouched(model)
    assert "".join(kind for kind, _ in outs) == mask.kinds
    exact = Oracle(model, mask).outputs(data, SIGMAS[: mask.steps])
    for (_, out), wanted in zip(outs, exact):
        assert torch.allclose(out, wanted, atol=1e-5, rtol=1e-5)
    free = plain(model, SIGMAS[1], data[1])
    assert not torch.allclose(outs[1][1], free, atol=1e-3)


def test_only_what_is_named_runs(model):
    seen = []
    # A hook on a module that is replayed fires too, so the MLPs' first layers are watched.
    inner = {p: p + ".0" * p.endswith("_mlp") for name in MODULES for p in paths(name)}
    handles = [
        model.get_submodule(at).register_forward_pre_hook(lambda *_, p=p: seen.append((len(cache.done), p)))
        for p, at in inner.items()
    ]
    cache = Controller(of_steps(MIXED), SIGMAS)
    try:
        follow(cache, model, SIGMAS[:-1])
    finally:
        for handle in handles:
            handle.remove()
    assert sorted(seen) == sorted((step, p) for step in range(7) for p in computed(MIXED, step))


@pytest.mark.parametrize("level", ["final", "output", "stack", "block", "module"])
@pytest.mark.parametrize("predictor", ["reuse", "linear", "newton"])
def test_all_modules_by_name_are_a_full_step_at_every_level(model, level, predictor):
    """Computed values come out as they are whatever the forecast; and the step after gives them again at the
    same noise level."""
    mask = Mask.of(6, {"*": [1, 2], **{name: [4] for name in MODULES}})
    sigmas = [1.0, 0.9, 0.8, 0.6, 0.5, 0.5, 0.0]
    kinds, outs = follow(Controller(of_steps(mask, predictor, level), sigmas), model, sigmas[:-1])
    assert kinds == "FFFACA"
    assert torch.allclose(outs[4], plain(model, 0.5, inputs(model)), atol=1e-5)
    assert torch.allclose(outs[5], outs[4], atol=1e-4) and not torch.allclose(
        outs[3], plain(model, 0.6, inputs(model)), atol=1e-4
    )


def test_history_holds_full_steps_only(model):
    cache = Controller(of_steps(MIXED, "linear"), SIGMAS)
    for i, sigma in enumerate(SIGMAS[:-1]):
        evaluate(cache, model, sigma)
        (branch,) = cache._store.values()
        since = [s for s in range(7) if "*" in MIXED.at(s) and s <= i][-1]
        fresh = {p for s in range(since + 1, i + 1) for p in computed(MIXED, s)}
        for (kind, j, site), held in branch.sites.items():
            assert {n.index for n in held.nodes} <= {0.0, 4.0}
            path = f"{kind}_blocks.{j}." + {"out": "linear2"}.get(
                site, site + ".proj" * site.endswith("attn")
            )
            assert (held.correction is not None) == (path in fresh), (i, path)
        assert not branch.kept


def test_guidance_in_one_call_and_pictures_in_one_batch_change_nothing(model):
    method, kw = of_steps(MIXED), {"guidance": 2, "steps": 7}
    one = run(model, method, (RED, STAR), **kw)
    two = run(model, method, (RED, STAR), split=True, **kw)
    assert ran(one) == ran(two) == MIXED.kinds == "FCCCFCC"
    assert torch.allclose(one.latents, two.latents, atol=1e-5, rtol=0)
    assert torch.allclose(
        one.latents[1:], run(model, method, (STAR,), seeds=[1], **kw).latents, atol=1e-5, rtol=0
    )


def test_heun_follows_the_mask_in_both_evaluations(model):
    result = run(model, of_steps(MIXED), sampler="heun", steps=7)
    assert [(r.step, r.actual) for r in result.report.records if r.phase] == list(enumerate(MIXED.kinds))[:-1]


def test_names_that_the_model_lacks_are_said_and_play_no_part(model):
    more = Mask.of(
        7,
        {
            **dict(MIXED.refresh),
            "double.2.attn": [1],
            "single.0.mlp": [2],
            "double.0.norm": [3],
            "block.1": [6],
        },
    )
    result = run(model, of_steps(more), steps=7)
    said = [m for m in result.report.messages if "does not have" in m]
    assert said == [
        "Ignored mask entries that this model does not have: block.1, double.0.norm, "
        "double.2.attn and 1 more."
    ]
    assert torch.equal(result.latents, run(model, of_steps(MIXED), steps=7).latents)


# --- the value ------------------------------------------------------------------------------------


def test_kinds_follow_from_the_names():
    assert Mask.of(6, {"single.3": [1, 4], "*": [3, 4]}).kinds == "FCAFFA"
    assert Mask(3).kinds == "FAA" and Mask.of(3, {}) == Mask(3)


def test_masks_are_values():
    one, two = (
        Mask.of(4, {"double.0": [2, 1, 1], "*": [3]}),
        Mask.of(4, {"*": [0, 3], "double.0": (1, 2, 3), "single.0": []}),
    )
    assert one == two and hash(one) == hash(two) and one.names == ("double.0",)
    assert one.at(1) == {"double.0"} and one.at(3) == {"*"}
    assert Mask.from_json(one.to_json()) == one == Mask.from_rows([one.at(i) for i in range(4)])
    assert one.to_dict() == {"steps": 4, "refresh": {"*": [0, 3], "double.0": [1, 2]}}


def test_parts_of_a_block():
    names = ["double.1", "double.10.attn", "double.1.mlp", "single.1"]
    assert parts_of(names, ("double", 1)) == {"", "mlp"} and parts_of(names, ("double", 10)) == {"attn"}
    assert parts_of(names, ("double", 0)) == set()


@pytest.mark.parametrize(("steps", "new"), list(product((1, 2, 7, 30, 50), repeat=2)))
def test_scaling_leaves_nothing_out_and_keeps_together_what_belongs_together(steps, new):
    """Also the union of BAC: what contains another module's steps still does."""
    g = torch.Generator().manual_seed(steps * 100 + new)
    inner = [s for s in range(steps) if torch.rand((), generator=g) < 0.3]
    outer = sorted({*inner, *(s for s in range(steps) if torch.rand((), generator=g) < 0.2)})
    mask = Mask.of(steps, {"double.0.mlp": inner, "double.0.attn": outer, "*": [steps - 1]})
    made = mask.scaled(new)
    assert made.steps == new and made.kinds[0] == "F" and (made is mask) == (steps == new)
    for i in range(new):
        assert "double.0.mlp" not in made.at(i) or "double.0.attn" in made.at(i)
    for s in range(steps):
        place = min(int(s * new / steps + 0.5), new - 1)
        assert mask.at(s) <= made.at(place) or "*" in made.at(place)


def test_a_run_of_other_steps_says_that_the_mask_was_scaled(model):
    result = run(model, of_steps(MIXED), steps=5)
    assert result.report.messages == [
        "The mask was made for 7 steps and has been scaled to the 5 steps of this run."
    ]
    assert ran(result) == MIXED.scaled(5).kinds


GOOD = {"steps": 8, "refresh": {"*": [0, 4], "double.0.attn": [1]}}
BAD = {
    "list": [],
    "text": "mask",
    "nothing": None,
    "empty": {},
    "no steps": {"refresh": {}},
    "no refresh": {"steps": 3},
    "field": {**GOOD, "x": 1},
    "number key": {**GOOD, 1: 2},
    "steps text": {**GOOD, "steps": "8"},
    "steps bool": {**GOOD, "steps": True},
    "steps 0": {**GOOD, "steps": 0},
    "steps huge": {**GOOD, "steps": 10**9},
    "steps nan": {**GOOD, "steps": float("nan")},
    "refresh list": {"steps": 3, "refresh": [1]},
    "steps of a name": {"steps": 3, "refresh": {"single.0": 1}},
    "text for steps": {"steps": 3, "refresh": {"single.0": "12"}},
    "deep": {"steps": 3, "refresh": {"single.0": [[1]]}},
    "late": {"steps": 3, "refresh": {"single.0": [3]}},
    "negative": {"steps": 3, "refresh": {"*": [-1]}},
    "half": {"steps": 3, "refresh": {"*": [0.5]}},
    "truth": {"steps": 3, "refresh": {"*": [True]}},
    "name": {"steps": 3, "refresh": {"double": [1]}},
    "long name": {"steps": 3, "refresh": {"a" * 10**6: [1]}},
    "newline": {"steps": 3, "refresh": {"double.0\n": [1]}},
    "unicode": {"steps": 3, "refresh": {"double.٣": [1]}},
    "leading zero": {"steps": 3, "refresh": {"double.01": [1]}},
    "no text": {"steps": 3, "refresh": {7: [1]}},
    "many steps": {"steps": 3, "refresh": {"*": [0] * 20_000}},
    "many names": {
        "steps": 3,
        "refresh": {f"double.{i}.{c}": [1] for i in range(MAX_NAMES // 2) for c in ("attn", "mlp", "x")},
    },
    "many cells": {
        "steps": 10_000,
        "refresh": {f"double.{i}": list(range(10_000)) for i in range(MAX_CELLS // 10_000 + 1)},
    },
}


@pytest.mark.parametrize("name", BAD)
def test_bad_masks_are_refused_in_a_sentence(name):
    with pytest.raises(ValueError, match=r"^[^\n]{5,200}\.$"):
        Mask.read(BAD[name])


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "null", None, 7, '{"steps": 1e999, "refresh": {}}'])
def test_text_that_is_no_mask_is_refused_in_a_sentence(text):
    with pytest.raises(ValueError, match=r"^mask[^\n]+\.$"):
        Mask.from_json(text)


# --- its way through recipes and schedules --------------------------------------------------------


def test_a_recipe_may_hold_a_mask(model):
    recipe = {
        "name": "mine",
        "level": "module",
        "mask": {"steps": 7, "refresh": {k: list(v) for k, v in MIXED.refresh}},
    }
    assert from_json(to_json(recipe)) == recipe
    settings = settings_of(recipe)
    assert settings.mask == MIXED and settings.schedule_for(7).kinds == MIXED.kinds
    assert torch.equal(run(model, settings, steps=7).latents, run(model, of_steps(MIXED), steps=7).latents)
    assert settings_of(recipe, explicit("FFA")).mask is None


@pytest.mark.parametrize(
    "change",
    [{"mask": {"steps": 3}}, {"mask": BAD["late"]}, {"kinds": "FA"}, {"generator": {"type": "full"}}],
    ids=str,
)
def test_recipes_with_a_bad_mask_or_two_plans_are_refused_in_a_sentence(change):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        settings_of({"mask": GOOD, **change})


def test_a_family_may_have_another_plan():
    settings = settings_of({"mask": GOOD, "families": {"FLUX": {"kinds": "FAA"}}})
    assert settings.mask == Mask.read(GOOD) and settings.for_family("FLUX").mask is None
    settings = settings_of({"kinds": "FAA", "families": {"FLUX": {"mask": GOOD}}})
    assert settings.for_family("FLUX").schedule_for(8).kinds == "FCAAFAAA"


def test_a_schedule_carries_its_mask_and_drops_it_where_steps_change():
    made = MIXED.schedule()
    assert (
        CacheSchedule.from_json(made.to_json()) == made
        and json.loads(made.to_json())["mask"] == MIXED.to_dict()
    )
    settings = settings_of({"kinds": "FA", "level": "module"}, made)
    assert settings.mask == MIXED and settings.level == "module"
    assert made.scaled(9).mask is None and made.scaled(7) is made
    with pytest.raises(ValueError, match=r"^mask must give the kinds of its schedule\.$"):
        settings_of({"kinds": "FA"}, CacheSchedule("FA", (0.1, 0.1), mask=MIXED.to_json()))
    with pytest.raises(ValueError, match=r"^mask must be an object\.$"):
        CacheSchedule.from_dict({**made.to_dict(), "mask": [1]})


# --- what it costs --------------------------------------------------------------------------------

SMALL = CostModel(width=8, image_tokens=4, text_tokens=2, double=2, single=2)


def test_work_is_counted_by_module():
    whole, attn, mlp = 6 * (24 * 64 + 4 * 6 * 8), 6 * (8 * 64 + 4 * 6 * 8), 6 * 16 * 64
    cases = {
        (): 0,
        ("double.0",): whole,
        ("double.1.attn",): attn,
        ("double.0.mlp", "double.1.mlp"): 2 * mlp,
        ("double.0", "double.0.mlp"): whole,
        ("single.1",): whole,
        ("single.1.mlp",): 0,
        ("double.2", "single.9"): 0,
    }
    assert {names: SMALL.flops_computed(names) for names in cases} == cases
    assert SMALL.flops_computed(MODULES) == SMALL.flops_full()


def test_report_and_estimate_agree(model):
    report = run(model, of_steps(MIXED), steps=7).report
    size = CostModel(width=128, image_tokens=16, text_tokens=TOKENS, double=2, single=2)
    shares = [size.flops_computed(MIXED.at(s)) / size.flops_full() for s in range(7) if MIXED.kinds[s] == "C"]
    assert report.conservative_cost == pytest.approx(sum(shares) / len(shares))
    assert report.totals()["call_speedup"] == pytest.approx(estimated_speedup(MIXED.schedule(), size))
    assert {r.ratio for r in report.records} == {1.0}


def test_bytes_are_foreseen(model):
    """Every module is kept, and corrected at the step that computes them one by one."""
    size = CostModel(width=128, image_tokens=16, text_tokens=TOKENS, double=2, single=2)
    for level in ("module", "final"):
        mask = Mask.of(4, {name: [1] for name in MODULES})
        report = run(model, of_steps(mask, level=level), steps=4, guidance=1).report
        held = peak_bytes(mask.schedule(), size, bytes_per_value=4, level=level)
        assert report.peak_bytes == held


def test_models_whose_modules_cannot_be_chosen_run_in_full(model, monkeypatch):
    family = find_family(model)
    lists = tuple((path, kind, replace(spec, modules=(), rows={})) for path, kind, spec in family.lists)
    monkeypatch.setattr(model_binding, "find_family", lambda net: replace(family, lists=lists))
    result = run(model, of_steps(MIXED), steps=7)
    assert ran(result) == "F" * 7 and torch.equal(result.latents, run(model, steps=7).latents)
    assert (
        result.report.messages[-1]
        == "Conservative steps ran in full: the modules of FLUX (embedded) cannot be chosen one by one."
    )


def test_a_mask_of_no_steps_but_full_ones_is_plain_sampling(model):
    mask = Mask.of(6, {"*": range(6)})
    assert torch.equal(run(model, of_steps(mask)).latents, run(model).latents)
