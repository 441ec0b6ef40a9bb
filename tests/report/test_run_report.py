"""A report counts what happened, survives JSON, stays short, and says why nothing was skipped."""

import json
import math
import re
from itertools import pairwise

import pytest

from cache_core.report.diagnosis import REASONS
from cache_core.report.run_report import Report, StepRecord


def run(kinds, planned=None, *, calls=1, phases=1, reason="no_snapshot", **fields):
    """A report whose evaluations ran as `kinds`, with made-up but distinct times."""
    planned = planned or kinds
    records = [
        StepRecord(
            step=i // phases,
            phase=i % phases,
            sigma=1 - i / len(kinds),
            planned=p,
            actual=k,
            reason="planned" if p == k else reason,
            calls=calls,
            full_calls=calls if k == "F" else 0,
            milliseconds={"F": 100.0, "C": 30.0, "A": 5.0}[k] + i,
            ratio=0.1 if k == "C" else 0.0,
            cached_bytes=1000 * (i + 1),
        )
        for i, (p, k) in enumerate(zip(planned, kinds, strict=True))
    ]
    return Report(
        records=records,
        steps=len(kinds) // phases,
        **{"method": "dual", "family": "FLUX.1", "wall_seconds": 1.25, **fields},
    )


def test_totals():
    totals = run("FFCACA", calls=2, conservative_cost=0.25).totals()
    assert (totals["full"], totals["conservative"], totals["aggressive"]) == (2, 2, 2)
    assert (totals["evaluations"], totals["calls"], totals["full_calls"], totals["skipped"]) == (6, 12, 4, 2)
    assert totals["call_speedup"] == pytest.approx(6 / 2.5)
    assert totals["wall_seconds"] == 1.25
    assert totals["milliseconds"] == pytest.approx(2 * 135 + 15)
    assert totals["median_milliseconds"] == {"F": 100.5, "C": 33.0, "A": 9.0}
    assert totals["peak_bytes"] == 6000
    assert totals["worst_forecast_error"] is None


def test_conservative_steps_of_unknown_cost_count_in_full():
    assert run("FCCC").totals()["call_speedup"] == 1
    assert run("FAAA").totals()["call_speedup"] == 4


def test_a_call_that_ran_in_full_is_no_saving():
    report = run("FA", calls=2)
    report.records[1].full_calls = 1  # one of two branches had nothing cached
    totals = report.totals()
    assert totals["skipped"] == 0
    assert totals["call_speedup"] == pytest.approx(2 / 1.5)
    report.records[1].full_calls = 5
    assert report.totals()["call_speedup"] == 1


@pytest.mark.parametrize("phases", [1, 2, 3])
@pytest.mark.parametrize("calls", [1, 2])
def test_never_more_skips_than_evaluations(phases, calls):
    totals = run("F" + "A" * (6 * phases - 1), phases=phases, calls=calls).totals()
    assert totals["evaluations"] == 6 * phases
    assert totals["skipped"] == totals["evaluations"] - 1
    assert totals["calls"] == calls * totals["evaluations"]


def test_time_is_only_what_was_measured():
    report = run("FAAAAAAA")
    report.wall_seconds = 2.0
    for record in report.records:
        record.milliseconds = 250.0
    assert report.totals()["milliseconds"] == 2000
    assert "2.00 s" in report.text()


def test_empty_report():
    totals = Report().totals()
    assert (totals["evaluations"], totals["skipped"], totals["call_speedup"], totals["peak_bytes"]) == (
        0,
        0,
        None,
        0,
    )
    assert Report.from_json(Report().to_json()) == Report()
    assert "no step to run" in Report().text()


def test_json_round_trip():
    report = run(
        "FFCACAF",
        "FFCACAA",
        calls=2,
        predictor="linear",
        selector="random",
        messages=["One.", "Two: ümlaut."],
        peak_bytes=99999,
    )
    report.schedule = {"format": 1, "kind": "cache_schedule", "kinds": "FFCACAA"}
    report.conservative_cost = 0.058
    report.records[-1].forecast_error = 0.0123
    data = json.loads(report.to_json())
    assert (data["format"], data["kind"]) == (1, "cache_report")
    assert data["totals"]["changed"] == 1
    assert data["records"][2]["actual"] == "C"
    assert Report.from_json(report.to_json(indent=2)) == report
    assert Report.from_dict(data) == report


def test_the_worst_forecast_is_one_that_was_in_use():
    """What a forecast would have been at a full step of the warm-up changes no picture."""
    report = run("FFFAAF")
    for record, error in zip(report.records, (None, 0.9, 0.1, None, None, 0.2)):
        record.forecast_error = error
    assert report.totals()["worst_forecast_error"] == 0.2
    report = run("FFF")
    report.records[1].forecast_error = 0.9
    assert report.totals()["worst_forecast_error"] is None


def test_numbers_that_are_not_finite_stay_valid_json():
    report = run("FAF")
    report.records[0].sigma = math.inf
    report.records[0].forecast_error, report.records[2].forecast_error = 0.5, math.nan

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    json.loads(report.to_json(), parse_constant=refuse)
    back = Report.from_json(report.to_json())
    assert back.records[0].sigma == math.inf
    assert math.isnan(back.records[2].forecast_error)
    assert math.isnan(back.totals()["worst_forecast_error"])


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("kind", {"kind": "cache_schedule"}),
        ("format", {"format": 2}),
        ("records", {"records": None}),
        ("schedule", {"schedule": []}),
        ("steps", {"steps": "many"}),
        ("steps", {"steps": 2.5}),
        ("method", {"method": 7}),
        ("record must be", {"records": [3]}),
    ],
)
def test_bad_json_names_the_field(message, change):
    with pytest.raises(ValueError, match=message):
        Report.from_dict(run("FA").to_dict() | change)


def test_bad_records_name_the_field():
    data = StepRecord(0, 0, 1.0, "F", "F").to_dict()
    assert StepRecord.from_dict(data) == StepRecord(0, 0, 1.0, "F", "F")
    with pytest.raises(ValueError, match="actual"):
        StepRecord.from_dict(data | {"actual": "X"})
    with pytest.raises(ValueError, match="sigma"):
        StepRecord.from_dict({k: v for k, v in data.items() if k != "sigma"})
    with pytest.raises(ValueError, match="not JSON"):
        Report.from_json("{")


def test_why_nothing_is_silent_when_something_was_saved():
    assert run("FA").why_nothing() is None
    assert run("FC").why_nothing() is None


@pytest.mark.parametrize("reason", REASONS)
def test_why_nothing_names_reason_and_remedy(reason):
    sentence = run("FFFFF", "FCACA", reason=reason).why_nothing()
    what, remedy = REASONS[reason]
    assert sentence.startswith("Nothing was skipped: in 4 of the 4 evaluations")
    assert what in sentence
    assert sentence.endswith(remedy)
    assert remedy


def test_why_nothing_takes_the_commonest_reason():
    report = run("FFFFF", "FAAAA", reason="rising")
    report.records[1].reason = "the weather."
    assert "in 3 of the 4" in report.why_nothing()
    for record in report.records:
        record.reason = "the weather."
    assert "the weather. Look" in report.why_nothing()


def test_why_nothing_without_any_plan_model_or_evaluation():
    assert "8 steps" in run("F" * 8).why_nothing()
    assert "interval" in run("F" * 30).why_nothing()
    assert "Connect" in Report(steps=30).why_nothing()
    assert "Raise steps or denoise" in Report(steps=0).why_nothing()
    assert (
        run("F" * 30, method="off")
        .why_nothing()
        .endswith("the preset off runs every step in full. Choose another preset.")
    )
    assert "Take Profile Model out" in run("F" * 30, method="profile").why_nothing()
    assert (
        "the model's output" not in run("F" * 30, family="").why_nothing()
    )  # an unknown model can be cached: the plan is the reason


def test_why_nothing_of_a_run_that_ended_before_its_first_cheaper_step():
    sentence = run("FFF", schedule={"kinds": "FFFAFA"}).why_nothing()
    assert (
        "ended after 3 evaluations, before the first one that was planned to be cheaper. Let it run on"
        in sentence
    )


def test_why_nothing_of_a_model_that_never_came_by():
    assert "Take out the node that runs the model by itself" in run("FFFF", "FAFA", calls=0).why_nothing()


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("plain", "Wan is sampled plainly: it keeps its prefix between calls in a cache of its own."),
        ("refused", "Conservative steps ran in full: an attention mask is in use."),
        ("mismatch", "The last block did not run, so nothing was put back; this call runs in full."),
    ],
)
def test_why_nothing_quotes_the_message_that_says_more(reason, message):
    sentence = run("FFFF", "FCAC", reason=reason, messages=["The seed is 3.", message]).why_nothing()
    assert REASONS[reason][0] in sentence and message.rstrip(".") in sentence
    assert "Look at the messages" not in sentence and re.search(r"\. (Take|Use) .+\.$", sentence)


def test_reports_of_earlier_versions_are_read():
    data = run("FFA").to_dict()
    for record in data["records"]:
        del record["indicator"]
    assert [r.indicator for r in Report.from_dict(data).records] == [None] * 3


def test_text_shows_each_evaluation_of_a_short_run():
    report = run(
        "FFCACAFF", "FFCACAFA", messages=["A LoRA is\napplied."], predictor="linear", selector="random"
    )
    report.records[-1].forecast_error = 0.25
    text = report.text()
    lines = text.splitlines()
    table = lines[lines.index("") + 2 :]
    assert len(table) == 8
    assert "10 %" in table[2]
    assert "F for A" in table[7]
    assert REASONS["no_snapshot"][0] in table[7]
    assert "0.25" in table[7]
    parts = (
        "dual on FLUX.1",
        "full 4, conservative 2, aggressive 2; skipped 2",
        "model calls 8, of them 4 in full",
        "linear",
        "7.81 KiB",
    )
    for part in (*parts, "A LoRA is applied."):
        assert part in text


@pytest.mark.parametrize("count", [48, 49, 50, 100, 1000, 5003])
@pytest.mark.parametrize("cycle", ["F", "FCACA", "FAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"])
def test_text_stays_short_and_complete(count, cycle):
    kinds = (cycle * count)[:count]
    report = run(kinds, messages=[f"Message {i}." for i in range(30)])
    lines = report.text().splitlines()
    assert len(lines) <= 70
    assert max(map(len, lines)) <= 160
    assert "and 22 more messages" in lines
    table = lines[lines.index("") + 2 :]
    # Every evaluation is in exactly one row: first and last step are shown and the steps in between join up.
    ends = [line.split()[0].split("..") for line in table]
    assert ends[0][0] == "1"
    assert ends[-1][-1] == str(count)
    assert all(int(b[0]) == int(a[-1]) + 1 for a, b in pairwise(ends))


def test_runs_of_equal_steps_are_folded_before_anything_else():
    text = run("F" * 3 + "A" * 60 + "F" * 2).text()
    assert "4..63" in text
    assert "A60" in text


def test_phases_of_a_step_are_told_apart():
    steps = [line.split()[0] for line in run("FFAAFF", phases=2).text().splitlines()[-6:]]
    assert steps == ["1", "1b", "2", "2b", "3", "3b"]
