"""The bench of methods that learn from a profile: rows share their calls, and the page is what was
measured."""

import json

import pytest

from bench import calibrated as bench
from bench.profile import calibration, jobs, record
from cache_core.schedule.plan import uniform
from tests.tiny_flux import SIZE, random_flux


@pytest.fixture(scope="module")
def profile():
    return record(random_flux(), jobs(calibration(3), 10, 1.0, 3, SIZE), clusters=3)


def test_rows_of_a_budget_have_its_full_calls(profile):
    configs = bench.configurations(profile, [6, 3], list(bench.ROWS))
    assert [c.curve for c in configs] == ["uncached", *bench.ROWS, *bench.ROWS]
    for c in configs[1:]:
        least = (
            1 if c.curve.startswith("ERTACache") else c.parts["budget"]
        )  # where no threshold gives as many
        assert least <= c.full_calls <= c.parts["budget"], c.curve
        assert c.sigmas is None or len(c.sigmas) == c.run_steps + 1
    full = {c.curve: c.schedule.full_steps for c in configs[1:] if c.settings and c.parts["budget"] == 6}
    assert (
        full["planned"]
        == full["planned by cluster"]
        == full["HyCa's pool by cluster"]
        == full["rectifier on planned steps"]
    )


def test_a_run_replaces_its_rows_and_keeps_the_others(tmp_path):
    out = tmp_path / "c.json"
    common = [
        "--steps",
        "6",
        "--prompts",
        "1",
        "--learn",
        "1",
        "--intervals",
        "3",
        "--size",
        "64",
        "--out",
        str(out),
    ]
    for rows in (["planned", "ERTACache"], ["fewer steps, Euler", "planned by cluster"]):
        bench.main([*common, "--rows", *rows])
    (run,) = json.loads(out.read_text())["runs"]
    budget = len(uniform(6, 3, warmup=bench.WARMUP).full_steps)
    assert {r["curve"]: r.get("budget") for r in run["rows"]} == {
        "uncached": None,
        "planned": budget,
        "ERTACache": budget,
        bench.FEWER: budget,
        "planned by cluster": budget,
    }
    assert all(10 < r["psnr_median"] < 150 for r in run["rows"] if r["curve"] != "uncached")


def test_the_page_is_what_was_measured():
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(
        json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    )
