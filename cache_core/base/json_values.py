"""Numbers of JSON files: reading them with a sentence for what is wrong, and writing those that JSON cannot
hold."""

from __future__ import annotations

import math
from typing import Any

from .limits import MAX_STEPS


def _number(x) -> float | str:
    """A float, or the string that float() reads back where JSON has no number for it."""
    x = float(x)
    return x if math.isfinite(x) else str(x)


def finite(x: Any) -> Any:
    """Plain data with its numbers as JSON can hold them: those that are not finite become strings."""
    if isinstance(x, dict):
        return {k: finite(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [finite(v) for v in x]
    return _number(x) if isinstance(x, float) else x


def read_step(name: str, key) -> int:
    """A step's number from a name of a JSON object."""
    if not isinstance(key, str) or not key.isascii() or not key.isdigit() or len(key) > 5:
        raise ValueError(f"{name} must have step numbers as names, not {str(key)[:20]!r}.")
    return int(key)


def read_number(name: str, value) -> float:
    """A number of a JSON file."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
        raise ValueError(f"{name} must hold numbers.")
    return float(value)


def read_sigmas(of: str, sigmas) -> tuple[float, ...]:
    """Noise levels of a JSON file."""
    if not isinstance(sigmas, (list, tuple)) or len(sigmas) > MAX_STEPS + 1:
        raise ValueError(f"sigmas of {of} must be a list of numbers.")
    return tuple(read_number(f"sigmas of {of}", s) for s in sigmas)
