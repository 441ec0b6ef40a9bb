"""What deterministic samplers do with the velocities that they are given, step by step and without a host.

States and noise levels are in the sampler's coordinates, in which every sampler here integrates
dx/dsigma = v, v = (x - denoised) / sigma (k-diffusion's derivative; the output of a flow model). Each one is
linear in the states and velocities, so that plans can be fitted through it. Euler; DPM-Solver++(2M)
(arXiv 2211.01095); UniPC of order 3 with B(h) = h or expm1(h) (arXiv 2302.04867); the second-order multistep
method of RES (arXiv 2308.02157); steps and orders are those of ComfyUI's samplers of these names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

Tensors = torch.Tensor
LAST_SIGMA = 0.001
"""What UniPC takes in place of a last noise level of 0, whose log-SNR is infinite."""


class Euler:
    """One run of a sampler. sigmas: its noise levels, one more than steps.

    `advance` takes what the model saw at a step and the velocity there, and gives what it sees next."""

    def __init__(self, sigmas: Sequence[float]):
        self.sigmas = tuple(map(float, sigmas))
        self.past: list[Tensors] = []
        """What the sampler remembers, newest first."""

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def advance(self, i: int, x: Tensors, velocity: Tensors) -> Tensors:
        """What the model sees at step i + 1, or the end of the run, from x and the velocity [B, ...] at step
        i. Steps must come in order."""
        return x + (self.sigmas[i + 1] - self.sigmas[i]) * velocity

    def copy(self) -> Euler:
        """A run that goes on from here by itself; tensors are shared and never written to."""
        made = type(self)(self.sigmas)
        made.past = list(self.past)
        return made

    def response(self, first: int, given: int, end: int) -> float:
        """How far what the model sees at step `end` moves per unit of velocity added to steps given ..
        end - 1, where the run goes on at step `first`."""
        probe, zero = self.copy(), torch.zeros((), dtype=torch.float64)
        probe.past = [zero for _ in self.past]
        x = zero
        for i in range(first, end):
            x = probe.advance(i, x, zero + float(i >= given))
        return float(x)

    def _log_step(self, i: int) -> float:
        """Growth of -log sigma from step i to the next."""
        return math.log(self.sigmas[i] / self.sigmas[i + 1])


class DPM2M(Euler):
    """DPM-Solver++(2M)."""

    def advance(self, i: int, x: Tensors, velocity: Tensors) -> Tensors:
        now, after = self.sigmas[i], self.sigmas[i + 1]
        denoised = x - now * velocity
        slope = denoised
        if self.past and after > 0:
            r = self._log_step(i - 1) / self._log_step(i)
            slope = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * self.past[0]
        self.past = [denoised]
        return after / now * x + (1 - after / now) * slope


class RES(Euler):
    """res_multistep without fresh noise."""

    def advance(self, i: int, x: Tensors, velocity: Tensors) -> Tensors:
        now, after = self.sigmas[i], self.sigmas[i + 1]
        denoised, old = x - now * velocity, self.past
        self.past = [denoised]
        if after == 0 or not old:
            return x + (after - now) * velocity
        h = self._log_step(i)
        phi1 = math.expm1(-h) / -h
        phi2 = (phi1 - 1) / -h
        ahead = phi2 / (-self._log_step(i - 1) / h)
        return math.exp(-h) * x + h * ((phi1 - ahead) * denoised + ahead * old[0])


class UniPC(Euler):
    """UniPC of at most third order: predicts, looks at the model there and corrects what it came from."""

    exponential = False
    """Whether B(h) is expm1(h) (bh2) instead of h (bh1)."""

    def __init__(self, sigmas: Sequence[float]):
        super().__init__(sigmas)
        self.sigmas = (*self.sigmas[:-1], self.sigmas[-1] or LAST_SIGMA)
        self.most = max(1, min(3, self.steps - 1))

    def _order(self, i: int) -> int:
        """Of the step that leads to noise level i."""
        return i if i < self.most else min(self.most, self.steps + 1 - i)

    def advance(self, i: int, x: Tensors, velocity: Tensors) -> Tensors:
        denoised = x - self.sigmas[i] * velocity
        seen, came = self.past[:-1], self.past[-1:]
        if came:
            x = self._update(i, came[0], seen, denoised)
        seen = [denoised, *seen][:3]
        self.past = [*seen, x]
        return self._update(i + 1, x, seen, None)

    def _update(self, i: int, x: Tensors, seen: list[Tensors], reached: Tensors | None) -> Tensors:
        """The state at noise level i from the state before and denoised predictions, newest first; `reached`
        is the one at i, for the corrector."""
        order, before = self._order(i), self.sigmas[i - 1]
        h = -self._log_step(i - 1)
        ratios = [math.log(before / self.sigmas[i - 1 - j]) / -h for j in range(1, order)]
        scale = math.expm1(h) if self.exponential else h
        weights = _unipc_weights(ratios, h, scale, reached is not None)
        total = math.exp(h) * x - math.expm1(h) * seen[0]
        for j, (weight, ratio) in enumerate(zip(weights, ratios), 1):
            total = total - scale * weight / ratio * (seen[j] - seen[0])
        return total if reached is None else total - scale * weights[-1] * (reached - seen[0])


class UniPCBh2(UniPC):
    exponential = True


def _unipc_weights(ratios: list[float], h: float, scale: float, corrects: bool) -> list[float]:
    """Weights of the differences of denoised predictions, by their distances in steps of h (negative)."""
    order = len(ratios) + 1
    if order == 1:
        return [0.5] if corrects else []
    if order == 2 and not corrects:
        return [0.5]
    rhs, phi, factorial = [], math.expm1(h) / h - 1, 1
    for i in range(1, order + 1):
        rhs.append(phi * factorial / scale)
        factorial *= i + 1
        phi = phi / h - 1 / factorial
    nodes = torch.tensor([*ratios, 1.0], dtype=torch.float64)
    matrix = torch.stack([nodes**i for i in range(order)])
    values = torch.tensor(rhs, dtype=torch.float64)
    if not corrects:
        matrix, values = matrix[:-1, :-1], values[:-1]
    return torch.linalg.solve(matrix, values).tolist()


SAMPLERS: dict[str, type[Euler]] = {
    "euler": Euler,
    "dpmpp_2m": DPM2M,
    "res_multistep": RES,
    "uni_pc": UniPC,
    "uni_pc_bh2": UniPCBh2,
}
"""By ComfyUI's names."""


def sampler(name: str, sigmas: Sequence[float]) -> Euler:
    """A run of a sampler; ValueError where it is not one of `SAMPLERS`, or sigmas do not fall."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, not {name!r}.")
    if (
        len(sigmas) < 2
        or any(b >= a for a, b in zip(sigmas, sigmas[1:]))
        or not all(map(math.isfinite, sigmas))
    ):
        raise ValueError("sigmas must be at least two finite noise levels that fall.")
    return SAMPLERS[name](sigmas)


def integrate(
    name: str, sigmas: Sequence[float], x: Tensors, velocity: Callable[[Tensors, float], Tensors]
) -> Tensors:
    """The end of a run from x [B, ...], one call of velocity(x, sigma) per step."""
    run = sampler(name, sigmas)
    for i, sigma in enumerate(map(float, sigmas[:-1])):
        x = run.advance(i, x, velocity(x, sigma))
    return x
