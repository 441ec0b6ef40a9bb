"""A short cut of the stress run's hostile input; `bash scripts/stress.sh` tries far more of it."""

import json

import pytest

from cache_core.predictors.build import forecast
from cache_core.recipes import from_json
from cache_core.report.run_report import Report
from stress import hostile, page

SHORT = [
    *hostile.cases(
        [f"{name} (JSON)" for name in hostile.DOCUMENTS] + ["profiles and routers (safetensors)"], examples=40
    ),
    *hostile.cases(["a million steps"]),
]


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in SHORT])
def test_files_of_others_are_read_or_refused_in_a_sentence(case):
    row = case()
    assert row.ok, row.said


def test_a_name_with_a_line_break_is_quoted():
    with pytest.raises(ValueError, match=r"^'a\\nb' is not a field of a recipe;") as told:
        from_json(json.dumps({"format": 1, "kind": "cache_recipe", "a\nb": 1}))
    assert "\n" not in str(told.value)


def test_a_setting_with_a_line_break_is_quoted():
    with pytest.raises(ValueError, match=r"^'a\\nb' is not a setting of a predictor;"):
        forecast({"name": "linear", "a\nb": 1})


def test_a_report_that_is_nested_without_end_is_refused():
    with pytest.raises(ValueError, match="not JSON"):
        Report.from_json("[" * 100_000)


def test_a_reader_that_breaks_is_found():
    """The run itself would see a crash, a long tale and a reader that takes too long."""

    def says(text):
        raise ValueError(text)

    for broken in (lambda _: [][1], lambda _: says("two\nlines"), lambda _: says("x" * 2000)):
        with pytest.raises(AssertionError):
            hostile.reads(broken, None)


def test_the_page_is_what_the_run_gave():
    assert page.PAGE.read_text(encoding="utf-8") == page.page(
        json.loads(page.RESULTS.read_text(encoding="utf-8"))
    ), "run scripts/stress.sh"


def test_the_page_tells_what_broke_and_what_was_left_out():
    rows = [
        {"name": "a", "ok": True, "said": "fine", "psnr": 40.0},
        {"name": "b", "ok": False, "said": "it | broke"},
        {"name": "left out", "ok": True, "said": "no time for 3: c, d, e", "left_out": 3},
    ]
    found = {
        "about": "Lifecycle",
        "rows": rows,
        "machine": {"cpu": "c", "cores": 2, "date": "d"},
        "versions": {"torch": "1"},
        "seconds": 9,
    }
    text = page.page({"questions": {"lifecycle": found}})
    assert "| Lifecycle | 1 of 2 cases ok, 3 left out for lack of time |" in text
    assert "| b | **broken** | it \\| broke |" in text and "torch 1, c (2 cores), d, 9 s" in text
