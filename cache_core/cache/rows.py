"""Token rows of a tensor: taking the chosen ones and writing them back."""

from __future__ import annotations

import torch


def take_rows(x: torch.Tensor, rows: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Rows of x [B,...] along `dim`; rows [1,k] are the same for the whole batch, rows [B,k] one choice per
    sample."""
    if rows.shape[0] == 1:
        return x.index_select(dim, rows[0])
    return x.gather(dim, _spread(rows, x, dim))


def put_rows_(x: torch.Tensor, rows: torch.Tensor, fresh: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Writes `fresh` into the chosen rows of x, in place; x must be owned by the caller."""
    if rows.shape[0] == 1:
        return x.index_copy_(dim, rows[0], fresh)
    return x.scatter_(dim, _spread(rows, x, dim), fresh)


def _spread(rows, x, dim):
    shape = [1] * x.ndim
    shape[0], shape[dim] = rows.shape
    size = list(x.shape)
    size[dim] = rows.shape[1]
    return rows.view(shape).expand(size)
