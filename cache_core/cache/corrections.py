"""What conservative steps computed afresh, kept as differences from the forecast until the next full step."""

from __future__ import annotations

import torch

from .rows import put_rows_, take_rows
from .weighted_sums import within_range_


class Correction:
    """Differences of one site: of all tokens, of rows computed later than those, or of rows alone.

    Where two conservative steps computed the same row, the later one counts.
    """

    def __init__(self):
        self.whole: torch.Tensor | None = None
        self.rows: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Rows [1,k] or [b,k] and their differences [b,k,d], oldest first."""

    def set_whole(self, difference: torch.Tensor) -> None:
        self.whole, self.rows = difference, []

    def add_rows(self, rows: torch.Tensor, difference: torch.Tensor) -> None:
        self.rows.append((rows, difference))

    def applied(self, base: torch.Tensor, owned: bool) -> torch.Tensor:
        """base plus the differences; in place where base is `owned`. Later rows overwrite earlier ones."""
        below = [take_rows(base, rows) for rows, _ in self.rows]  # of the forecast, before it is written to
        if self.whole is None:
            out = base if owned else base.clone()
        else:
            out = within_range_(base.add_(self.whole) if owned else base + self.whole)
        for (rows, difference), part in zip(self.rows, below):
            put_rows_(out, rows, within_range_(part.add_(difference)))
        return out

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The differences."""
        return [*([] if self.whole is None else [self.whole]), *(d for _, d in self.rows)]

    def every(self, stride: int) -> Correction | None:
        """Of every `stride`-th token; None where rows alone are kept, which lie anywhere."""
        if self.rows or self.whole is None:
            return None
        part = Correction()
        part.whole = self.whole[:, ::stride]
        return part
