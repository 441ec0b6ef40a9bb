"""Forecasts as data: the JSON of a recipe's `predictor` part, and what it makes.

{"name": "linear", "gain": 0.9}                          a rule of `predictors.MEMBERS`
{"name": "newton", "order": 2, "adapt": "back_off"}      with gains that follow the data (`adaptive`)
{"name": "probe_gain"}                                   DiCache's gain (`adaptive`)
{"name": "residual", "steps": 30, "rectifier": {...}}
                                                         output minus latent, reused (`residual`)
{"name": "data_prediction", "rule": {...}}               forecast of the data prediction (`data_prediction`)
{"by": "channel", "pool": [...], "clusters": 2}          a rule per group (`groups`): by channel, by token, or
{"by": "band", "low": {...}, "high": {...}}              by band
{"by": "step", "steps": 50, "table": {...}}              weights per step, as a plan has solved them (`table`)
{"by": "learned", "steps": 30, "rows": {...}, ...}       outputs and the latent, of a learned plan (`learned`)
{"by": "cluster", "labels": "0110...", "tables": [...]}  the same for each cluster of channels
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from ..base.wording import named
from ..cache.feature_predictor import FeaturePredictor
from .adaptive import Adaptive, ProbeGain
from .data_prediction import DataPrediction
from .extrapolation import MEMBERS, Predictor, predictor
from .grouped import ByBand, ByChannel, ByToken
from .learned import Learned
from .residual import Residual
from .solved_weights import ClusterWeights, SolvedWeights

GROUPS = {
    "channel": (ByChannel, ("pool", "clusters", "steps")),
    "band": (ByBand, ("low", "high", "cut")),
    "token": (ByToken, ("pool",)),
}
NAMES = (*MEMBERS, "probe_gain")
MOST_RULES = 16


def forecast(data: Mapping) -> FeaturePredictor:
    """The forecast that a recipe's part describes; ValueError in one sentence, naming the field."""
    if not isinstance(data, Mapping) or not all(isinstance(k, str) for k in data):
        raise ValueError("predictor must be an object with a name, or with a group to go by.")
    if "by" in data:
        return _grouped(data)
    rest = {k: v for k, v in data.items() if k != "name"}
    if data.get("name") == "probe_gain":
        _known(rest, ("blocks", "low", "high"), "probe_gain")
        for key in ("low", "high"):
            value = rest.get(key)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, (int, float)) or not -10 <= value <= 10
            ):
                raise ValueError(
                    f"{key} of probe_gain must be a number from -10 to 10 or null, not {value!r}."
                )
        return ProbeGain(**rest)
    if data.get("name") == "data_prediction":
        _known(rest, ("rule",), "a data prediction")
        return DataPrediction(_plain(rest["rule"])) if "rule" in rest else DataPrediction()
    if data.get("name") == "residual":
        _known(rest, ("steps", "rectifier", "sigmas"), "a residual")
        return Residual.read(**rest)
    how, more = rest.pop("adapt", None), {key: rest.pop(key) for key in ("pull", "limit") if key in rest}
    rule = predictor(cast(str, data.get("name")), **rest)  # which refuses anything else
    if how is None:
        _known(more, (), "a forecast that does not adapt")
        return rule
    for key, value in more.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
            raise ValueError(f"{key} must be a number from 0 to 100, not {value!r}.")
    if MEMBERS[rule.name].extra is None:
        raise ValueError(f"adapt goes with rules that look at a few snapshots, not with {rule.name}.")
    return Adaptive(rule, how, **{{"pull": "ridge"}.get(k, k): v for k, v in more.items()})


def _grouped(data: Mapping) -> FeaturePredictor:
    if data["by"] == "step":
        _known(data, ("by", "steps", "table", "sigmas"), "a forecast by step")
        return SolvedWeights.read(data.get("steps"), data.get("table"), data.get("sigmas", ()))
    if data["by"] == "learned":
        _known(data, ("by", "steps", "sigmas", "guidance", "rows"), "a learned forecast")
        return Learned.read(data.get("steps"), data.get("sigmas", ()), data.get("guidance"), data.get("rows"))
    if data["by"] == "cluster":
        _known(data, ("by", "steps", "labels", "tables", "sigmas"), "a forecast by cluster")
        return ClusterWeights.read(
            data.get("steps"), data.get("labels"), data.get("tables"), data.get("sigmas", ())
        )
    if not isinstance(data["by"], str) or data["by"] not in GROUPS:
        raise ValueError(
            f"by must be one of {', '.join(GROUPS)}, step, cluster, learned, not {repr(data['by'])[:40]}."
        )
    kind, known = GROUPS[data["by"]]
    rest = {k: v for k, v in data.items() if k != "by"}
    _known(rest, known, f"a forecast by {data['by']}")
    if data["by"] == "band":
        missing = [k for k in ("low", "high") if k not in rest]
        if missing:
            raise ValueError(f"{missing[0]} is missing in a forecast by band.")
        return ByBand((_plain(rest.pop("low")), _plain(rest.pop("high"))), **rest)
    pool = rest.pop("pool", None)
    if not isinstance(pool, (list, tuple)) or not 1 <= len(pool) <= MOST_RULES:
        raise ValueError(f"pool must be a list of 1 to {MOST_RULES} rules.")
    return kind(tuple(_plain(p) for p in pool), **rest)


def _plain(data) -> Predictor:
    """A rule inside a group."""
    grouped = isinstance(data, Mapping) and "by" in data
    made = None if grouped else forecast(data)
    if not isinstance(made, Predictor):
        raise ValueError("the rules of a group must be plain ones, with a name and no adapt.")
    return made


def _known(data: Mapping, known, what: str) -> None:
    for key in data:
        if key not in known:
            raise ValueError(
                f"{named(key)} is not a setting of {what}{'; it has ' + ', '.join(known) if known else ''}."
            )
