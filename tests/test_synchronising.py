"""No step makes the host wait for the device: operations are counted per kind of step for every preset.

`tests/fixtures/waits.json` holds what is left, {preset: {kind: {operation: count}}}; a step without any is
not named. `lift_fresh` there is a table of weights, made in main memory and sent through pinned memory. The
first full step, which the self-check looks at, is left out.
"""

import json
from pathlib import Path

import pytest
import torch

from cache_core import recipes
from cache_core.controller import Controller
from cache_core.predictors import extrapolation, grouped
from cache_core.schedule.plan import explicit
from demo.sampler import schedule_sigmas
from tests.synchronising import Log
from tests.tiny_flux import evaluate, inputs, plain, random_flux

TABLE = json.loads((Path(__file__).parent / "fixtures" / "waits.json").read_text(encoding="utf-8"))
PLAN = "FFFCAFFCAAFA"


@torch.no_grad()
def waits_of(preset):
    for kept in (grouped._table, extrapolation._weights):  # of earlier runs
        kept.cache_clear()
    settings = recipes.from_preset(preset, explicit(PLAN, 0.3))
    model, sigmas = random_flux(), schedule_sigmas(len(PLAN))
    data, cache, found = inputs(model), Controller(settings, sigmas), {}
    with Log() as log:
        plain(model, sigmas[0], data)
    own = log.waits()  # of the model itself
    for i, sigma in enumerate(sigmas[:-1]):
        with Log() as log:
            kind = evaluate(cache, model, sigma, data=data)[0]
        worst = found.setdefault(kind, {})
        for name, n in log.waits().items() if i else ():
            worst[name] = max(worst.get(name, 0), n - own.get(name, 0))
    with Log() as log:
        cache.finish()
    found["end"] = log.waits()
    left = {kind: {name: n for name, n in waits.items() if n > 0} for kind, waits in found.items()}
    return {kind: waits for kind, waits in left.items() if waits}


@pytest.mark.parametrize("preset", recipes.preset_names())
def test_waits_are_those_of_the_table(preset):
    assert waits_of(preset) == TABLE.get(preset, {})


def test_what_waits_is_seen():
    with Log() as log:
        float(torch.ones(1).sum())
        torch.ones(3)[torch.ones(3, dtype=torch.bool)]
        torch.tensor([1.0])
    assert log.waits() == {"_local_scalar_dense": 1, "nonzero": 1, "lift_fresh": 1}
