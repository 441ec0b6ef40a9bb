"""The transfer bench: all ways of a row spend the same calls, a row says what it measured, and the page is
what was measured."""

import json

import pytest

from bench import transfer as bench
from cache_core.calibration.profile import Profile
from demo.weights import PROFILE, WEIGHTS

SMALL = bench.Place(steps=8, guidance=1.0, size=64, speedups=(2.0, 4.0))


@pytest.mark.parametrize(("steps", "full"), [(30, 3), (30, 4), (30, 12), (30, 30), (8, 2), (8, 1)])
def test_even_plans_have_the_full_steps_asked_for(steps, full):
    kinds = bench.even(steps, full)
    assert len(kinds) == steps and kinds.count("F") == full and kinds.startswith("F" * min(3, full))
    gaps = [len(g) for g in kinds.lstrip("F").split("F")]
    assert max(gaps) - min(gaps) <= 1


def test_a_place_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(
        bench, "PLACES", (SMALL, bench.Place(steps=6, guidance=1.0, size=64, speedups=(3.0,)))
    )
    out = tmp_path / "t.json"
    for place in ("1", "0"):
        bench.main(["--prompts", "1", "--places", place, "--out", str(out)])
    data = json.loads(out.read_text())
    assert [p["name"] for p in data["places"]] == ["8 steps, guidance 1, 64 px", "6 steps, guidance 1, 64 px"]
    rows = data["places"][0]["rows"]
    ways = {bench.FEWER, bench.LINEAR, bench.TOKENS, bench.PLANNED}
    assert [r["full_calls"] for r in rows] == [4, 2] and all(set(r["psnr"]) == ways for r in rows)
    assert (
        rows[0]["expected"] < rows[1]["expected"] and 0 < rows[0]["measured"] < rows[1]["measured"] < 1
    )  # fewer steps, more error
    assert all(10 < value < 120 for r in rows for pair in r["psnr"].values() for value in pair)


def test_all_ways_spend_the_same_full_calls():
    plans = bench.plan_for_speedup(Profile.load(WEIGHTS / PROFILE), bench.schedule_sigmas(30), 4.0)
    for name, (steps, settings) in bench.ways(bench.PLACES[0], plans).items():
        assert (steps if settings is None else len(settings.schedule_for(steps).full_steps)) == 8, name


def test_the_page_names_where_plans_fall_short():
    row = {
        "full_calls": 8,
        "expected": 0.1,
        "measured": 0.2,
        "psnr": {bench.FEWER: [50.0, 40.0], bench.LINEAR: [52.0, 30.0], bench.PLANNED: [54.0, 39.5]},
    }
    assert bench.lead(row) == pytest.approx((2.0, -0.5))
    machine = {"cpu": "x", "threads": 1, "torch": "2", "date": "d"}
    text = bench.page(
        {"profile": "p", "prompts": ["a"], "machine": machine, "places": [{"name": "here", "rows": [row]}]}
    )
    assert "| 8 | 50.0 / 40.0 | 52.0 / 30.0 | 54.0 / 39.5 | +2.0 / -0.5 | 0.1000 / 0.2000 |" in text
    assert (
        "less than 3 dB in 1: here, 8 calls." in text
        and "behind a rival's worst in 1: here, 8 calls." in text
    )


def test_the_page_is_what_was_measured():
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(
        json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    )
