"""Limits that several files check."""

from __future__ import annotations

MAX_STEPS = 10_000
LARGEST, MOST_CHANNELS = 100, 1 << 16
DIGITS = "0123456789abcdef"
