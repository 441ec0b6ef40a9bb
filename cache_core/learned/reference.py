"""What plans are learned from: recorded runs, with the state and the velocity at every evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .features import products


@dataclass(frozen=True)
class Trajectory:
    """A batch of recorded runs of the same noise levels.

    sigmas: N + 1 noise levels that fall. states: N + 1 tensors [B, ...], what the model saw, and the end.
    velocities: N tensors [B, ...] there, guided. Sequences may read from a file whenever they are asked.
    ValueError where they do not belong together or the end is not finite."""

    sigmas: tuple[float, ...]
    states: Sequence[torch.Tensor]
    velocities: Sequence[torch.Tensor]

    def __post_init__(self):
        if len(self.sigmas) < 2 or any(b >= a for a, b in zip(self.sigmas, self.sigmas[1:])):
            raise ValueError("the noise levels of a recorded run must fall.")
        if len(self.states) != len(self.sigmas) or len(self.velocities) != len(self.sigmas) - 1:
            raise ValueError(
                "a recorded run must hold a state at every noise level and a velocity at every step."
            )
        if not torch.isfinite(self.states[-1]).all():
            raise ValueError("a recorded run holds numbers that are not finite; it cannot be learned from.")

    @property
    def count(self) -> int:
        return self.states[0].shape[0]

    def at(self, sigma: float) -> torch.Tensor:
        """The state at a noise level: a recorded one, or by cubic Hermite interpolation between two."""
        levels = self.sigmas
        for i, level in enumerate(levels):
            if abs(level - sigma) <= 1e-6 * max(levels[0], 1e-6):
                return self.states[i]
        j = next((i for i, level in enumerate(levels) if level < sigma), None)
        if not j:
            raise ValueError(f"noise level {sigma:.4g} is not between those recorded.")
        i, h = j - 1, levels[j] - levels[j - 1]
        u = (sigma - levels[i]) / h
        if j == len(levels) - 1:  # no velocity was recorded at the end
            slope = (self.states[j] - self.states[i]) / h
            return self.states[i] + u * h * (self.velocities[i] + u * (slope - self.velocities[i]))
        return (
            (1 + 2 * u) * (1 - u) ** 2 * self.states[i]
            + u * (1 - u) ** 2 * h * self.velocities[i]
            + u * u * (3 - 2 * u) * self.states[j]
            - u * u * (1 - u) * h * self.velocities[j]
        )

    def gram(self) -> torch.Tensor:
        """Inner products [B, 2 N + 1, 2 N + 1] per value of the states and then the velocities."""
        return products([*self.states, *self.velocities])


def record(
    sigmas: Sequence[float],
    x: torch.Tensor,
    velocity: Callable[[torch.Tensor, float], torch.Tensor],
    run=None,
) -> Trajectory:
    """Samples x [B, ...] and records it: Euler's method, or `run` of `samplers.sampler`."""
    states, velocities = [x], []
    for i, sigma in enumerate(map(float, sigmas[:-1])):
        v = velocity(x, sigma)
        x = x + (sigmas[i + 1] - sigma) * v if run is None else run.advance(i, x, v)
        states.append(x)
        velocities.append(v)
    return Trajectory(tuple(map(float, sigmas)), states, velocities)


def solve_exactly(
    sigmas: Sequence[float], x: torch.Tensor, velocity: Callable[[torch.Tensor, float], torch.Tensor]
) -> Trajectory:
    """The exact solution to third order at these noise levels: Ralston's method of three evaluations a step
    (2/9, 1/3, 4/9)."""
    states, velocities = [x], []
    for now, after in zip(map(float, sigmas), map(float, sigmas[1:])):
        h = after - now
        first = velocity(x, now)
        second = velocity(x + h / 2 * first, now + h / 2)
        third = velocity(x + 3 * h / 4 * second, now + 3 * h / 4)
        velocities.append(first)
        x = x + h * (2 * first + 3 * second + 4 * third) / 9
        states.append(x)
    return Trajectory(tuple(map(float, sigmas)), states, velocities)


def decibels(error: torch.Tensor, aim: torch.Tensor) -> list[float]:
    """How close samples [B, ...] come to their aims: energy of the aim over that of the error, in dB."""
    flat = error.flatten(1).double().square().mean(1), aim.flatten(1).double().square().mean(1)
    return [
        10 * math.log10(max(a, 1e-30) / max(e, 1e-30)) for e, a in zip(flat[0].tolist(), flat[1].tolist())
    ]
