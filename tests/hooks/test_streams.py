"""Models that give a picture and a sound: a recipe can hold one back from the forecast, and the error of the
forecast is of the worse one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cache_core.config import CacheConfig
from cache_core.controller import Controller
from cache_core.hooks import model_binding
from cache_core.models.block_spec import BlockSpec, Family, one
from cache_core.predictors.extrapolation import predictor
from cache_core.recipes import recipe_of, settings_of
from cache_core.schedule.plan import explicit

SPEC = BlockSpec((("img", "img", 0), ("audio", "audio", 1)), ("img", "audio"), ("img", "audio"))
ROW = Family("Both", __name__, "Both", (("blocks", "block", SPEC),))
TAYLOR = predictor("taylor", order=1)
SIGMAS = [1.0, 0.8, 0.6, 0.4, 0.0]


class Block(nn.Module):
    def forward(self, img, audio, sigma):
        return img + sigma, audio + sigma**2


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x, sigma):
        img, audio = x
        for block in self.blocks:
            img, audio = block(img, audio, sigma)
        return [img, audio]


def sampled(monkeypatch, level, streams, row=ROW):
    """Picture and sound at step 2, which is skipped, and at the step before; the report."""
    monkeypatch.setattr(model_binding, "find_family", lambda model: row)
    model, data = Both(), [torch.ones(1, 4, 8), torch.ones(1, 3, 6)]
    config = CacheConfig(schedule=explicit("FFAF"), level=level, predictor=TAYLOR, streams=streams)
    cache, outs = Controller(config, SIGMAS), []
    for sigma in SIGMAS[:-1]:
        cache.begin_evaluation(sigma)
        with cache.call(model, ["cond"]):
            outs.append(model(data, sigma))
    return outs[2], outs[1], cache.finish()


@pytest.mark.parametrize("level", ["final", "output", "stack"])
@pytest.mark.parametrize("held", ["img", "audio"])
def test_a_stream_that_is_held_back_is_put_back_as_it_was(monkeypatch, level, held):
    now, before, report = sampled(monkeypatch, level, {held: "reuse"})
    assert "".join(r.actual for r in report.records) == "FFAF" and not report.messages
    for i, stream in enumerate(("img", "audio")):
        assert torch.equal(now[i], before[i]) == (stream == held)
    free, _, _ = sampled(monkeypatch, level, {})
    other = 1 - ("img", "audio").index(held)
    assert torch.equal(now[other], free[other])


def test_the_error_of_the_forecast_is_that_of_the_worse_stream(monkeypatch):
    """The picture is linear in the noise level, so that its forecast is exact; the sound is not."""
    for level in ("final", "output"):
        _, _, report = sampled(monkeypatch, level, {})
        assert report.records[3].forecast_error > 1e-3


def test_streams_in_one_sequence_are_held_apart_at_the_output(monkeypatch):
    row = Family("Both", __name__, "Both", (("blocks", "block", SPEC),), mixed=("audio",))
    now, before, report = sampled(monkeypatch, "final", {"audio": "reuse"}, row)
    assert torch.equal(now[1], before[1]) and not torch.equal(now[0], before[0])
    assert report.messages == [
        "The blocks of Both hold all streams in one sequence, of which audio is not to be forecast; "
        "aggressive steps put back the model's output."
    ]
    assert not sampled(monkeypatch, "final", {}, row)[2].messages
    assert one().streams == ("x",)


def test_a_recipe_has_the_field_and_refuses_others():
    recipe = {"name": "mine", "generator": {"type": "full"}, "streams": {"audio": "reuse"}}
    assert recipe_of(settings_of(recipe))["streams"] == {"audio": "reuse"}
    for wrong in ({"sound": "reuse"}, {"audio": "never"}, ["audio"], {"audio": ["reuse"]}):
        with pytest.raises(ValueError, match="streams must be an object"):
            settings_of({**recipe, "streams": wrong})
