"""How many operations each kind of step takes: what our code adds to those of the model."""

from collections import Counter

import pytest
import torch

from cache_core import recipes
from cache_core.controller import Controller
from cache_core.schedule.plan import explicit
from demo.sampler import schedule_sigmas
from tests.synchronising import Log
from tests.tiny_flux import inputs, plain, random_flux

DOUBLE, SINGLE = 4, 8
VIEWS = set(
    "alias as_strided chunk detach empty empty_like empty_strided expand lift_fresh permute reshape resize_ "
    "select slice split split_with_sizes squeeze t transpose unbind unflatten uniform_ unsafe_view unsqueeze "
    "view".split()
)
"""What launches nothing on a device; random numbers are drawn in main memory."""
MOST_AGGRESSIVE = {"fora": 2, "quality": 11, "adaptive": 11, "balanced": 55}
"""Operations of an aggressive step beyond those of embedding and final layer, at most."""


@torch.no_grad()
def operations(preset, kinds):
    """Operations by kind of step, of the last one of each; "plain" of the model, "ends" of its ends alone."""
    model = random_flux(double=DOUBLE, single=SINGLE).bfloat16()
    data = tuple(t.bfloat16() for t in inputs(model))
    sigmas, found = schedule_sigmas(len(kinds)), {}

    def counted(run):
        with Log() as log:
            run()
        return sum(Counter({k: n for k, n in log.count.items() if k not in VIEWS}).values())

    found["plain"] = counted(lambda: plain(model, 1.0, data))
    cache = Controller(recipes.from_preset(preset, explicit(kinds, 0.1)), sigmas)
    for kind, sigma in zip(kinds, sigmas):

        def step(sigma=sigma):
            cache.begin_evaluation(sigma)
            with cache.call(model, ["cond"], (4, 4)):
                plain(model, sigma, data)

        found[kind] = counted(step)
    cache.finish()
    for block in model.double_blocks:
        block.forward = lambda img, txt, **_: (img, txt)
    for block in model.single_blocks:
        block.forward = lambda x, **_: x
    found["ends"] = counted(lambda: plain(model, 1.0, data))
    return found


def test_a_conservative_step_launches_no_more_than_the_model():
    counted = operations("duca", "FFFCAFCAC")
    assert counted["C"] <= counted["plain"]
    assert counted["F"] <= 1.02 * counted["plain"] + 12


@pytest.mark.parametrize("preset", MOST_AGGRESSIVE)
def test_an_aggressive_step_adds_few_operations(preset):
    counted = operations(preset, "FFFFFAFA")
    assert 0 <= counted["A"] - counted["ends"] <= MOST_AGGRESSIVE[preset]
