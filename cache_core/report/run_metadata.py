"""A run in a few kilobytes, to travel in the metadata of a picture: recipe, schedule, totals and the records
in columns."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from ..base.json_values import finite
from ..config import CacheConfig
from ..recipes import recipe_of
from .run_report import Report, StepRecord

MOST_BYTES = 32 * 1024
"""Size of a run at most, as JSON. Beyond it parts are left out, the longest first, and named."""
MESSAGES, LETTERS, DIGITS = 8, 400, 4
"""Messages kept, letters of each, and significant digits of measured numbers."""
_ORDER = ("records", "recipe", "schedule", "text")


def metadata_of_run(report: Report, settings: CacheConfig) -> dict:
    """A run with the recipe that was asked for, as plain data of at most `MOST_BYTES`.

    records: by field of `StepRecord`, a list with an entry per evaluation, or one value where all are equal;
        planned and actual are strings of letters, as the schedule's kinds are. Numbers are rounded to
        `DIGITS` digits."""
    texts = [m[:LETTERS] for m in report.messages[:MESSAGES]]
    whole = report.to_dict()
    names = ("method", "family", "predictor", "selector", "steps", "conservative_cost", "aggressive_cost")
    made = {
        **{name: whole[name] for name in names},
        "wall_seconds": _short(report.wall_seconds),
        "totals": _short(whole["totals"]),
        "messages": texts,
        "text": report.summary()[: 8 * LETTERS],
        "schedule": report.schedule.get("kinds", ""),
        "recipe": finite(recipe_of(settings)),
        "records": _columns(report.records),
    }
    left_out = []
    for name in _ORDER:
        if _size(made) <= MOST_BYTES:
            break
        del made[name]
        left_out.append(name)
    return {**made, "left_out": left_out} if left_out else made


def _columns(records: list[StepRecord]) -> dict:
    rows = [r.to_dict() for r in records]
    columns = {}
    for f in fields(StepRecord):
        values: list[Any] = [_short(row[f.name]) for row in rows]
        if f.name in ("planned", "actual"):
            columns[f.name] = "".join(values)
        else:
            columns[f.name] = values[0] if values and all(v == values[0] for v in values) else values
    return columns


def _short(x):
    """Numbers rounded to `DIGITS` digits."""
    if isinstance(x, dict):
        return {k: _short(v) for k, v in x.items()}
    return float(f"{x:.{DIGITS}g}") if isinstance(x, float) else x


def _size(data: dict) -> int:
    return len(json.dumps(data).encode())
