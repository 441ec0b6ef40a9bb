"""Every level puts features back where it took them, exactly where it must; tests/test_method_contract.py has
what all methods keep."""

import pytest
import torch
from torch import nn

from cache_core.base.errors import CacheMismatch
from cache_core.base.names import FINAL, OUTPUT, STACK
from cache_core.controller import Controller
from demo.flux import Flux
from demo.sampler import schedule_sigmas
from tests.tiny_flux import (
    LEVELS,
    PAIRS,
    assert_untouched,
    cached,
    evaluate,
    follow,
    inputs,
    plain,
    random_flux,
)

each_pair = pytest.mark.parametrize(("level", "name"), PAIRS, ids=str)
each_level = pytest.mark.parametrize("level", LEVELS)


@pytest.fixture(scope="module")
def model():
    return random_flux(double=1, single=2)


# --- exact where it must be -----------------------------------------------------------------------


@each_pair
@pytest.mark.parametrize("last", "AC")
def test_full_steps_are_plain_and_an_aggressive_one_at_their_place_gives_their_result(
    model, level, name, last
):
    """In a plan with and without a conservative step."""
    sigmas = [1.0, 0.9, 0.8, 0.7, 0.7, 0.5, 0.0]
    kinds, outs = follow(Controller(cached(level, name, "FFFFA" + last), sigmas), model, sigmas[:-1])
    exact = [plain(model, s, inputs(model)) for s in sigmas[:-1]]
    assert kinds == "FFFFA" + last and all(map(torch.equal, outs[:4], exact))
    assert torch.allclose(outs[4], exact[4], atol=1e-5, rtol=0) and not torch.allclose(
        outs[5], exact[5], atol=1e-3
    )
    if level in ("final", "output", "module"):
        assert torch.equal(outs[4], exact[4])


class Line(nn.Module):
    """A module whose output lies on a line in sigma whatever goes in, added to its input or not."""

    def __init__(self, at, width, seed, adds=False):
        super().__init__()
        self.start, self.slope = (
            0.5 * torch.randn(1, 1, width, generator=torch.Generator().manual_seed(seed + i))
            for i in range(2)
        )
        self.at, self.adds, self.calls = at, adds, 0

    def value(self, x):
        self.calls += 1
        return (x if self.adds else 0) + (self.start + self.at["sigma"] * self.slope).expand(*x.shape[:2], -1)

    def forward(self, x, *args, **kwargs):
        return self.value(x)


class LinePair(Line):
    def forward(self, img, txt, *args, **kwargs):
        return self.value(img), self.value(txt)


class LineFlux(Flux):
    """FLUX that tells its lines where they are."""

    def forward(self, x, timestep, *args, **kwargs):
        self.at["sigma"] = float(timestep[0])
        return super().forward(x, timestep, *args, **kwargs)


def line_flux(level):
    """A model in which whatever is cached at this level is linear in sigma."""
    model = random_flux(double=1, single=1, kind=LineFlux)
    at = model.at = {}
    if level == "module":
        for i, (double, single) in enumerate(zip(model.double_blocks, model.single_blocks)):
            double.img_mlp, double.txt_mlp, single.linear2 = (Line(at, 128, 10 * i + j) for j in range(3))
            double.img_attn.proj, double.txt_attn.proj = Line(at, 128, 10 * i + 5), Line(at, 128, 10 * i + 7)
    else:
        model.double_blocks = nn.ModuleList(LinePair(at, 128, i, adds=True) for i in range(1))
        model.single_blocks = nn.ModuleList(Line(at, 128, 20 + i, adds=True) for i in range(1))
    if level == "output":
        model.final_layer = Line(at, 64, 50)
    return model


@each_level
@pytest.mark.parametrize("name", ["reuse", "newton", "least squares"])
def test_a_line_is_exact_where_what_is_cached_is_linear_in_sigma(level, name):
    model, sigmas = line_flux(level), [1 - (i / 9) ** 1.6 for i in range(10)]
    kinds, outs = follow(Controller(cached(level, name, "FFFAAFAAA"), sigmas), model, sigmas[:-1])
    assert kinds == "FFFAAFAAA"
    off = max(float((out - plain(model, s, inputs(model))).abs().max()) for out, s in zip(outs, sigmas))
    assert (off < 1e-4) == (name != "reuse") and off < 10


# --- the mixed-age rule ---------------------------------------------------------------------------


SITES = {
    "final": {FINAL},
    "output": {OUTPUT},
    "stack": {STACK},
    "singles": {STACK},
    "module": set(),
    "block": {
        ("double", 0, "img"),
        ("double", 0, "txt"),
        ("single", 0, "x"),
        ("single", 1, "x"),
    },
}


@each_level
@pytest.mark.parametrize("name", ["linear", "least squares"])
def test_history_holds_full_steps_only_at_every_level(model, level, name):
    kinds, sigmas = "FFCACFCA", schedule_sigmas(8)
    cache, full = Controller(cached(level, name, kinds), sigmas), []
    for i, sigma in enumerate(sigmas[:-1]):
        assert evaluate(cache, model, sigma)[0] == kinds[i]
        full += [float(i)] if kinds[i] == "F" else []
        (branch,) = cache._store.values()
        assert SITES[level] <= set(branch.sites)
        for site, held in branch.sites.items():
            wanted = full[::-1][: len(held.nodes)]
            assert [n.index for n in held.nodes] == wanted and len(wanted) == len(held.snapshots), site
            assert held.correction is None or kinds[i] != "F", site
        corrected = {site for site, held in branch.sites.items() if held.correction is not None}
        assert corrected & SITES[level] == (set() if kinds[i] == "F" else SITES[level])
        assert len(branch.sites[next(iter(SITES[level]), ("single", 1, "out"))].nodes) == min(
            len(full), cache.settings.predictor.needs
        )


@pytest.mark.parametrize("level", [level for level in LEVELS if level != "singles"])
@pytest.mark.parametrize("name", ["linear", "least squares", "band"])
def test_an_aggressive_step_at_the_place_of_a_conservative_one_gives_its_result(model, level, name):
    """Where no block runs on both; blocks before a stack run plainly on one and from their modules on the
    other."""
    sigmas = [1.0, 0.9, 0.7, 0.5, 0.5, 0.0]
    kinds, outs = follow(Controller(cached(level, name, "FFFCA"), sigmas), model, sigmas[:-1])
    assert kinds == "FFFCA" and torch.allclose(outs[3], outs[4], atol=1e-5, rtol=0)
    assert not torch.allclose(outs[2], outs[3], atol=1e-2)


# --- what does not fit ----------------------------------------------------------------------------


@each_level
@pytest.mark.parametrize("kind", "AC")
@pytest.mark.parametrize("change", [{"size": 12}, {"text": 9}, {"batch": 2}], ids=str)
def test_what_does_not_fit_is_repeated_in_full(model, level, kind, change):
    cache, data = (
        Controller(cached(level, "linear", f"FF{kind}{kind}F"), [1.0, 0.9, 0.8, 0.8, 0.8, 0.0]),
        inputs(model, **change),
    )
    follow(cache, model, (1.0, 0.9))
    exact = plain(model, 0.8, data)
    with pytest.raises(CacheMismatch):
        evaluate(cache, model, 0.8, data=data)
    assert_untouched(model)
    with cache.retry(model, tuple(n // 2 for n in data[0].shape[2:])) as ran_as:
        assert ran_as == "F" and torch.equal(plain(model, 0.8, data), exact)
    kinds, outs = follow(cache, model, (0.8, 0.8), data)
    assert kinds == kind + "F"
    assert torch.allclose(outs[0], exact, atol=1e-5, rtol=0) and torch.equal(outs[1], exact)


@each_pair
def test_a_change_of_size_on_full_steps_starts_afresh(model, level, name):
    cache, data = (
        Controller(cached(level, name, "FFFFA"), [1.0, 0.9, 0.8, 0.7, 0.7, 0.0]),
        inputs(model, size=12),
    )
    follow(cache, model, (1.0, 0.9))
    kinds, outs = follow(cache, model, (0.8, 0.7, 0.7), data)
    assert kinds == "FFA" and torch.allclose(outs[2], plain(model, 0.7, data), atol=1e-5, rtol=0)
