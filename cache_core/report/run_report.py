"""What a cached run did: one record per evaluation, totals, a table for people, JSON for everything else.

Times come measured from outside. Nothing here turns a count into a time.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field, fields
from itertools import groupby
from operator import index
from statistics import median
from typing import cast

from ..base.json_values import _number, finite
from ..base.wording import counted, size
from .diagnosis import REASONS, cause

FORMAT = 1
LATER = ("estimated_bytes", "indicator")
"""Fields that reports of older versions lack."""
KINDS = {"F": "full", "C": "conservative", "A": "aggressive"}
TABLE_ROWS = 48
MESSAGES_SHOWN = 8
NOTHING = "Nothing was skipped"


@dataclass
class StepRecord:
    """One evaluation of the sampler.

    step: of the schedule. phase: which evaluation within the step, 0 for the first. sigma: noise level.
    planned, actual: "F", "C" or "A". reason: "planned", or why actual differs: a key of `reasons.REASONS` or
        free text.
    calls: model calls the host made, of which full_calls computed every block in full. milliseconds: measured
        wall time.
    ratio: share of tokens refreshed. cached_bytes: held after the evaluation.
    forecast_error: relative L2 error of a forecast where the truth was then computed, else None.
    indicator: what an adaptive forecast went by, on average: its gain, or the likeness of its best rule to
        the probe; None for others."""

    step: int
    phase: int
    sigma: float
    planned: str
    actual: str
    reason: str = "planned"
    calls: int = 1
    full_calls: int = 0
    milliseconds: float = 0.0
    ratio: float = 0.0
    cached_bytes: int = 0
    forecast_error: float | None = None
    indicator: float | None = None

    def to_dict(self) -> dict:
        return {f.name: _WRITE[cast(str, f.type)](getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, data: dict) -> StepRecord:
        """ValueError names a field that is missing or of the wrong type."""
        record = cls(**_read(cls, data, "record"))
        for name in ("planned", "actual"):
            if getattr(record, name) not in KINDS:
                raise ValueError(f"{name} of a record must be F, C or A, not {getattr(record, name)!r}.")
        return record


@dataclass
class Report:
    """A whole run.

    method, family, predictor, selector: names; family is empty when the model is not one the cache knows.
        steps: of the schedule.
    wall_seconds: of the whole run, measured. messages: sentences for the user. peak_bytes: most bytes cached
        at once; estimated_bytes: what had been expected of it before anything was kept.
    schedule: the plan as `CacheSchedule.to_dict` gives it.
    conservative_cost: work of a conservative step as a share of a full one, where known. aggressive_cost: of
        an aggressive one, above 0 where some blocks run on every step."""

    records: list[StepRecord] = field(default_factory=list)
    method: str = "custom"
    family: str = ""
    predictor: str = ""
    selector: str = ""
    steps: int = 0
    wall_seconds: float = 0.0
    messages: list[str] = field(default_factory=list)
    peak_bytes: int = 0
    schedule: dict = field(default_factory=dict)
    conservative_cost: float | None = None
    aggressive_cost: float = 0.0
    estimated_bytes: int = 0

    def totals(self) -> dict:
        """Sums over the records.

        An evaluation without a model call, which another node answered, counts in `evaluations` and
        `without_calls` only.
        calls, full_calls: model calls made, and those computed in full. full, conservative, aggressive:
            evaluations by what really ran.
        skipped: aggressive evaluations without any full call. changed: evaluations that did not run as
            planned.
        milliseconds, median_milliseconds: measured; the sum, and the median of each kind that ran.
        call_speedup: evaluations over their work in full evaluations, None without records. A conservative
            one counts as `conservative_cost`, and as a full one where that is not known. It says nothing
            about time.
        worst_forecast_error: of full evaluations behind cheaper ones, None where there is none.
        """
        arrived = [r for r in self.records if r.calls]
        ran = Counter(r.actual for r in arrived)
        work = sum(self._work(r) for r in arrived)
        return {
            "calls": sum(r.calls for r in self.records),
            "full_calls": sum(r.full_calls for r in self.records),
            "evaluations": len(self.records),
            **{name: ran[kind] for kind, name in KINDS.items()},
            "skipped": sum(r.actual == "A" and r.full_calls == 0 for r in arrived),
            "changed": sum(r.actual != r.planned for r in arrived),
            "without_calls": len(self.records) - len(arrived),
            "wall_seconds": self.wall_seconds,
            "milliseconds": sum(r.milliseconds for r in self.records),
            "median_milliseconds": {
                k: median(r.milliseconds for r in arrived if r.actual == k) for k in KINDS if ran[k]
            },
            "call_speedup": len(arrived) / work if work else None,
            "peak_bytes": max([self.peak_bytes, *(r.cached_bytes for r in self.records)]),
            "worst_forecast_error": _worst(self._errors()),
        }

    def _errors(self) -> list[float]:
        """Forecast errors of full evaluations behind cheaper ones, which forecasts have stood in for."""
        before: dict[int, str] = {}
        found = []
        for r in self.records:
            if r.forecast_error is not None and before.get(r.phase, "F") != "F":
                found.append(r.forecast_error)
            before[r.phase] = r.actual
        return found

    def _work(self, r: StepRecord) -> float:
        """Work of an evaluation in full evaluations; a call that ran in full counts in full whatever the
        evaluation was called."""
        if r.actual == "F":
            return 1.0
        in_full = min(1.0, r.full_calls / r.calls) if r.calls else 0.0
        cheap = (
            self.aggressive_cost
            if r.actual == "A"
            else 1.0
            if self.conservative_cost is None
            else self.conservative_cost
        )
        return in_full + (1 - in_full) * cheap

    def why_nothing(self) -> str | None:
        """One or two sentences with reason and remedy when no evaluation was cheaper than a full one, else
        None."""
        if any(r.actual != "F" and r.calls for r in self.records):
            return None
        told = next((m for m in self.messages if m.startswith(NOTHING)), None)
        return told or f"{NOTHING}: {cause(self)}"

    def to_dict(self) -> dict:
        """Plain data for JSON; `totals` is derived and ignored by `from_dict`, numbers that are not finite
        become strings."""
        own = {f.name: _WRITE[f.type](getattr(self, f.name)) for f in fields(self) if f.type in _WRITE}
        rows = {
            "messages": [str(m) for m in self.messages],
            "schedule": dict(self.schedule),
            "totals": finite(self.totals()),
        }
        return {
            "format": FORMAT,
            "kind": "cache_report",
            **own,
            **rows,
            "records": [r.to_dict() for r in self.records],
        }

    @classmethod
    def from_dict(cls, data: dict) -> Report:
        """The report that `to_dict` wrote; ValueError names what does not fit."""
        if not isinstance(data, dict) or data.get("kind") != "cache_report":
            raise ValueError("kind must be 'cache_report': this is not a report of a cached run.")
        if data.get("format") != FORMAT:
            raise ValueError(
                f"format must be {FORMAT}, not {data.get('format')!r}: the report was written by another "
                "version."
            )
        kinds = {"records": list, "messages": list, "schedule": dict}
        wrong = [
            f"{name} of a report must be a {kind.__name__}."
            for name, kind in kinds.items()
            if not isinstance(data.get(name), kind)
        ]
        if wrong:
            raise ValueError(wrong[0])
        lists = {
            "records": [StepRecord.from_dict(r) for r in data["records"]],
            "messages": [str(m) for m in data["messages"]],
        }
        return cls(**_read(cls, data, "report"), **lists, schedule=data["schedule"])

    def to_json(self, indent: int | None = None) -> str:
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        try:
            data = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"the report is not JSON: {' '.join(str(error).split())}.") from error
        return cls.from_dict(data)

    def text(self) -> str:
        """The run as plain text of at most about 70 lines; long runs are folded."""
        return "\n".join([self.summary(), *self._table()])

    def summary(self) -> str:
        """The text without its table."""
        t = self.totals()
        on = self.family or "an unknown model"
        lines = [
            f"{self.method} on {on}: {counted(self.steps, 'step')}, "
            f"{counted(t['evaluations'], 'evaluation')}, "
            f"{t['wall_seconds']:.2f} s measured",
            f"full {t['full']}, conservative {t['conservative']}, aggressive {t['aggressive']}; skipped "
            f"{t['skipped']}",
            f"model calls {t['calls']}, of them {t['full_calls']} in full",
        ]
        if self.predictor or self.selector:
            tokens = (
                f", tokens {self.selector or '-'}"
                if "C" in self.schedule.get("kinds", "") or t["conservative"]
                else ""
            )
            lines.append(f"predictor {self.predictor or '-'}{tokens}")
        if t["median_milliseconds"]:
            lines.append(
                "median ms per evaluation: "
                + ", ".join(f"{KINDS[k]} {v:.1f}" for k, v in t["median_milliseconds"].items())
            )
        if t["call_speedup"]:
            cost = 1 if self.conservative_cost is None else self.conservative_cost
            share = f"; a conservative step taken as {cost:.3g} of a full one" if t["conservative"] else ""
            lines.append(f"ideal speed-up {t['call_speedup']:.2f} (work counted, not timed{share})")
        expected = f", {size(self.estimated_bytes)} expected" if self.estimated_bytes else ""
        lines.append(f"cached at most {size(t['peak_bytes'])}{expected}")
        if t["worst_forecast_error"] is not None:
            lines.append(
                f"worst forecast error {t['worst_forecast_error']:.3g} (1 is as large as the feature)"
            )
        if t["without_calls"]:
            lines.append(
                f"{counted(t['without_calls'], 'evaluation')} did not reach the model: another node answered "
                "instead, so nothing is counted for them"
            )
        if t["changed"]:
            lines.append(f"{counted(t['changed'], 'evaluation')} did not run as planned")
        why = self.why_nothing()
        lines += [why] if why else []
        lines += [" ".join(m.split()) for m in self.messages[:MESSAGES_SHOWN] if m != why]
        if len(self.messages) > MESSAGES_SHOWN:
            lines.append(f"and {counted(len(self.messages) - MESSAGES_SHOWN, 'more message')}")
        return "\n".join(lines)

    def _table(self) -> list[str]:
        if not self.records:
            return []
        rows = [_row(g) for g in _fold(self.records)]
        used = [i for i in range(len(_HEAD)) if any(r[i] for r in rows)]
        width = [max(map(len, column)) for column in zip(_HEAD, *rows, strict=True)]

        def line(row) -> str:
            return "  ".join(
                row[i].ljust(width[i]) if i in _LEFT else row[i].rjust(width[i]) for i in used
            ).rstrip()

        return ["", line(_HEAD), *map(line, rows)]


_HEAD = ("step", "sigma", "ran", "calls", "in full", "ms", "tokens", "cached", "error", "why")
_LEFT = (2, 9)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _fold(records: list[StepRecord]) -> list[list[StepRecord]]:
    """Rows of the table: single records, else runs of equal ones, else stretches of equal length."""
    if len(records) <= TABLE_ROWS:
        return [[r] for r in records]
    runs = [
        list(g)
        for _, g in groupby(
            records, lambda r: (r.planned, r.actual, r.reason, r.calls, r.full_calls, r.ratio)
        )
    ]
    if len(runs) <= TABLE_ROWS:
        return runs
    size = math.ceil(len(records) / TABLE_ROWS)
    return [records[i : i + size] for i in range(0, len(records), size)]


def _label(r: StepRecord) -> str:
    """The step as the plot counts it, from 1; further evaluations of it as 1b, 1c and so on."""
    return f"{r.step + 1}{_LETTERS[min(r.phase, len(_LETTERS) - 1)] if r.phase else ''}"


def _row(group: list[StepRecord]) -> tuple[str, ...]:
    first, last = group[0], group[-1]

    def ends(show) -> str:
        a, b = show(first), show(last)
        return a if a == b else f"{a}..{b}"

    letters = "".join(r.actual for r in group)
    if len(letters) > 24:
        letters = " ".join(f"{k}{letters.count(k)}" for k in KINDS if k in letters)
    changed = Counter(r.reason for r in group if r.actual != r.planned)
    if len(group) == 1 and changed:
        letters = f"{first.actual} for {first.planned}"
    reasons = [
        REASONS.get(name, (name,))[0] + (f" ({count} times)" if len(group) > 1 else "")
        for name, count in changed.most_common(2)
    ]
    ratios = [r.ratio for r in group if r.actual == "C"]
    errors = [r.forecast_error for r in group if r.forecast_error is not None]
    return (
        ends(_label),
        ends(lambda r: f"{r.sigma:.4g}"),
        letters,
        str(sum(r.calls for r in group)),
        str(sum(r.full_calls for r in group)),
        f"{sum(r.milliseconds for r in group):.1f}",
        f"{100 * median(ratios):.3g} %" if ratios else "",
        size(max(r.cached_bytes for r in group)),
        f"{_worst(errors):.3g}" if errors else "",
        " ".join("; ".join(reasons).split()),
    )


def _worst(errors: list[float]) -> float | None:
    return max(errors, key=lambda e: math.inf if math.isnan(e) else e, default=None)


def _string(x) -> str:
    if not isinstance(x, str):
        raise TypeError
    return x


_WRITE = {
    "int": int,
    "float": _number,
    "str": str,
    "float | None": lambda x: None if x is None else _number(x),
}
_READ = {
    "int": index,
    "float": float,
    "str": _string,
    "float | None": lambda x: None if x is None else float(x),
}


def _read(cls, data, what) -> dict:
    """The plain fields of a dataclass from a dict."""
    if type(data) is not dict:
        raise ValueError(f"each {what} must be a JSON object, not {type(data).__name__}.")
    out = {}
    for f in fields(cls):
        if f.type not in _READ:
            continue
        if f.name not in data and f.name in LATER:
            continue
        if f.name not in data:
            raise ValueError(f"{f.name} is missing in a {what}.")
        try:
            out[f.name] = _READ[f.type](data[f.name])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{f.name} of a {what} must be {f.type}, not {data[f.name]!r}.") from error
    return out
