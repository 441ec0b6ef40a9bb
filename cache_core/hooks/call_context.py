"""One model call while it runs: its kind, its branches, and how its tokens are chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..cache.feature_cache import Batch
from ..config import CacheConfig
from ..schedule.masks import parts_of
from ..selectors.token_selection import count_rows, draw


@dataclass
class Call:
    """One model call while it runs."""

    kind: str
    """"F", "C" or "A"."""
    batch: Batch
    settings: CacheConfig
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
    block_names: tuple = ()
    """Of all blocks, in running order, so that rows can be chosen for all of them at once."""
    arrived: bool = False
    """Whether the model's blocks, or the model itself, have run or were replaced."""
    repeated: bool = False
    """Whether they came up a second time within this call."""
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

    _chosen: dict = field(default_factory=dict, init=False)
    """Rows of all blocks by stream and tokens."""

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

        sites: by their keys, as `site_of` takes them."""
        for key, fresh in sites.items():
            self.batch.correct(site_of(block, key), fresh, self.settings.modules)

    def choose(self, name, stream: str, n: int, device, offset: int = 0) -> torch.Tensor | None:
        """Rows of a stream to refresh at a block, or None for none; `offset` is where the stream starts in
        the value norms."""
        k = count_rows(self.ratio_of(stream), n) if self.kind == "C" and self.computed is None else 0
        if not k:
            return None
        if self.settings.selector.needs_values or name not in self.block_names:
            return self._choose_one(name, stream, n, k, device, offset)
        if (stream, n) not in self._chosen:
            self._chosen[stream, n] = self._choose_all(stream, n, k, device)
        at = self.block_names.index(name)
        return self._chosen[stream, n][at : at + 1]

    def choose_joint(self, name, n_txt: int, n_img: int, device) -> torch.Tensor | None:
        """Rows of the joint sequence, text first, to refresh at a block, or None for none."""
        text = self.choose(name, "txt", n_txt, device) if n_txt else None
        image = self.choose(name, "img", n_img, device, offset=n_txt)
        if text is None or image is None or self.settings.selector.needs_values:
            return joined_rows(text, image, n_txt)
        if name not in self.block_names:
            return joined_rows(text, image, n_txt)
        key = ("joint", n_txt + n_img)
        if key not in self._chosen:
            self._chosen[key] = joined_rows(self._chosen["txt", n_txt], self._chosen["img", n_img], n_txt)
        at = self.block_names.index(name)
        return self._chosen[key][at : at + 1]

    def _choose_all(self, stream: str, n: int, k: int, device) -> torch.Tensor:
        """Rows [blocks,k] of a stream at every block, where they depend on chance and age alone."""
        selector, names = self.settings.selector, self.block_names
        last = self.batch.refreshed((stream,)) if selector.staleness else None  # [B,blocks,n]
        if last is not None and last.shape[2] != n:
            last = None
        rows = selector.choose(
            k,
            n=n,
            age=None if last is None else self.step - last[0],
            grid=self.grid if stream == "img" else None,
            random=draw([_seed(self.settings.seed, self.step, name, stream) for name in names], n, device),
            interval=self.interval,
            device=device,
        )
        if selector.staleness:
            self._note_refreshed((stream,), last, rows.expand(self.batch_size, len(names), k), n)
        return rows

    def _choose_one(self, name, stream: str, n: int, k: int, device, offset: int) -> torch.Tensor:
        """Rows of a stream at one block, by its value norms or where the block is not known beforehand."""
        selector, key = self.settings.selector, (name, stream)
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
            random=None
            if selector.needs_values
            else draw([_seed(self.settings.seed, self.step, name, stream)], n, device),
            n=n,
            interval=self.interval,
            device=device,
        )
        if selector.staleness:
            self._note_refreshed(key, last, rows.expand(self.batch_size, -1), n)
        return rows

    def _note_refreshed(self, key, last: torch.Tensor | None, rows: torch.Tensor, n: int) -> None:
        """Notes that rows [B,...,k] are computed at this step; last: when each was before, None for the last
        full step."""
        if last is None:
            before = float(self.step - self.interval + 1)
            last = torch.full((*rows.shape[:-1], n), before, device=rows.device)
        self.batch.note_refreshed(key, last.scatter(-1, rows, float(self.step)))


def joined_rows(first: torch.Tensor | None, second: torch.Tensor | None, offset: int) -> torch.Tensor | None:
    """Rows of the joint sequence from rows of text and of image, either of which may be None."""
    parts = [p for p in (first, None if second is None else second + offset) if p is not None]
    if not parts:
        return None
    b = max(p.shape[0] for p in parts)
    return torch.cat([p.expand(b, -1) for p in parts], 1)


def site_of(block: tuple, key: tuple[str, ...]) -> tuple:
    """The name of a block's module site; key: (stream, part), or (part,) where it holds all tokens."""
    return (*block, "_".join(key))


def _seed(seed: int, step: int, name: Any, stream: str) -> int:
    value = (seed & 0xFFFFFFFF) * 1_000_003 + step * 7919 + (0 if stream == "img" else 104_729)
    for part in name:
        value = value * 31 + (part if isinstance(part, int) else sum(map(ord, part)))
    return value % (2**63)
