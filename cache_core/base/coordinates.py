"""Where on the sampling path a feature was computed: step index, noise level, log-SNR."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def _scale(sigma: float) -> float:
    """sqrt(1 + sigma^2): what a latent at a noise level is divided by before the model sees it."""
    return math.sqrt(1.0 + sigma * sigma)


PREDICTIONS: dict[str, Callable[[float], tuple[float, float]]] = {
    "flow": lambda sigma: (1.0, -sigma),
    "noise": lambda sigma: (_scale(sigma), -sigma),
    "velocity": lambda sigma: (1.0 / _scale(sigma), -sigma / _scale(sigma)),
    "edm": lambda sigma: (1.0 / _scale(sigma), sigma / _scale(sigma)),
    "data": lambda sigma: (0.0, 1.0),
}
"""(a, b) by noise level: a * model input + b * model output is the prediction of the data.

flow: rectified flow.
noise, velocity: Ho et al. 2020 and Salimans and Ho 2022, with inputs scaled to unit variance.
edm: Karras et al. 2022, with data of unit variance.
data: the output is the data prediction itself.
"""


@dataclass(frozen=True)
class Node:
    """Where on the sampling path a tensor was computed: the step `index` and the noise level `sigma`, of a
    `flow` model or another."""

    index: float
    sigma: float
    flow: bool = True
    prediction: str = ""
    """What the model predicts, a key of `PREDICTIONS`; empty: "flow" or "noise" as `flow` says."""

    @property
    def data_factors(self) -> tuple[float, float] | None:
        """(a, b) such that a * input + b * output of the model is its data prediction; None where unknown."""
        made = PREDICTIONS.get(self.prediction or ("flow" if self.flow else "noise"))
        return made and made(self.sigma)

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
