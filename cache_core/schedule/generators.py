"""Generators of plans: the kinds and the token ratios of any number of steps, from a few settings.

The arithmetic is on whole numbers or floor(x + 0.5), never banker's rounding, so that another language
reproduces every plan exactly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from ..base.limits import MAX_STEPS
from ..base.wording import named

LETTERS = "FCA"
_REQUIRED = object()


_WINDOW = {"warmup": 1, "tail": 0, "start": 0.0, "end": 1.0}


# CacheConfig of each generator with their defaults, in the order in which they are written.
GENERATORS: dict[str, dict[str, Any]] = {
    "full": {},
    "uniform": {"interval": _REQUIRED, **_WINDOW},
    "dual": {"interval": _REQUIRED, "order": "CA", "ratio": 0.1, **_WINDOW},
    "duca_dit": {"interval": _REQUIRED, "ratio": 0.05},
    "modulo": {"interval": _REQUIRED, "warmup": 1},
    "growing": {"growth": _REQUIRED, "warmup": 1},
}


DEFAULT_RATIO = 0.1


def planned(settings: Mapping[str, Any], steps: int) -> tuple[str, tuple[float, ...]]:
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
    return kinds, (settings.get("ratio", DEFAULT_RATIO),) * steps


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


def resampled(kinds: str, ratios: Sequence[float], steps: int) -> tuple[str, tuple[float, ...]]:
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


def checked_settings(generator: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
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
            settings[key] = whole_number(prefix + key, value, 1 if key == "interval" else 0)
        elif key == "growth":
            if not is_number(value) or not 0 <= value <= 100:
                raise ValueError(f"{prefix}growth must be a number from 0 to 100.")
            settings[key] = float(value)
        else:
            settings[key] = fraction(prefix + key, value)
    if settings.get("start", 0.0) > settings.get("end", 1.0):
        raise ValueError(f"{prefix}start must not be greater than end.")
    return settings


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def whole_number(name: str, value: Any, least: int) -> int:
    """A whole number from `least` to MAX_STEPS; 5.0 counts as 5, as it does in JSON."""
    if not is_number(value) or not least <= value <= MAX_STEPS or value != int(value):
        raise ValueError(f"{name} must be a whole number from {least} to {MAX_STEPS}.")
    return int(value)


def fraction(name: str, value: Any) -> float:
    if not is_number(value) or not 0 <= value <= 1:  # NaN fails the comparison
        raise ValueError(f"{name} must be a number from 0 to 1.")
    return float(value)
