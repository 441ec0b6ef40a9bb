"""Runs in a few kilobytes: what travels in a picture's metadata says the same as the report, and stays
small."""

import json
import math

import pytest

from cache_core.config import CacheConfig
from cache_core.recipes import from_preset, preset_names, recipe_of, settings_of
from cache_core.report import run_metadata as module
from cache_core.report.run_metadata import MOST_BYTES, metadata_of_run
from cache_core.report.run_report import Report, StepRecord
from cache_core.schedule.masks import Mask
from cache_core.schedule.plan import explicit


def report_of(count, **changes):
    records = [
        StepRecord(
            i,
            0,
            1 - i / count,
            "A" if i % 3 else "F",
            "A" if i % 3 else "F",
            calls=2,
            milliseconds=10 / 3 + i,
            forecast_error=None if i % 3 else 0.0123456,
        )
        for i in range(count)
    ]
    plan = explicit("F" + "A" * (count - 1)).to_dict()
    return Report(records, "balanced", "FLUX", "linear", "random", count, 1.23456, schedule=plan, **changes)


@pytest.mark.parametrize("name", preset_names())
def test_the_recipe_of_settings_gives_them_again(name):
    by_hand = explicit("FFAAFA", 0.25), explicit("FFACFC", [0, 0, 0, 0.1, 0, 0.3])
    for settings in (from_preset(name), from_preset(name, by_hand[0]), from_preset(name, by_hand[1], seed=7)):
        again = settings_of(json.loads(json.dumps(recipe_of(settings))))
        for field in (
            "method",
            "level",
            "first",
            "predictor",
            "module_predictor",
            "selector",
            "attention",
            "text_ratio",
            "seed",
            "speedup",
        ):
            assert getattr(again, field) == getattr(settings, field), field
        for steps in (6, 30):
            made, wanted = (s.schedule_for(steps) for s in (again, settings))
            assert made.kinds == wanted.kinds
            assert all(a == b for a, b, kind in zip(made.ratios, wanted.ratios, made.kinds) if kind == "C")


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": True}, "seed must be"),
        ({"seed": 1 << 32}, "seed must be"),
        ({"ratios": [0.1] * 3}, r"ratios must have one number per step"),
        ({"ratios": {}}, "ratios must be a list"),
        ({"ratios": [0.1, 2]}, r"ratios\[1\]"),
    ],
)
def test_seeds_and_ratios_are_checked(part, said):
    with pytest.raises(ValueError, match=said):
        settings_of({"kinds": "FC", **part})


def test_ratios_need_a_list_of_steps():
    with pytest.raises(ValueError, match="^ratios must be a list of numbers beside kinds"):
        settings_of({"generator": {"type": "full"}, "ratios": [0.1]})


def test_a_familys_plan_takes_the_place_of_list_and_ratios():
    recipe = {
        "kinds": "FCAC",
        "ratios": [0.1, 0.2, 0.3, 0.4],
        "families": {"FLUX": {"kinds": "FCA"}, "Wan": {"ratios": [0.5] * 4}},
    }
    settings = settings_of(recipe)
    assert (
        settings.for_family("FLUX").schedule_for(3).kinds == "FCA"
        and settings.for_family("Wan").schedule_for(4).ratios == (0.5,) * 4
    )
    assert settings.schedule_for(4).ratios == (0.1, 0.2, 0.3, 0.4)
    for part, said in (
        ({"ratios": 0.3}, "ratios must be a list"),
        ({"generator": {"type": "full"}, "ratios": [0.1]}, "ratios must be a list"),
        ({"kinds": "FA", "mask": 5}, " must have either a generator, kinds or a mask"),
    ):
        with pytest.raises(ValueError, match=rf"^families\.FLUX\.?{said}"):
            settings_of({**recipe, "families": {"FLUX": part}})


def test_the_recipe_of_a_mask_has_it():
    mask = Mask.of(4, {"double.0.attn": [0, 2]})
    assert settings_of(recipe_of(CacheConfig(mask=mask))).mask == mask


def test_records_come_in_columns_and_say_the_same():
    report = report_of(9, messages=["A sentence."])
    kept = json.loads(json.dumps(metadata_of_run(report, from_preset("balanced")), allow_nan=False))
    assert (
        kept["records"]["actual"] == "FAAFAAFAA"
        and kept["records"]["calls"] == 2
        and kept["records"]["reason"] == "planned"
    )
    assert kept["records"]["step"] == list(range(9)) and kept["records"]["milliseconds"][1] == 4.333
    assert kept["records"]["forecast_error"][:3] == [0.01235, None, None]
    assert kept["schedule"] == "FAAAAAAAA" and kept["wall_seconds"] == 1.235 and kept["totals"]["calls"] == 18
    assert (
        kept["recipe"]["name"] == "balanced"
        and kept["messages"] == ["A sentence."]
        and "left_out" not in kept
    )
    assert kept["text"].startswith("balanced on FLUX: 9 steps") and "sigma" not in kept["text"]


def test_numbers_that_are_not_finite_stay_json():
    report = report_of(3)
    report.records[1].forecast_error = math.nan
    json.dumps(metadata_of_run(report, from_preset("off")), allow_nan=False)


@pytest.mark.parametrize("count", [30, 200, 10000])
def test_it_stays_small_and_names_what_it_left_out(count):
    kept = metadata_of_run(report_of(count, messages=["x" * 5000] * 50), from_preset("balanced"))
    assert len(json.dumps(kept)) <= MOST_BYTES and kept["totals"]["evaluations"] == count
    assert kept.get("left_out", []) == (["records"] if count > 200 else [])
    assert len(json.dumps(metadata_of_run(report_of(30), from_preset("balanced")))) < 4096


def test_what_is_largest_goes_first(monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 1500)
    kept = metadata_of_run(report_of(60), from_preset("balanced"))
    assert (
        kept["left_out"][0] == "records"
        and kept["totals"]["evaluations"] == 60
        and len(json.dumps(kept)) <= 1600
    )
