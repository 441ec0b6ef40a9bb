"""Where on the sampling path a feature was computed: step index, noise level, log-SNR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

COORDINATES = ("sigma", "index", "log_snr")


CLIP = 1e-3
"""How near to pure noise and to no noise a log-SNR is told apart."""


def log_snr(sigma: float, flow: bool = True) -> float:
    """log(signal power / noise power) at noise level sigma; flow: x = (1 - sigma) data + sigma noise, else x
    = data + sigma noise."""
    if flow:
        sigma = min(max(sigma, CLIP), 1 - CLIP)
        return 2 * math.log((1 - sigma) / sigma)
    return -2 * math.log(max(sigma, CLIP))


@dataclass(frozen=True)
class Node:
    """Where on the sampling path a tensor was computed: the step `index` and the noise level `sigma`, of a
    `flow` model or another."""

    index: float
    sigma: float
    flow: bool = True

    def at(self, coordinate: str) -> float:
        if coordinate == "log_snr":
            return log_snr(self.sigma, self.flow)
        return self.sigma if coordinate == "sigma" else self.index


TOLERANCE = 1e-3
"""How far noise levels may lie apart, by the largest of them, to count as equal."""


def same_levels(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two lists of noise levels are those of one run."""
    return len(one) == len(other) and all(
        abs(a - b) <= TOLERANCE * max(map(abs, one)) for a, b in zip(one, other)
    )
