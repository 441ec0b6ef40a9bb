"""The guard of a run: content that changes place between steps ends the caching of the run.

Between two steps of a sampler the latent of a branch changes little. Where another node hands over other
tiles, windows or pictures under the same conditioning, it changes altogether, and no feature of the last step
fits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..cache.feature_cache import Branch

LIMIT = 0.3
"""Least cosine of two successive inputs of a branch.

Euler in 4 steps has 0.85 and more; a latent of noise that is moved by some places has about 0."""
PROBED = 4096
"""Values of an input that are compared."""


STALE = (
    "A conditioning that the sampler leaves out on some steps was older than the plan allows, so those calls "
    "ran in full. Choose a plan whose full steps fall on the steps on which it is evaluated."
)


CONTROL = (
    "What a control network adds has changed in strength since the last full step, so those calls ran in "
    "full."
)


def probe(x: torch.Tensor) -> torch.Tensor:
    """At most `PROBED` values of a sample batch x [b,...], evenly spread, as [b,k] in float32."""
    flat = x.detach().flatten(1)
    return flat[:, :: max(1, flat.shape[1] // PROBED)][:, :PROBED].float()


def likeness(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The least cosine over the samples of two probes [b,k]; one number on their device."""
    return torch.cosine_similarity(one, other, dim=1).min()


class Guard:
    """Compares the inputs of successive steps. limit: the least cosine that is accepted.

    On CUDA the number is copied beside the model's work and looked at once it has arrived, so that no step
    waits for it.
    """

    def __init__(self, limit: float = LIMIT):
        self.limit = limit
        self._pending: list[tuple[int, torch.Tensor, torch.cuda.Event | None]] = []

    def compare(self, step: int, branches: Sequence[Branch], latent: torch.Tensor) -> None:
        """Watches how the input [B,...] of every branch has changed since its evaluation at the step before,
        where it had the same size."""
        for branch, part in zip(branches, probe(latent).chunk(len(branches))):
            before, branch.input = branch.input, (step, latent.shape[1:], part)
            if before is None or before[:2] != (step - 1, latent.shape[1:]) or before[2].shape != part.shape:
                continue
            self.watch(step, likeness(before[2], part))

    def watch(self, step: int, value: torch.Tensor) -> None:
        """value: the cosine of the inputs at this step and the one before."""
        if value.device.type != "cuda":
            self._pending.append((step, value, None))
            return
        there = torch.empty((), dtype=value.dtype, pin_memory=True)
        there.copy_(value, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self._pending.append((step, there, done))

    def tripped(self) -> int | None:
        """The first step whose input had nothing to do with the one before, of those that have arrived.

        An input that holds no numbers says nothing.
        """
        waiting, found = [], None
        for step, value, done in self._pending:
            if done is not None and not done.query():
                waiting.append((step, value, done))
            elif found is None and float(value) < self.limit:
                found = step
        self._pending = waiting
        return found
