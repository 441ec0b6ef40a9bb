"""ERTACache's offline plans (ICLR 2026, arXiv 2508.21091) from a profile: a fixed reuse set, step lengths and
a rectifier.

Skipped steps reuse r, the model's output minus the latent (`residual`). The method's published ratios are of
sums of magnitudes (L1), taken while sampling with the cache; here they are of Euclidean lengths along the
uncached runs, which is what inner products tell: no feature is kept, and what reuse changes on the path is
not seen."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..base.limits import LARGEST
from ..predictors.residual import Residual
from ..schedule.plan import CacheSchedule, explicit
from .planner import MOST_STEPS
from .profile import Profile


@dataclass(frozen=True)
class ErtaPlan:
    """The schedule with its forecast, the noise levels it is for, and the expected relative error of r at
    each of its steps.

    threshold: the least lambda that gives this reuse set. lengths: phi of the skipped steps before those of
        no length were left out."""

    schedule: CacheSchedule
    sigmas: tuple[float, ...]
    expected: tuple[float, ...]
    threshold: float
    lengths: dict[int, float]


def _path(profile: Profile) -> torch.Tensor:
    if profile.path is None:
        raise ValueError("the profile does not hold the model's inputs and outputs; record it anew.")
    if profile.steps > MOST_STEPS:
        raise ValueError(f"plans can be made for at most {MOST_STEPS} steps, not {profile.steps}.")
    return profile.path


def _distances(gram: torch.Tensor) -> torch.Tensor:
    """Lengths [samples, T, T] of differences of the vectors whose products gram [samples, T, T] holds."""
    energy = gram.diagonal(dim1=-2, dim2=-1)
    return (energy[:, :, None] + energy[:, None, :] - 2 * gram).clamp_min(0).sqrt()


def _residuals(path: torch.Tensor) -> torch.Tensor:
    """Gram matrices [samples, T, T] of outputs minus inputs."""
    n = (path.shape[-1] - 1) // 2
    x, v = slice(0, n), slice(n, 2 * n)
    return path[:, v, v] + path[:, x, x] - path[:, v, x] - path[:, x, v]


def reuse_ratios(profile: Profile) -> torch.Tensor:
    """[T, T]: how far r at step j (row) is from r at step i (column), relative to the latter, mean over the
    samples."""
    gram = _residuals(_path(profile))
    return (_distances(gram) / gram.diagonal(dim1=-2, dim2=-1).clamp_min(1e-30).sqrt()[:, None, :]).mean(0)


def reuse_set(ratios: torch.Tensor, threshold: float, warmup: int = 1) -> tuple[int, ...]:
    """Full steps where every step is skipped at which r of the last full one is off by less than
    `threshold`."""
    full = list(range(min(warmup, len(ratios))))
    for i in range(len(full), len(ratios)):
        if not ratios[full[-1], i] < threshold:
            full.append(i)
    return tuple(full)


def threshold_for(ratios: torch.Tensor, budget: int, warmup: int = 1) -> float:
    """The least threshold whose reuse set has at most `budget` full steps, and of those sets one that has the
    most."""
    steps = len(ratios)
    if not 1 <= warmup <= budget <= steps:
        raise ValueError(
            f"budget must lie between the {warmup} steps of warm-up and the {steps} steps of the run, "
            f"not {budget}."
        )
    tried = torch.cat(
        [ratios.triu(1).flatten().unique(), torch.tensor([math.inf], dtype=ratios.dtype)]
    )  # a set changes only there
    newest, count = (
        torch.full_like(tried, warmup - 1, dtype=torch.long),
        torch.full_like(tried, warmup, dtype=torch.long),
    )
    for i in range(warmup, steps):
        full = ~(ratios[newest, i] < tried)
        newest, count = torch.where(full, i, newest), count + full
    most = count[count <= budget].max()
    return float(tried[count == most].min())


def step_factors(profile: Profile, full: Sequence[int]) -> dict[int, float]:
    """phi of every skipped step: 1 minus the error of its output over how far the output moves on to the next
    step, from 0 to 1.

    At the last step, which has no next one, over how far it has moved from the one before.
    """
    path, n, out = _path(profile), profile.steps, {}
    error, moved = _distances(_residuals(path)), _distances(path[:, n : 2 * n, n : 2 * n])
    for i, j in _skipped(n, full):
        further = moved[:, i, i + 1] if i + 1 < n else moved[:, i - 1, i]
        out[i] = min(max(1 - float((error[:, j, i] / further.clamp_min(1e-30)).mean()), 0.0), 1.0)
    return out


def adjusted(sigmas: Sequence[float], factors: dict[int, float]) -> tuple[float, ...]:
    """Noise levels whose steps have their lengths times the factors, 1 where there is none, and times one
    number that keeps the sum.

    For even steps this is the published rule: one length for all full steps, phi of it for skipped ones.
        ValueError where no step has any length left."""
    lengths = [(a - b) * factors.get(i, 1.0) for i, (a, b) in enumerate(zip(sigmas, sigmas[1:]))]
    if not sum(lengths):
        raise ValueError(
            "These full steps have no length, as their noise levels are equal, and the others would "
            "shrink to none; turn "
            "step_lengths off, or allow more full steps."
        )
    share = (sigmas[0] - sigmas[-1]) / sum(lengths)
    out = [float(sigmas[0])]
    for length in lengths:
        out.append(out[-1] - share * length)
    return (*out[:-1], float(sigmas[-1]))


def rectifier(profile: Profile, full: Sequence[int]) -> dict[int, tuple[int, float, float]]:
    """{step: (its full step, slope, offset)}: least squares of the error of a reused output on that output,
    over all values and samples.

    The published form, sigmoid(K v + B) made linear, is this line with K = 4 slope and B = 4 offset - 2.
    """
    path, n, out = _path(profile).mean(0), profile.steps, {}
    one = 2 * n
    for i, j in _skipped(n, full):
        reused = torch.zeros(2 * n + 1, dtype=path.dtype)  # x_i + v_j - x_j
        reused[[i, n + j, j]] = torch.tensor([1.0, 1.0, -1.0], dtype=path.dtype)
        error = reused.clone()
        error[n + i] -= 1.0
        mean, mean_error = path[one] @ reused, path[one] @ error
        spread = reused @ path @ reused - mean**2
        slope = float(
            ((reused @ path @ error - mean * mean_error) / spread.clamp_min(1e-12)).clamp(-LARGEST, LARGEST)
        )
        out[i] = j, slope, float(mean_error - slope * mean)
    return out


def _skipped(steps: int, full: Sequence[int]) -> list[tuple[int, int]]:
    """(skipped step, full step before it)."""
    return [(i, max(f for f in full if f < i)) for i in range(steps) if i not in full]


def erta_plan(profile: Profile, full: Sequence[int], lengths: bool = True, rectify: bool = True) -> ErtaPlan:
    """The plan with these full steps, which begin with 0; steps of no length are left out, as they change
    nothing and break samplers.

    ValueError where the profile lacks the path.
    """
    ratios, n = reuse_ratios(profile), profile.steps
    full = sorted(set(full))
    if not full or full[0] != 0 or full[-1] >= n:
        raise ValueError(f"full steps must begin with 0 and lie below {n}.")
    factors = step_factors(profile, full) if lengths else {}
    sigmas = adjusted(profile.sigmas, factors)
    kept = [i for i in range(n) if factors.get(i, 1.0) > 0]
    at = {old: new for new, old in enumerate(kept)}
    levels = (*(sigmas[i] for i in kept), sigmas[-1])
    expected = dict(_skipped(n, full))
    rows = rectifier(profile, full) if rectify else {}
    fitted = tuple((at[i], (at[j], slope, offset)) for i, (j, slope, offset) in rows.items() if i in at)
    forecast = Residual(len(kept), fitted, levels) if fitted else Residual()
    kinds = "".join("F" if i in full else "A" for i in kept)
    schedule = replace(
        explicit(kinds), name="ertacache", forecast=json.dumps(forecast.to_dict()) if "A" in kinds else None
    )
    return ErtaPlan(
        schedule,
        levels,
        tuple(float(ratios[expected[i], i]) if i in expected else 0.0 for i in kept),
        max((float(ratios[j, i]) for i, j in expected.items()), default=0.0),
        factors,
    )
