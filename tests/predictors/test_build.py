"""Forecasts as data: every kind survives a round trip, and what is no forecast is refused in one sentence
that names the field."""

import json
import math

import pytest

from cache_core.predictors.adaptive import Adaptive, ProbeGain
from cache_core.predictors.build import forecast
from cache_core.predictors.extrapolation import MEMBERS, Predictor
from cache_core.predictors.grouped import ByBand, ByChannel, ByToken

RULES = [{"name": "linear", "gain": 0.8}, {"name": "newton", "order": 3, "coordinate": "log_snr"}]
WHOLE = [
    *({"name": n} for n in MEMBERS),
    {"name": "spectrum", "order": 2, "ridge": 0.5, "blend": 0.25, "coordinate": "index"},
    {"name": "hermite", "damping": 0.25, "horizon": "fixed", "gain": 1.5},
    {"name": "probe_gain"},
    {"name": "probe_gain", "blocks": 3, "low": None, "high": 2.0},
    {"name": "newton", "order": 3, "adapt": "back_off"},
    {"name": "linear", "gain": 0.7, "adapt": "least_squares", "pull": 0.5, "limit": 2.0},
    {"by": "channel", "pool": RULES, "clusters": 3, "steps": 5},
    {"by": "band", "low": {"name": "reuse"}, "high": RULES[1], "cut": 0.4},
    {"by": "token", "pool": [{"name": "reuse"}, *RULES]},
]


@pytest.mark.parametrize("data", WHOLE, ids=str)
def test_every_forecast_survives_a_round_trip_through_json(data):
    made = forecast(data)
    again = json.loads(json.dumps(made.to_dict()))
    assert again == data and forecast(again) == made and hash(forecast(again)) == hash(made)
    kinds = {"probe_gain": ProbeGain, "channel": ByChannel, "band": ByBand, "token": ByToken}
    assert type(made) is kinds.get(
        data.get("by", data.get("name")), Adaptive if "adapt" in data else Predictor
    )


def refused(data, word=None):
    """The sentence with which something that is no forecast is refused."""
    with pytest.raises(ValueError, match=word) as error:
        forecast(data)
    text = str(error.value)
    assert text.endswith(".") and ". " not in text and "\n" not in text
    return text


FIELDS = [
    *(
        ({"name": "spectrum"}, f)
        for f in ("name", "order", "gain", "coordinate", "horizon", "ridge", "blend")
    ),
    ({"name": "hermite"}, "damping"),
    ({"name": "linear"}, "adapt"),
    *(({"name": "linear", "adapt": "back_off"}, f) for f in ("pull", "limit")),
    *(({"name": "probe_gain"}, f) for f in ("blocks", "low", "high")),
    *((WHOLE[-3], f) for f in ("by", "pool", "clusters", "steps")),
    *((WHOLE[-2], f) for f in ("by", "low", "high", "cut")),
    *((WHOLE[-1], f) for f in ("by", "pool")),
]
HOSTILE = [math.nan, math.inf, -1e9, 10**30, True, "1", "", [], [1], {}, {"name": {}}, None]
MAY_BE_NULL = {"adapt", "low", "high"}


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
@pytest.mark.parametrize(("base", "field"), FIELDS, ids=str)
def test_a_hostile_field_is_refused_in_one_sentence(base, field, value):
    if value is None and field in MAY_BE_NULL and "by" not in base:
        assert forecast({**base, field: value}).to_dict()["name"] == base["name"]
    else:
        refused({**base, field: value})


@pytest.mark.parametrize(
    "data",
    [
        None,
        3,
        "linear",
        [],
        [RULES[0]],
        {},
        {"name": []},
        {"name": None},
        {"by": []},
        {"by": {}},
        {"by": "channel"},
        {"by": "token", "pool": []},
        {"by": "token", "pool": RULES * 9},
        {"by": "band", "low": RULES[0]},
        {"by": "band", "low": RULES[0], "high": {"name": "probe_gain"}},
        {"by": "token", "pool": [{**RULES[0], "adapt": "back_off"}]},
        {"by": "token", "pool": RULES, "name": "linear"},
        {"name": "linear", 1: 2},
        {"name": "linear", "span": [0, 1]},
        {"name": "linear", "order": 1.0},
        {"name": "hermite", "coordinate": "sigma"},
        {"name": "chebyshev", "adapt": "back_off"},
        {"name": "chebyshev", "horizon": "fixed"},
        {"name": "probe_gain", "low": 1.5, "high": 1.0},
        {"name": "probe_gain", "order": 1},
        {"name": "linear", "clusters": 2},
    ],
    ids=str,
)
def test_what_is_no_forecast_is_refused_in_one_sentence(data):
    refused(data)


def test_a_group_within_groups_without_end_is_refused():
    data = RULES[0]
    for _ in range(5_000):
        data = {"by": "token", "pool": [data]}
    refused(data, "plain")


def test_a_refusal_names_the_field_as_it_was_written():
    assert refused({"name": "linear", "pull": 0.1}).startswith("pull ")
    assert refused({"name": "linear", "adapt": "back_off", "pull": "x"}).startswith("pull ")
    assert refused({"name": "linear", "adapt": "back_off", "limit": -1}).startswith("limit ")
