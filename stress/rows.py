"""What every question of the stress run gives: rows of a table, for as long as its time lasts."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field


@dataclass
class Row:
    """One case. ok: whether the promise held. said: what happened, in a few words. numbers: measured values
    by name."""

    name: str
    ok: bool
    said: str = ""
    numbers: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict:
        return {
            "name": self.name,
            "ok": bool(self.ok),
            "said": self.said,
            **{k: _short(v) for k, v in self.numbers.items()},
        }


class Deadline:
    """Seconds that are left."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()


def tried(cases: Iterable[tuple[str, Callable[[], Row]]], deadline: Deadline) -> Iterator[Row]:
    """The row of each case until the time is over; an exception is a row that is not ok, and what was left
    out is a row too."""
    left_out = []
    for name, case in cases:
        if deadline.left <= 0:
            left_out.append(name)
            continue
        try:
            yield case()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            yield Row(name, False, f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})")
    if left_out:
        yield Row(
            "left out",
            True,
            f"no time for {len(left_out)}: "
            f"{', '.join(left_out[:3])}{' and others' if len(left_out) > 3 else ''}",
            {"left_out": len(left_out)},
        )


def _short(value):
    return float(f"{value:.4g}") if isinstance(value, float) else value
