"""Which kind of step runs when: the cache schedule, its generators, its scaling and its JSON form.

A step is full ("F": every block on every token), conservative ("C": attention replayed, a few rows of the
other layers computed) or aggressive ("A": the blocks are skipped). The arithmetic is on whole numbers or
floor(x + 0.5), never banker's rounding, so that another language reproduces every schedule exactly."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, cast

from ..base.limits import MAX_STEPS
from ..base.wording import named

FORMAT = 1
KIND = "cache_schedule"
LETTERS = "FCA"

_REQUIRED = object()
_WINDOW = {"warmup": 1, "tail": 0, "start": 0.0, "end": 1.0}
# Settings of each generator with their defaults, in the order in which they are written.
GENERATORS: dict[str, dict[str, Any]] = {
    "full": {},
    "uniform": {"interval": _REQUIRED, **_WINDOW},
    "dual": {"interval": _REQUIRED, "order": "CA", "ratio": 0.1, **_WINDOW},
    "duca_dit": {"interval": _REQUIRED, "ratio": 0.05},
    "modulo": {"interval": _REQUIRED, "warmup": 1},
    "growing": {"growth": _REQUIRED, "warmup": 1},
}
_DEFAULT_RATIO = 0.1


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
            self, "ratios", tuple(_fraction(f"ratios[{i}]", ratio) for i, ratio in enumerate(self.ratios))
        )
        if self.parameters is not None:
            settings = _settings(dict(self.parameters), "generator.")
            kept = (
                tuple(settings.items()) if _plan(settings, self.steps) == (self.kinds, self.ratios) else None
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
            `_resample`). The same step count gives the same schedule."""
        steps = _whole("steps", steps, 1)
        if steps == self.steps:
            return self
        generator = self.generator
        if generator is None:
            return CacheSchedule(*_resample(self.kinds, self.ratios, steps), self.name)
        return CacheSchedule(*_plan(generator, steps), self.name, self.parameters)

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
        if not _is_number(data["format"]) or data["format"] != FORMAT:
            raise ValueError(f"format must be {FORMAT}; other versions of the schedule cannot be read.")
        for key in ("kind", "name", "steps", "kinds", "ratios", "generator"):
            if key not in data:
                raise ValueError(f"{key} is missing.")
        if data["kind"] != KIND:
            raise ValueError(f'kind must be "{KIND}".')
        steps = _whole("steps", data["steps"], 1)
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
        schedule = replace(schedule, parameters=tuple(_settings(data["generator"], "generator.").items()))
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


def explicit(kinds: str, ratio: float | Sequence[float] = _DEFAULT_RATIO) -> CacheSchedule:
    """A list written by hand; blanks between groups ("FFF CCA FCA") are dropped. `ratio` is one number for
    all steps or one per step."""
    if isinstance(kinds, str):
        kinds = re.sub(r"[ \t\r\n]+", "", kinds)
        if not isinstance(ratio, Sequence):
            ratio = (_fraction("ratio", ratio),) * len(kinds)
    return CacheSchedule(kinds, cast("tuple[float, ...]", ratio))  # which it makes of any sequence


def from_generator(generator: Mapping[str, Any], steps: int) -> CacheSchedule:
    """The schedule of a generator dict, e.g. {"type": "dual", "interval": 5}; settings left out take their
    defaults, others are refused."""
    return _generated(generator, steps, "generator.")


def _generated(generator: Mapping[str, Any], steps: int, prefix: str = "") -> CacheSchedule:
    steps = _whole("steps", steps, 1)
    settings = _settings(generator, prefix)
    return CacheSchedule(*_plan(settings, steps), settings["type"], tuple(settings.items()))


def _plan(settings: Mapping[str, Any], steps: int) -> tuple[str, tuple[float, ...]]:
    """Kinds and ratios of checked settings."""
    if settings["type"] == "duca_dit":
        kinds = _dit_kinds(steps, settings["interval"])
    elif settings["type"] == "modulo":
        kinds = "".join(
            "F" if i < max(settings["warmup"], 1) or i % settings["interval"] == 0 else "A"
            for i in range(steps)
        )
    elif settings["type"] == "growing":
        kinds = _growing_kinds(steps, settings["growth"], max(settings["warmup"], 1))
    else:
        kinds = _cycle_kinds(
            steps,
            **{"interval": 1, **_WINDOW, **{k: v for k, v in settings.items() if k not in ("type", "ratio")}},
        )
    return kinds, (settings.get("ratio", _DEFAULT_RATIO),) * steps


def _cycle_kinds(
    steps: int, interval: int, warmup: int, tail: int, start: float, end: float, order: str = "A"
) -> str:
    first, last = math.floor(start * steps + 0.5), math.floor(end * steps + 0.5)
    kinds, since = "", 0
    for i in range(steps):
        if i < max(warmup, 1) or i >= steps - tail or not first <= i < last or since == interval - 1:
            kinds, since = kinds + "F", 0
        else:
            kinds, since = kinds + order[since % len(order)], since + 1
    return kinds


def _dit_kinds(steps: int, interval: int) -> str:
    if interval == 1:
        return "F" * steps
    kinds, current = "", interval
    for d in range(steps - 1, -1, -1):
        if kinds and d % current:
            kinds += "C" if d % current % 2 else "A"
            continue
        kinds += "F"
        # interval / (1.4 - 0.8 d / steps) = 5 interval steps / (7 steps - 4 d), rounded half up in whole
        # numbers
        below = 7 * steps - 4 * d
        current = 2 if steps <= 5 * d < 2 * steps else (10 * interval * steps + below) // (2 * below)
    return kinds


def _growing_kinds(steps: int, growth: float, warmup: int) -> str:
    kinds, window, since = "F" * min(warmup, steps), 2.0, 0
    while len(kinds) < steps:
        since += 1
        if since % math.floor(window) == 0:
            kinds, window, since = kinds + "F", window + growth, 0
        else:
            kinds += "A"
    return kinds


def _resample(kinds: str, ratios: Sequence[float], steps: int) -> tuple[str, tuple[float, ...]]:
    """Resamples an explicit list to `steps` steps by position, whole numbers only.

    Old step j covers [j * steps, (j + 1) * steps) and new step i covers [i * old, (i + 1) * old) of one axis,
    and `due` is how much of a kind has passed at each new boundary (`old` units are one new step). New step i
    is F if the F's due, rounded up, grow on it (so the first step is F); else it is the one of C and A that
    lags its due more, C if equal. The c-th of the new C steps takes the ratio of the old C step at the same
    rank, floor((2c + 1) * old C steps / (2 * new C steps)); other steps take that of the old step at their
    middle."""
    old = len(kinds)

    def due(letter: str) -> list[int]:
        passed = [
            0,
            *accumulate(int(kind == letter) for kind in kinds),
            kinds.count(letter),
        ]  # the last one closes the last boundary
        places = (divmod(i * old, steps) for i in range(steps + 1))
        return [passed[j] * (steps - part) + passed[j + 1] * part for j, part in places]

    dues = {letter: due(letter) for letter in LETTERS}
    placed = {"C": 0, "A": 0}
    letters = ""
    for i in range(steps):
        if -(-dues["F"][i + 1] // old) > -(-dues["F"][i] // old):
            letters += "F"
            continue
        kind = "C" if dues["C"][i + 1] - placed["C"] * old >= dues["A"][i + 1] - placed["A"] * old else "A"
        placed[kind] += 1
        letters += kind
    of_c = [ratio for kind, ratio in zip(kinds, ratios, strict=True) if kind == "C"]
    taken = [ratios[(2 * i + 1) * old // (2 * steps)] for i in range(steps)]
    for c, i in enumerate(i for i, kind in enumerate(letters) if kind == "C"):
        taken[i] = of_c[(2 * c + 1) * len(of_c) // (2 * placed["C"])]
    return letters, tuple(taken)


def _settings(generator: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Checked settings of a generator, complete and in the order of GENERATORS; `prefix` goes before the
    field's name in errors."""
    if not isinstance(generator, Mapping):
        raise ValueError("generator must be an object.")
    kind = generator.get("type")
    if not isinstance(kind, str) or kind not in GENERATORS:
        raise ValueError(f"{prefix}type must be one of {', '.join(GENERATORS)}.")
    for key in generator:
        if key != "type" and key not in GENERATORS[kind]:
            raise ValueError(f"{prefix}{named(key)} is not a setting of {kind}.")
    settings: dict[str, Any] = {"type": kind}
    for key, default in GENERATORS[kind].items():
        value = generator.get(key, default)
        if value is _REQUIRED:
            raise ValueError(f"{prefix}{key} is missing.")
        if key == "order":
            if not isinstance(value, str) or not re.fullmatch(f"[CA]{{1,{MAX_STEPS}}}", value):
                raise ValueError(f"{prefix}order must be a string of the letters C and A.")
            settings[key] = value
        elif key in ("interval", "warmup", "tail"):
            settings[key] = _whole(prefix + key, value, 1 if key == "interval" else 0)
        elif key == "growth":
            if not _is_number(value) or not 0 <= value <= 100:
                raise ValueError(f"{prefix}growth must be a number from 0 to 100.")
            settings[key] = float(value)
        else:
            settings[key] = _fraction(prefix + key, value)
    if settings.get("start", 0.0) > settings.get("end", 1.0):
        raise ValueError(f"{prefix}start must not be greater than end.")
    return settings


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(name: str, value: Any, least: int) -> int:
    """A whole number from `least` to MAX_STEPS; 5.0 counts as 5, as it does in JSON."""
    if not _is_number(value) or not least <= value <= MAX_STEPS or value != int(value):
        raise ValueError(f"{name} must be a whole number from {least} to {MAX_STEPS}.")
    return int(value)


def _fraction(name: str, value: Any) -> float:
    if not _is_number(value) or not 0 <= value <= 1:  # NaN fails the comparison
        raise ValueError(f"{name} must be a number from 0 to 1.")
    return float(value)
