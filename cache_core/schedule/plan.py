"""Which kind of step runs when: the cache schedule, its generators, its scaling and its JSON form.

A step is full ("F": every block on every token), conservative ("C": attention replayed, a few rows of the
other layers computed) or aggressive ("A": the blocks are skipped). The arithmetic is on whole numbers or
floor(x + 0.5), never banker's rounding, so that another language reproduces every schedule exactly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from ..base.limits import MAX_STEPS
from .generators import (
    DEFAULT_RATIO,
    LETTERS,
    checked_settings,
    fraction,
    is_number,
    planned,
    resampled,
    whole_number,
)

FORMAT = 1
KIND = "cache_schedule"


@dataclass(frozen=True)
class CacheSchedule:
    """One kind and one token ratio per step; immutable and hashable.

    kinds: one letter per step, "F", "C" or "A"; 1 to 10000 steps, the first is "F" because nothing is cached
        before it.
    ratios: the fraction of tokens, 0..1, that a C step computes; one per step. F and A steps keep theirs too,
        so that a step that is
        later made a C step, by hand or by an indicator, has one.
    parameters: the generator's settings as pairs, None for an explicit list. Settings that do not produce
        exactly these kinds and ratios
        are dropped, so that a generated schedule with a step or ratio replaced is an explicit list.

    forecast: the forecast that was solved for these steps, as the JSON of `forecasts.forecast`, or None. It
        goes where the steps go, and is
        dropped where they change. mask: which modules the C steps compute, as the JSON of `masks.Mask`, or
        None; it travels alike.

    Raises ValueError, one sentence that begins with the field's name.
    """

    kinds: str
    ratios: tuple[float, ...] = field(repr=False)
    name: str = "custom"
    parameters: tuple[tuple[str, Any], ...] | None = None
    forecast: str | None = field(default=None, repr=False)
    mask: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ValueError("name must be a string.")
        if not isinstance(self.kinds, str):
            raise ValueError("kinds must be a string of the letters F, C and A.")
        if not 1 <= len(self.kinds) <= MAX_STEPS:
            raise ValueError(f"kinds must have 1 to {MAX_STEPS} letters.")
        for i, kind in enumerate(self.kinds):
            if kind not in LETTERS:
                raise ValueError(f"kinds[{i}] must be F, C or A.")
        if self.kinds[0] != "F":
            raise ValueError("kinds[0] must be F, because nothing is cached before the first step.")
        if not isinstance(self.ratios, Sequence) or isinstance(self.ratios, (str, bytes)):
            raise ValueError("ratios must be a list of numbers.")
        if len(self.ratios) != len(self.kinds):
            raise ValueError("ratios must have one number per step.")
        object.__setattr__(
            self, "ratios", tuple(fraction(f"ratios[{i}]", ratio) for i, ratio in enumerate(self.ratios))
        )
        if self.parameters is not None:
            settings = checked_settings(dict(self.parameters), "generator.")
            kept = (
                tuple(settings.items())
                if planned(settings, self.steps) == (self.kinds, self.ratios)
                else None
            )
            object.__setattr__(self, "parameters", kept)

    @property
    def steps(self) -> int:
        return len(self.kinds)

    @property
    def generator(self) -> dict[str, Any] | None:
        """The settings that made this schedule (a new dict, for `from_generator`), or None for an explicit
        list."""
        return None if self.parameters is None else dict(self.parameters)

    @property
    def full_steps(self) -> tuple[int, ...]:
        """Indices of the F steps, ascending."""
        return tuple(i for i, kind in enumerate(self.kinds) if kind == "F")

    @property
    def longest_gap(self) -> int:
        """The most steps from a full step to a later one that goes by it; 0 where all are full."""
        gap = longest = 0
        for kind in self.kinds:
            gap = 0 if kind == "F" else gap + 1
            longest = max(longest, gap)
        return longest

    def counts(self) -> dict[str, int]:
        """Number of steps of each kind: {"F": n, "C": n, "A": n}."""
        return {kind: self.kinds.count(kind) for kind in LETTERS}

    def scaled(self, steps: int) -> CacheSchedule:
        """The same pattern at another step count.

        A generated schedule is generated anew: warm-up and tail stay counts of steps, start and end stay
            fractions. An explicit list is resampled by position with the shares of its kinds kept (see
            `resampled`). The same step count gives the same schedule."""
        steps = whole_number("steps", steps, 1)
        if steps == self.steps:
            return self
        generator = self.generator
        if generator is None:
            return CacheSchedule(*resampled(self.kinds, self.ratios, steps), self.name)
        return CacheSchedule(*planned(generator, steps), self.name, self.parameters)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form as plain values."""
        solved = {
            key: json.loads(text) for key in ("forecast", "mask") if (text := getattr(self, key)) is not None
        }
        return {
            "format": FORMAT,
            "kind": KIND,
            "name": self.name,
            "steps": self.steps,
            "kinds": self.kinds,
            "ratios": list(self.ratios),
            "generator": self.generator,
            **solved,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CacheSchedule:
        """Reads `to_dict` back; every field but forecast and mask is required, unknown ones are ignored.
        ValueError names the field."""
        if not isinstance(data, Mapping):
            raise ValueError("schedule must be a JSON object.")
        if "format" not in data:
            raise ValueError("format is missing.")
        if not is_number(data["format"]) or data["format"] != FORMAT:
            raise ValueError(f"format must be {FORMAT}; other versions of the schedule cannot be read.")
        for key in ("kind", "name", "steps", "kinds", "ratios", "generator"):
            if key not in data:
                raise ValueError(f"{key} is missing.")
        if data["kind"] != KIND:
            raise ValueError(f'kind must be "{KIND}".')
        steps = whole_number("steps", data["steps"], 1)
        solved = {key: data[key] for key in ("forecast", "mask") if data.get(key) is not None}
        for key, value in solved.items():
            if not isinstance(value, Mapping):
                raise ValueError(f"{key} must be an object.")
        schedule = cls(
            data["kinds"],
            data["ratios"],
            data["name"],
            forecast=json.dumps(solved["forecast"]) if "forecast" in solved else None,
            mask=json.dumps(solved["mask"]) if "mask" in solved else None,
        )
        if steps != schedule.steps:
            raise ValueError("steps must equal the number of letters in kinds.")
        if data["generator"] is None:
            return schedule
        schedule = replace(
            schedule, parameters=tuple(checked_settings(data["generator"], "generator.").items())
        )
        if schedule.parameters is None:
            raise ValueError(
                "generator does not produce these kinds and ratios; set it to null for an explicit list."
            )
        return schedule

    @classmethod
    def from_json(cls, text: str) -> CacheSchedule:
        """Reads `to_json` back. Raises ValueError naming the field, or saying that the text is not JSON."""
        try:
            data = json.loads(text)
        except (TypeError, ValueError, RecursionError):
            raise ValueError("schedule is not valid JSON.") from None
        return cls.from_dict(data)


def full(steps: int) -> CacheSchedule:
    """Every step full: plain sampling."""
    return _generated({"type": "full"}, steps)


def uniform(
    steps: int, interval: int, warmup: int = 1, tail: int = 0, start: float = 0.0, end: float = 1.0
) -> CacheSchedule:
    """An F every `interval` steps and A between: FORA (warmup 1), TaylorSeer (warmup = its first_enhance).
    Settings as in `dual`."""
    return _generated(
        {"type": "uniform", "interval": interval, "warmup": warmup, "tail": tail, "start": start, "end": end},
        steps,
    )


def dual(
    steps: int,
    interval: int,
    order: str = "CA",
    ratio: float = 0.1,
    warmup: int = 1,
    tail: int = 0,
    start: float = 0.0,
    end: float = 1.0,
) -> CacheSchedule:
    """DuCa's counter schedule: after each F come interval - 1 steps whose kinds cycle through `order`,
    beginning with its first letter.

    order: letters C and A; "CA" is DuCa (arXiv 2412.18911), "C" is ToCa (arXiv 2410.05317), "A" is `uniform`.
    ratio: fraction of tokens that C steps compute.
    warmup, tail: number of full steps at the beginning and at the end; the first step is full in any case.
    start, end: fractions of the steps; steps outside floor(start * steps + 0.5) <= i < floor(end * steps +
        0.5) are full.

    A step made full by warm-up or window restarts the counter like any other F. Interval 1 is all F.
    """
    return _generated(
        {
            "type": "dual",
            "interval": interval,
            "order": order,
            "ratio": ratio,
            "warmup": warmup,
            "tail": tail,
            "start": start,
            "end": end,
        },
        steps,
    )


def duca_dit(steps: int, interval: int, ratio: float = 0.05) -> CacheSchedule:
    """The schedule of DuCa on DiT, whose interval changes at every full step.

    With the step number d running down from steps - 1 to 0: F where d is a multiple of the current interval
    and on the first step, else C where the remainder is odd and A where it is even. Each F sets the interval
    to round(interval / (1.4 - 0.8 d / steps)), and to 2 while
    0.2 steps <= d < 0.4 steps. The official code evaluates this again in every layer, so that some steps
    begin full and go on as C or A after their first layer has changed the interval (a defect); here the kind
    is decided once per step, as that first layer sees it. Interval 1 is all F."""
    return _generated({"type": "duca_dit", "interval": interval, "ratio": ratio}, steps)


def modulo(steps: int, interval: int, warmup: int = 1) -> CacheSchedule:
    """F on the first `warmup` steps and where the step's number is a multiple of `interval`, A elsewhere:
    AB-Cache (arXiv 2504.10540)."""
    return _generated({"type": "modulo", "interval": interval, "warmup": warmup}, steps)


def growing(steps: int, growth: float, warmup: int = 1) -> CacheSchedule:
    """Intervals that grow: Spectrum's schedule (CVPR 2026). The interval is 2 after `warmup` full steps, and
    `growth` more after every F.

    It counts with its whole part. At 50 steps with 5 of warm-up a growth of 0.75 gives 14 full steps and 3
    gives 10."""
    return _generated({"type": "growing", "growth": growth, "warmup": warmup}, steps)


def explicit(kinds: str, ratio: float | Sequence[float] = DEFAULT_RATIO) -> CacheSchedule:
    """A list written by hand; blanks between groups ("FFF CCA FCA") are dropped. `ratio` is one number for
    all steps or one per step."""
    if isinstance(kinds, str):
        kinds = re.sub(r"[ \t\r\n]+", "", kinds)
        if not isinstance(ratio, Sequence):
            ratio = (fraction("ratio", ratio),) * len(kinds)
    return CacheSchedule(kinds, cast("tuple[float, ...]", ratio))  # which it makes of any sequence


def from_generator(generator: Mapping[str, Any], steps: int) -> CacheSchedule:
    """The schedule of a generator dict, e.g. {"type": "dual", "interval": 5}; settings left out take their
    defaults, others are refused."""
    return _generated(generator, steps, "generator.")


def _generated(generator: Mapping[str, Any], steps: int, prefix: str = "") -> CacheSchedule:
    steps = whole_number("steps", steps, 1)
    settings = checked_settings(generator, prefix)
    return CacheSchedule(*planned(settings, steps), settings["type"], tuple(settings.items()))
