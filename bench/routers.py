"""A router trained on captions: which modules of the embedded model to compute at which step, for a budget.

As HarmoniCa (ICML 2025) does: the cached model denoises from noise along the whole path beside the uncached
one, every module's output is a mix of fresh and kept whose weight is a score made hard at the threshold
(gradients pass straight through), each step's error is weighed by what caching that step does to the picture,
and the scores' sum is held down. Ours: each score counts by its module's work, and how strongly the sum is
held down is chosen anew for every path, so that the budget's share of the scores rises and the rest falls,
instead of by hand. The scores start around the threshold, with the budget's share above it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from tqdm import tqdm

from cache_core.hooks.shims import shim
from cache_core.models.families import blocks_of, find_family
from cache_core.schedule.cost import CostModel
from cache_core.schedule.mask_files import THRESHOLD, columns, router_mask
from cache_core.schedule.masks import Mask
from demo.sampler import noise_for, schedule_sigmas
from demo.scenes import encode_caption

SIZE, BATCH, RATE, SPREAD, LIMIT = 64, 2, 0.3, 0.5, 5.0
"""Pixels and captions of a training path, Adam's rate, the deviation of the first logits, and their bound (as
published)."""
SEED = 5000
"""Of the first path's noise."""


class Threshold(torch.autograd.Function):
    """1 where a score lies above the threshold, else 0; the gradient passes straight through."""

    @staticmethod
    def forward(ctx, scores):
        return (scores > THRESHOLD).to(scores.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Mixing:
    """Shims that mix fresh and kept outputs of a model's modules by a weight per column, or let them run and
    keep what they give.

    names: of the columns. weights [columns]: 1 takes what is fresh, 0 what was given last; None runs plainly.
    """

    def __init__(self, model: nn.Module):
        blocks = blocks_of(model, find_family(model))
        kinds = [b.name[0] for b in blocks]
        self.names = columns(**{kind: kinds.count(kind) for kind in dict.fromkeys(kinds)})
        self.weights: torch.Tensor | None = None
        self._kept: dict[nn.Module, torch.Tensor] = {}
        self._columns: dict[nn.Module, int] = {}
        for block in blocks:
            name = ".".join(map(str, block.name))
            for path in block.spec.modules:
                whole = name in self.names
                self._columns[block.module.get_submodule(path)] = self.names.index(
                    name if whole else f"{name}.{block.spec.part(path)}"
                )

    @contextmanager
    def shims(self) -> Iterator[Mixing]:
        self._kept.clear()
        with ExitStack() as stack:
            for module, column in self._columns.items():
                stack.enter_context(
                    shim(
                        module,
                        lambda original, m=module, c=column: (
                            lambda *a, **k: self._mix(m, c, original(*a, **k))
                        ),
                    )
                )
            yield self
        self.weights = None

    def _mix(self, module: nn.Module, column: int, fresh: torch.Tensor) -> torch.Tensor:
        if self.weights is not None:
            w = self.weights[column]
            fresh = w * fresh + (1 - w) * self._kept[module]
        self._kept[module] = fresh.detach()
        return fresh


class Paths:
    """Runs of some captions: their noise, their text and the model's velocity, with guidance."""

    def __init__(self, model: nn.Module, captions: Sequence[str], steps: int, guidance: float, size: int):
        self.model, self.guidance, self.sigmas = model, guidance, schedule_sigmas(steps)
        self.noise, self.count = noise_for(range(SEED, SEED + len(captions)), size), len(captions)
        texts = list(captions) if guidance == 1 else [*[""] * len(captions), *captions]
        self.text = tuple(torch.stack(part) for part in zip(*map(encode_caption, texts)))

    def velocity(self, x: torch.Tensor, step: int) -> torch.Tensor:
        """Of latents [k * captions, ...] at a step."""
        branches, copies = 1 if self.guidance == 1 else 2, len(x) // self.count
        tokens, pooled = (
            part.unflatten(0, (branches, self.count)).repeat(1, copies, *[1] * (part.ndim - 1)).flatten(0, 1)
            for part in self.text
        )
        v = self.model(
            x.repeat(branches, 1, 1, 1), torch.full((len(tokens),), self.sigmas[step]), tokens, pooled
        )
        if self.guidance == 1:
            return v
        plain, told = v.chunk(2)
        return plain + self.guidance * (told - plain)

    def advance(self, x: torch.Tensor, v: torch.Tensor, step: int) -> torch.Tensor:
        return x + (self.sigmas[step + 1] - self.sigmas[step]) * v

    @torch.no_grad()
    def uncached(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Velocities and latents of the uncached run; one latent more."""
        states, velocities = [self.noise], []
        for step in range(len(self.sigmas) - 1):
            velocities.append(self.velocity(states[-1], step))
            states.append(self.advance(states[-1], velocities[-1], step))
        return velocities, states


@torch.no_grad()
def step_weights(paths: Paths, mixing: Mixing) -> torch.Tensor:
    """How much replaying every module at one step alone changes the latents at the end [T]: 0 at the first,
    mean 1 over the others."""
    velocities, states = paths.uncached()
    ways = states[0][:0]  # one per step so far: the run in which that step was replayed
    for step in range(len(velocities)):
        if len(ways):
            ways = paths.advance(ways, paths.velocity(ways, step), step)
        if step:
            with mixing.shims():
                paths.velocity(states[step - 1], step - 1)
                mixing.weights = torch.zeros(len(mixing.names))
                v = paths.velocity(states[step], step)
            ways = torch.cat([ways, paths.advance(states[step], v, step)])
    harm = (ways.unflatten(0, (-1, paths.count)) - states[-1]).square().flatten(1).mean(1)
    return torch.cat([torch.zeros(1), harm / harm.mean().clamp_min(1e-30)])


def work_of(names: Sequence[str], cost: CostModel) -> torch.Tensor:
    """Work of each column as a share of a step."""
    return torch.tensor([cost.flops_computed([name]) / cost.flops_full() for name in names])


def path_error(
    paths: Paths, mixing: Mixing, scores: torch.Tensor, truth: Sequence[torch.Tensor], weights: torch.Tensor
) -> float:
    """One cached run: over its steps the sum of weight times relative squared error of the velocity; scores
    [T, columns] get gradients."""
    x, total = paths.noise, 0.0
    with mixing.shims():
        for step, wanted in enumerate(truth):
            mixing.weights = Threshold.apply(scores[step]) if step else None
            v = paths.velocity(x, step)
            if step:
                error = weights[step] * (v - wanted).square().mean() / wanted.square().mean()
                error.backward()
                total += float(error.detach())
            x = paths.advance(x, v.detach(), step)
    return total


def held_mask(
    scores: torch.Tensor, names: Sequence[str], share: float, cost: CostModel
) -> tuple[Mask, float]:
    """The mask of most work within the share, and its threshold: the published one, or the nearest that keeps
    to the budget."""
    scores = torch.cat([torch.ones(1, scores.shape[1]), scores[1:]])  # the first step is full

    levels = sorted({0.0, *scores.flatten().tolist()})
    low, high = 0, len(levels) - 1  # at the highest level nothing but what is 1 by force is computed
    while low < high:
        middle = (low + high) // 2
        if cost.share(router_mask(scores, names, min(levels[middle], 1 - 1e-6))) <= share:
            high = middle
        else:
            low = middle + 1
    threshold = min(levels[low], 1 - 1e-6)
    return router_mask(scores, names, threshold), threshold


def train(
    model: nn.Module,
    captions: Sequence[str],
    steps: int,
    share: float,
    cost: CostModel,
    seconds: float,
    guidance: float = 1.0,
    size: int = SIZE,
    iterations: int | None = None,
    quiet: bool = False,
) -> dict:
    """A mask that does with a share of an uncached run's work, learned for at most so many seconds (and
    `iterations`) from the captions.

    cost: of the size at which the mask is to be used; the paths are run at `size` pixels. Gives the mask's
        JSON, the threshold that keeps
    it to the budget, and how the training went: errors and shares of work by path.
    """
    start, mixing, model = time.perf_counter(), Mixing(model), model.requires_grad_(False)
    chunks = [
        Paths(model, captions[i : i + BATCH], steps, guidance, size) for i in range(0, len(captions), BATCH)
    ]
    truths: dict[int, list[torch.Tensor]] = {}
    weights, work = (
        step_weights(Paths(model, captions[:1], steps, guidance, size), mixing),
        work_of(mixing.names, cost),
    )
    part = (share * steps - 1) / max(steps - 1, 1)  # of the steps behind the first, which is full
    first = SPREAD * torch.randn(steps, len(mixing.names), generator=torch.Generator().manual_seed(SEED))
    logits = nn.Parameter(first - _above(first, part) + torch.tensor(THRESHOLD).logit())
    optimizer, errors, shares = torch.optim.Adam([logits], lr=RATE), [], []
    with tqdm(total=iterations, unit="path", disable=quiet) as bar:
        while time.perf_counter() - start < seconds and (iterations is None or len(errors) < iterations):
            turn = len(errors) % len(chunks)
            if turn not in truths:
                truths[turn] = chunks[turn].uncached()[0]
            scores = logits.detach().sigmoid().requires_grad_()
            shares.append(float(1 + ((scores[1:] > THRESHOLD).float() @ work).sum()) / steps)
            errors.append(path_error(chunks[turn], mixing, scores, truths[turn], weights))
            # What computing a module would save, by its work: what saves less than the pull falls.
            pull = _above(-scores.grad / work, part)
            optimizer.zero_grad()
            logits.sigmoid().backward(scores.grad + pull * work)
            optimizer.step()
            with torch.no_grad():
                logits.clamp_(-LIMIT, LIMIT)
            bar.set_description(f"error {errors[-1]:.2e}, work {shares[-1]:.2f} of {share:.2f}")
            bar.update()
    mask, threshold = held_mask(logits.detach().sigmoid(), mixing.names, share, cost)
    return {
        "mask": mask.to_dict(),
        "threshold": threshold,
        "share": share,
        "paths": len(errors),
        "size": size,
        "seconds": round(time.perf_counter() - start, 1),
        "errors": errors,
        "shares": shares,
    }


def _above(values: torch.Tensor, part: float) -> torch.Tensor:
    """What a part of the values [T, columns] behind the first row lies above."""
    return values[1:].flatten().quantile(1 - min(max(part, 0.0), 1.0))
