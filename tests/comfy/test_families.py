"""Every row of the block table on tiny random models in ComfyUI, at every level that the row has."""

from __future__ import annotations

from collections import Counter

import comfy.patcher_extension
import comfyui_version
import pytest
import torch

from tests.comfy import tiny_families as tiny
from tests.comfy.conftest import fill_

LACKING = {"0.3.64": [
    "ace-step 1.5", "anima", "boogu", "cogvideox", "ernie image", "flux 2", "hunyuan video 1.5", "ideogram 4", "kandinsky 5", "krea 2",
    "lens",
    "pixeldit", "wan dancer", "wan scail", "z-image",
], "0.26.0": []}
"""Models of `tiny_families` that a ComfyUI version does not have."""
NAMES = tiny.present()
SIGMAS = [1.0, 0.8, 0.8, 0.5, 0.5, 0.0]


@pytest.fixture(scope="module")
def models():
    """`models(name)`: a tiny model, made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = tiny.build(name, fill_)
        return made[name].model

    return get


@pytest.fixture
def runs(part):
    """`runs(model, kinds, level=..., ...)`: a controller and a function that evaluates the model under it, as the host does."""
    host, controller = part("nodes.host"), part("cache_core.controller")
    settings, schedule = part("cache_core.settings"), part("cache_core.schedule")
    wrappers = {comfy.patcher_extension.WrappersMP.APPLY_MODEL: {host.KEY: [host._apply_model]}}

    def make(base, kinds, sigmas=None, **changes):
        plan = settings.Settings(schedule=schedule.explicit(kinds, 0.3), **changes)
        cache = controller.Controller(plan, sigmas or SIGMAS[:len(kinds)] + [0.0])
        run = host._Run(cache, host.CacheRequest(plan))

        def evaluate(sigma, data, branches=None, begin=True):
            if begin:
                cache.begin_evaluation(sigma)
            return call(base, sigma, data, {"wrappers": wrappers, host.RUN: run}, branches)

        return cache, evaluate

    return make


def call(base, sigma, data, options=None, branches=None):
    """One call of the model; without options a plain one."""
    data, batch = dict(data), len(data["x"])
    branches = branches or ([(1, "u"), (0, "c")] if batch == 2 else [(0, "c")])
    options = {**(options or {}), "sample_sigmas": torch.tensor(SIGMAS), "sigmas": torch.full((batch,), sigma),
               "cond_or_uncond": [c for c, _ in branches], "uuids": [u for _, u in branches]}
    return base.apply_model(data.pop("x"), torch.full((batch,), sigma), transformer_options=options, **data)


STRIDED = ("ace-step 1.5",)
"""Their tokens lie transposed in memory, and their norms round otherwise on ours."""


def equal(a, b) -> bool:
    return torch.equal(a, b)


def close(a, b, limit=1e-5) -> bool:
    return float((a - b).abs().max()) <= limit * float(b.abs().max())


def left_behind(base) -> list[str]:
    return [name for name, m in base.named_modules() if "forward" in m.__dict__]


@pytest.fixture
def count(part):
    """`count(model)`: a Counter that grows with every forward of the model's blocks that really runs."""
    families, seen, handles = part("cache_core.families"), Counter(), []

    def watch(net):
        for block in families.blocks_of(net, families.find_family(net)):
            parts = [m for m in block.module.modules() if isinstance(m, torch.nn.Linear)]
            handles.append(parts[0].register_forward_pre_hook(lambda *_, name=block.name: seen.update([name])))
        return seen

    yield watch
    for handle in handles:
        handle.remove()


LEVELS = ("final", "output", "stack", "block", "module")


@pytest.fixture
def levels(part):
    """`levels(model)`: the levels that the table gives a model."""
    families, fitting = part("cache_core.families"), part("cache_core.fitting")
    return lambda net: fitting.levels_of(families.find_family(net))


def test_the_versions_lack_what_is_written_down():
    assert sorted(set(tiny.TINY) - set(NAMES)) == sorted(LACKING[comfyui_version.__version__])


@pytest.mark.parametrize("name", NAMES)
def test_the_row_is_found(models, part, name):
    families = part("cache_core.families")
    net = models(name).diffusion_model
    family = families.find_family(net)
    assert family.name == tiny.TINY[name].row
    assert bool(families.blocks_of(net, family)) == bool(family.lists)


@pytest.mark.parametrize("name", NAMES)
def test_full_steps_are_bit_identical(models, runs, name):
    base, data = models(name), tiny.arguments(name)
    plain = call(base, 0.8, data)
    for level in LEVELS:
        _, evaluate = runs(base, "FFA", level=level)
        assert equal(evaluate(1.0, data), call(base, 1.0, data)) and equal(evaluate(0.8, data), plain)
        assert not left_behind(base)


@pytest.mark.parametrize("name", NAMES)
def test_aggressive_steps_at_the_same_input_are_exact_and_skip_the_blocks(models, runs, count, levels, name):
    base, data, later = models(name), tiny.arguments(name), tiny.arguments(name, seed=1)
    net = base.diffusion_model
    exact = call(base, 0.8, data)
    seen = count(net)
    for level in levels(net):
        cache, evaluate = runs(base, "FFAFA", level=level)
        evaluate(1.0, later), evaluate(0.8, data)
        seen.clear()
        out = evaluate(0.8, data)
        assert equal(out, exact) if level in ("final", "output") and name not in STRIDED else close(out, exact, 1e-6), level
        assert level == "module" or not seen, level  # at modules, what stands between them runs on
        later_plain = call(base, 0.5, later)
        evaluate(0.5, later)
        assert close(evaluate(0.5, later), later_plain), level
        report = cache.finish()
        assert "".join(r.actual for r in report.records) == "FFAFA" and not report.messages and report.peak_bytes > 0
        assert not left_behind(base)
