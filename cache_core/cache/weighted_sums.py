"""Weighted sums of snapshots: accumulated in float32, in pieces, so that no float32 copy of a whole feature
is made, and kept within the range of float16."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

PIECE = 1 << 24
"""Values of a tensor that are worked on at a time, 64 MiB in float32: few launches, and room that no model's
own work does not take too."""


def pieces(x: torch.Tensor) -> Iterator[slice]:
    """Slices of dimension 1 of x [b,n,...] that hold about `PIECE` values each at most."""
    n = x.shape[1] if x.ndim > 1 else 1
    count = -(-x.numel() // PIECE)
    if count < 2 or n < 2:
        yield slice(None)
        return
    length = -(-n // count)
    for start in range(0, n, length):
        yield slice(start, start + length)


def cut(x: torch.Tensor, where: slice) -> torch.Tensor:
    """A slice of dimension 1; x itself where all is wanted or where there is one entry for all of it."""
    return x if where == slice(None) or x.ndim < 2 or x.shape[1] == 1 else x[:, where]


def within_range_(x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """x, clamped in place to what float16 holds, where it is or will be that.

    The models' own blocks do so too, and they are skipped."""
    return x.clamp_(-65504.0, 65504.0) if (dtype or x.dtype) == torch.float16 else x


def weighted_sum(
    snapshots: Sequence[torch.Tensor],
    weights: Sequence[float | torch.Tensor],
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum of weights times snapshots in the snapshots' dtype, accumulated in float32; a weight is a number or
    broadcasts to a snapshot."""
    first = snapshots[0]
    pairs = [(s, w) for s, w in zip(snapshots, weights) if isinstance(w, torch.Tensor) or w]
    if not pairs:
        return torch.zeros_like(first) if out is None else out.zero_()
    if first.dtype == torch.float32 or (out is not None and out.dtype == torch.float32):
        total = (
            torch.empty_like(first, dtype=torch.float32) if out is None or out.dtype != torch.float32 else out
        )
        _accumulate(total, pairs)
        return total if out is None or total is out else out.copy_(total)
    made = torch.empty_like(first) if out is None else out
    room: torch.Tensor | None = None
    for where in pieces(first):
        part = cut(made, where)
        if room is None or room.shape != part.shape:
            room = None  # before the next is made
            room = torch.empty_like(part, dtype=torch.float32)
        _accumulate(
            room, [(cut(s, where), cut(w, where) if isinstance(w, torch.Tensor) else w) for s, w in pairs]
        )
        part.copy_(within_range_(room, part.dtype))
    return made


def _accumulate(total: torch.Tensor, pairs: Sequence[tuple[torch.Tensor, float | torch.Tensor]]) -> None:
    """total [b,n,...] in float32 becomes the sum of the pairs' products."""
    (snapshot, weight), *others = pairs
    if snapshot.dtype == torch.float32 or isinstance(weight, torch.Tensor):
        torch.mul(snapshot, weight, out=total)
    else:
        total.copy_(snapshot).mul_(weight)
    for snapshot, weight in others:
        if isinstance(weight, torch.Tensor):
            total.addcmul_(snapshot, weight)
        else:
            total.add_(snapshot, alpha=weight)
