"""One model call while it runs: its kind, its branches, and how its tokens are chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..cache.feature_cache import Batch
from ..config import Settings
from ..schedule.masks import parts_of
from ..selectors.token_selection import count_rows


@dataclass
class Call:
    """One model call while it runs."""

    kind: str
    """"F", "C" or "A"."""
    batch: Batch
    settings: Settings
    step: int
    interval: int
    """Steps since the last full one plus one: the scale of staleness."""
    ratio: float
    grid: tuple[int, int] | None
    """Rows and columns of the image tokens, when known."""
    modules: bool = False
    """Whether module outputs are captured."""
    observed: bool = False
    """Whether an observer looks on, which is told the model's input and output too."""
    rows: bool = True
    """Whether some step of the plan is conservative, which needs attention and value norms beside them."""
    computed: frozenset[str] | None = None
    """Names of the modules that a masked conservative step computes on all tokens, or None where it refreshes
    rows."""
    n_txt: int = 0
    tokens: int = 0
    """Of the joint sequence, text included; `width` is their size."""
    width: int = 0
    batch_size: int = 1
    note: Callable[[tuple, torch.Tensor], None] = lambda name, truth: None
    """Called with every site's computed value on a full step, before it is kept."""
    sizes_known: Callable[[tuple, dict[str, tuple[int, int]], int], None] = lambda name, sizes, item: None
    """Called on a full step with a block's name, the tokens and width of its main tensors by stream, and
    their bytes per value, before anything of the block is kept."""

    @property
    def live(self) -> bool:
        return self.settings.attention == "live"

    def ratio_of(self, stream: str) -> float:
        if stream == "txt" and self.settings.text_ratio is not None:
            return self.settings.text_ratio
        return self.ratio

    def module_value(self, name, owned: bool = False) -> torch.Tensor:
        return self.batch.value(name, self.settings.modules, owned)

    def record(self, name, tensor: torch.Tensor) -> None:
        self.note(name, tensor)
        self.batch.record(name, tensor, self.settings.modules)

    def parts(self, name, known=()) -> frozenset[str]:
        """Parts of a block that a masked step computes, of those its adapter knows; "" is the whole of it."""
        return parts_of(self.computed or (), name) & {"", *known}

    def correct(self, block, sites: dict) -> None:
        """Outputs computed on all tokens become the corrections of a block's sites.

        sites: by what their names hold behind the block's."""
        for key, fresh in sites.items():
            self.batch.correct((*block, *key), fresh, self.settings.modules)

    def choose(self, name, stream: str, n: int, device, offset: int = 0) -> torch.Tensor | None:
        """Rows of a stream to refresh at a block, or None for none; `offset` is where the stream starts in
        the value norms."""
        k = count_rows(self.ratio_of(stream), n) if self.kind == "C" and self.computed is None else 0
        if not k:
            return None
        selector, key = self.settings.selector, (name, stream)
        generator = torch.Generator().manual_seed(_seed(self.settings.seed, self.step, name, stream))
        values = self.batch.kept((name, "values"))
        if values is not None:
            values = values[:, offset : offset + n]
        last = self.batch.refreshed(key) if selector.staleness else None
        age = None if last is None else self.step - last
        rows = selector.choose(
            k,
            values=values,
            age=None if age is None else age[:1] if values is None else age,
            grid=self.grid if stream == "img" else None,
            generator=generator,
            n=n,
            interval=self.interval,
            device=device,
        )
        if selector.staleness:
            if last is None:
                last = torch.full((self.batch_size, n), float(self.step - self.interval + 1), device=device)
            self.batch.note_refreshed(
                key, last.scatter(1, rows.expand(self.batch_size, -1), float(self.step))
            )
        return rows


def _seed(seed: int, step: int, name: Any, stream: str) -> int:
    value = (seed & 0xFFFFFFFF) * 1_000_003 + step * 7919 + (0 if stream == "img" else 104_729)
    for part in name:
        value = value * 31 + (part if isinstance(part, int) else sum(map(ord, part)))
    return value % (2**63)
