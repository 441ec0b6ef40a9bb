"""A short cut of the stress run's hostile input; `bash scripts/stress.sh` tries far more of it."""

import json

import pytest

from cache_core.recipes import from_json
from cache_core.report import Report
from stress import hostile

SHORT = [*hostile.cases([f"{name} (JSON)" for name in hostile.DOCUMENTS] + ["profiles and routers (safetensors)"], examples=40),
         *hostile.cases(["a million steps"])]


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in SHORT])
def test_strangers_files_are_read_or_refused_in_a_sentence(case):
    row = case()
    assert row.ok, row.said


def test_a_name_with_a_line_break_is_quoted():
    with pytest.raises(ValueError, match=r"^'a\\nb' is not a field of a recipe;") as told:
        from_json(json.dumps({"format": 1, "kind": "cache_recipe", "a\nb": 1}))
    assert "\n" not in str(told.value)


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
