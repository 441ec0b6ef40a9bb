"""Weights of a learned plan, fitted in one pass along its own path: every step is solved from where the steps
before it have led."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .features import FEATURES, RIDGES, Equations, Past, combined, known_weights, products
from .reference import Trajectory, decibels
from .samplers import Euler, sampler

Evaluate = Callable[[int, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor | None]]
"""evaluate(batch, x, sigma): guided velocity [B, ...] of the captions of a batch, and conditional minus
unconditional, or None without guidance."""

FEWEST = 4
"""Captions of which the weights of all but one are near enough to those of all."""


@dataclass(frozen=True)
class Fitted:
    """Weights of a plan and how it did.

    full: places of the full steps among the noise levels. weights: for each, by FEATURES, what is added to
        the newest velocity until the next one. ended: dB of every caption's end against its aim.
    held_out: whether those ran with weights that the other captions gave. ridges: of each step."""

    full: tuple[int, ...]
    weights: tuple[tuple[float, ...], ...]
    ended: tuple[float, ...]
    held_out: bool
    ridges: tuple[float, ...]


@dataclass
class _Path:
    """A run of one batch of captions, on its way."""

    x: torch.Tensor
    past: Past
    run: Euler | None


class _Kept:
    """Paths between two steps: in memory, or in files of a folder, which keeps memory independent of the
    number of captions."""

    def __init__(self, folder: Path | None):
        self._folder, self._paths = folder, {}

    def put(self, i: int, path: _Path) -> None:
        if self._folder is None:
            self._paths[i] = path
        else:
            torch.save((path.x, path.past.__dict__, path.run and (path.run.past,)), self._folder / f"{i}.pt")
            self._paths[i] = path.run and type(path.run)(path.run.sigmas)

    def get(self, i: int) -> _Path:
        if self._folder is None:
            return self._paths[i]
        x, held, more = torch.load(self._folder / f"{i}.pt", weights_only=True)
        past, run = Past(), self._paths[i]
        past.__dict__.update(held)
        if run is not None:
            run.past = list(more[0])
        return _Path(x, past, run)


class Segment:
    """From one full step to the next.

    levels: the grid. first, end: places of the two full steps. run: the user's sampler, or None where the
        plan is a sampler of its own, which takes the whole segment in one step."""

    def __init__(self, levels: Sequence[float], first: int, end: int, run: Euler | None):
        self.first, self.end, self.run = first, end, run
        self.span = levels[end] - levels[first]
        self.reach = self.span if run is None else run.response(first, first + 1, end)
        """How far the next state moves per unit of added velocity; 0 where no step is skipped."""

    def advance(
        self, x: torch.Tensor, newest: torch.Tensor, given: torch.Tensor, run: Euler | None
    ) -> torch.Tensor:
        """What the model sees next, from x [B, ...]: the newest velocity at the full step, `given` at those
        that are skipped. `run` moves on."""
        if run is None:
            return x + self.span * given
        for i in range(self.first, self.end):
            x = run.advance(i, x, newest if i == self.first else given)
        return x


def fit(
    aims: Sequence[Trajectory],
    evaluate: Evaluate,
    levels: Sequence[float],
    full: Sequence[int],
    under: str | None = None,
    *,
    shrink: bool = True,
    power: float = 0.0,
    cross: bool | None = None,
    ridges: Sequence[float] = RIDGES,
    folder: Path | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Fitted:
    """Fits the weights of full steps at these places of the grid `levels` [N + 1], by one evaluation of every
    caption per full step.

    aims: trajectories to end on, in batches of captions, their first states the start. under: the sampler
        that the plan runs under, by `samplers.SAMPLERS`, None for one of its own. shrink: whether weights are
        pulled towards those of DPM-Solver++(2M), else towards none. cross: whether each caption goes on by
        weights that the other captions gave, so that its end is that of a new caption and steps are fitted
        where new captions will be; None for where there are at least `FEWEST`. folder: where paths are kept
        between steps; memory by default. ValueError where there is no caption, or numbers are not finite."""
    if not aims:
        raise ValueError("there is no recorded run to learn from.")
    cross = sum(aim.count for aim in aims) >= FEWEST if cross is None else cross
    with tempfile.TemporaryDirectory(dir=folder) if folder else _nothing() as place:
        return _fit(
            aims, evaluate, list(levels), list(full), under, shrink, power, cross, ridges, place, progress
        )


def _nothing():
    from contextlib import nullcontext

    return nullcontext(None)


def _fit(aims, evaluate, levels, full, under, shrink, power, cross, ridges, place, progress) -> Fitted:
    kept = _Kept(Path(place) if place else None)
    for b, aim in enumerate(aims):
        run = sampler(under, levels) if under else None
        kept.put(b, _Path(aim.at(levels[full[0]]), Past(), run))
    counts = [aim.count for aim in aims]
    weights, chosen, nodes = [], [], [levels[i] for i in (*full, len(levels) - 1)]
    for k, (first, end) in enumerate(zip(full, [*full[1:], len(levels) - 1])):
        equations = None
        for b, aim in enumerate(aims):
            path = kept.get(b)
            path.past.push(*evaluate(b, path.x, levels[first]))
            segment, features = Segment(levels, first, end, path.run), path.past.features(path.x)
            base = segment.advance(
                path.x, path.past.velocities[0], path.past.velocities[0], path.run and path.run.copy()
            )
            residual = aim.at(levels[end]) - base
            equations = equations or Equations([n for n in FEATURES if n in features])
            held = [segment.reach * features[n] for n in equations.names]
            equations.add(products([*held, residual]))
            kept.put(b, path)
            progress()
        if segment.reach:
            prior = known_weights(nodes, k, segment.reach) if shrink else torch.zeros(len(FEATURES)).double()
            assert equations is not None, "one caption at least was added"
            every, each, ridge = equations.weights(prior, power, ridges)
        else:
            every, ridge = torch.zeros(len(FEATURES)).double(), 0.0
            each = every.expand(sum(counts), -1)
        weights.append(tuple(every.tolist()))
        chosen.append(ridge)
        for b, own in enumerate(each.split(counts)):
            path = kept.get(b)
            segment = Segment(levels, first, end, path.run)
            features = path.past.features(path.x)
            given = combined(path.past.velocities[0], weights[-1], features, own if cross else None)
            path.x = segment.advance(path.x, path.past.velocities[0], given, path.run)
            kept.put(b, path)
    ended = [
        dB
        for b, aim in enumerate(aims)
        for dB in decibels(kept.get(b).x - aim.at(levels[-1]), aim.at(levels[-1]))
    ]
    return Fitted(tuple(full), tuple(weights), tuple(ended), cross, tuple(chosen))


def follow(
    x: torch.Tensor,
    evaluate: Callable[[torch.Tensor, float], tuple[torch.Tensor, torch.Tensor | None]],
    levels: Sequence[float],
    full: Sequence[int],
    weights: Sequence[Sequence[float]],
    under: str | None = None,
    callback: Callable[[int, torch.Tensor, torch.Tensor], None] = lambda k, x, w: None,
) -> torch.Tensor:
    """The end of a learned run from x [B, ...] at the first full step, with one evaluation per full step.

    callback: told each full step's number, its state and its velocity."""
    past, run = Past(), sampler(under, levels) if under else None
    for k, (first, end) in enumerate(zip(full, [*full[1:], len(levels) - 1])):
        past.push(*evaluate(x, levels[first]))
        callback(k, x, past.velocities[0])
        given = combined(past.velocities[0], weights[k], past.features(x))
        x = Segment(levels, first, end, run).advance(x, past.velocities[0], given, run)
    return x
