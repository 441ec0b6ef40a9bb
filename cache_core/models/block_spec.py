"""What the registry says of a model, as data.

A row (`Family`) names a model class (the end of its module path and its class name, which are looked up along
the class's bases) and its block lists in running order. A `BlockSpec` per list says how a block is called and
what it returns. That is enough to skip a block, and to put back what it gave, without knowing its code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..base.errors import CacheMismatch

UNEXPECTED = "Block arguments do not match the registered layout; this call runs in full."


@dataclass(frozen=True)
class BlockSpec:
    """One kind of block: its calling convention, and its sub-modules.

    takes: (stream, keyword, position) of each main tensor in the call.
    gives: the streams that it returns, in order; one stream is returned bare.
    reads: the streams that code behind the last block reads.
    joined: the streams of an earlier kind of block that are concatenated, in this order, in this kind's only
        stream.
    batch: the dimension of the batch; None where the tokens of the only sample are [n,d], without one.
    packed: the main tensors are one tuple, the first argument.
    writes: whether the block may write into its input.
    modules: paths of the sub-modules whose outputs can be replayed, the first one self-attention; each stands
        before its gate and runs once.
    rows: of `modules`, those that compute each token by itself (MLPs), and their stream.
    module_streams: of the other `modules`, those whose output has tokens of one stream only, and that stream.
    probe: (path, places) of a sub-module and of those of its tensor arguments that it reads after modulation,
        where it is not the first argument of the first of `modules`.
    fused: attention and MLP are one module, so that a mask can name the whole block only.
    adapter: name of the code in `hooks.flux_adapter.ADAPTERS` that replays a block whose attention is no
        sub-module and that can refresh attention rows; None where the sub-modules are enough."""

    takes: tuple[tuple[str, str, int], ...]
    gives: tuple[str, ...]
    reads: tuple[str, ...]
    joined: tuple[str, ...] = ()
    batch: int | None = 0
    packed: bool = False
    writes: bool = False
    modules: tuple[str, ...] = ()
    rows: Mapping[str, str] = field(default_factory=dict)
    module_streams: Mapping[str, str] = field(default_factory=dict)
    probe: tuple[str, tuple[int, ...]] | None = None
    fused: bool = False
    adapter: str | None = None

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(name for name, _, _ in self.takes)

    @property
    def parts(self) -> tuple[str, ...]:
        """What a mask may name of a block beside the whole."""
        return () if self.fused else tuple(dict.fromkeys(map(self.part, self.modules)))

    def part(self, path: str) -> str:
        """Which part of the block a sub-module belongs to: "attn", "mlp", or "" in a fused block."""
        if self.fused:
            return ""
        return "mlp" if path in self.rows or path.split(".")[-1] in ("mlp", "ff") else "attn"

    def streams_of(self, path: str) -> tuple[str, ...]:
        """The streams that a sub-module's output has tokens of."""
        stream = self.rows.get(path) or self.module_streams.get(path)
        return (stream,) if stream else self.streams

    def take(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The main tensors of a call, by stream; CacheMismatch if they are not where `takes` says."""
        if self.packed:
            return self._named(self.streams, args[0] if args else None)
        found = {}
        for name, keyword, position in self.takes:
            value = args[position] if position < len(args) else kwargs.get(keyword)
            if isinstance(value, torch.Tensor):
                found[name] = value
        return self._checked(found, self.reads)

    def taken(self, out) -> dict[str, torch.Tensor]:
        """The streams of what a block returned; streams that it has ended (None) are left out."""
        return self._checked(
            self._named(self.gives, (out,) if len(self.gives) == 1 and not self.packed else out), self.reads
        )

    def give(self, streams: Mapping[str, torch.Tensor]):
        """A return value of the block's own structure; a stream that is not there is None."""
        if len(self.gives) == 1 and not self.packed:
            return streams[self.gives[0]]
        return tuple(streams.get(name) for name in self.gives)

    def samples(self, x: torch.Tensor) -> int:
        """How many samples a stream has."""
        return 1 if self.batch is None else x.shape[self.batch]

    def batched(self, x: torch.Tensor) -> torch.Tensor:
        """A tensor of a block with a dimension of the batch, where `batch` is None; else as it is."""
        return x[None] if self.batch is None else x

    def unbatched(self, x: torch.Tensor) -> torch.Tensor:
        """`batched` taken back."""
        return x[0] if self.batch is None else x

    def flat(self, x: torch.Tensor) -> torch.Tensor:
        """A stream as [B,n,d], of which the cache keeps its snapshots."""
        if self.batch is None:
            return x[None]
        x = x.movedim(self.batch, 0)
        return x.flatten(1, -2) if x.ndim > 3 else x

    def unflat(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """`flat` taken back, in the shape of `like`."""
        if self.batch is None:
            return x[0]
        if like.ndim == 3 and self.batch == 0:
            return x
        return x.view(like.movedim(self.batch, 0).shape).movedim(0, self.batch)

    @staticmethod
    def _named(names, values) -> dict[str, torch.Tensor]:
        if not isinstance(values, (tuple, list)) or len(values) != len(names):
            raise CacheMismatch(UNEXPECTED)
        return {name: v for name, v in zip(names, values) if isinstance(v, torch.Tensor)}

    @staticmethod
    def _checked(found: dict, needed) -> dict:
        if any(name not in found for name in needed):
            raise CacheMismatch(UNEXPECTED)
        return found


def one(keyword: str = "x", *modules: str, rows: str = "", **rest) -> BlockSpec:
    """A block with one stream, its first argument; `rows` is the path of its MLP."""
    return BlockSpec(
        ((keyword, keyword, 0),),
        (keyword,),
        (keyword,),
        modules=(*modules, *([rows] if rows else [])),
        rows={rows: keyword} if rows else {},
        **rest,
    )


def two(
    img: tuple[str, int],
    txt: tuple[str, int],
    *modules: str,
    gives: tuple[str, str] = ("img", "txt"),
    rows: tuple[str, ...] = (),
    **rest,
) -> BlockSpec:
    """A block with a stream of image tokens, which code behind the blocks reads, and one of text; `rows` are
    the paths of their MLPs."""
    return BlockSpec(
        (("img", *img), ("txt", *txt)),
        gives,
        ("img",),
        modules=(*modules, *rows),
        rows=dict(zip(rows, ("img", "txt"))),
        **rest,
    )


@dataclass(frozen=True)
class SideModule:
    """Modules beside the blocks whose results only the blocks read, so that they need not run where all
    blocks are skipped.

    path: of the module or the list.
    copies: they return as many main tensors like their first argument; 1 for a bare one.
    chained: each reads what the one before gave."""

    path: str
    copies: int = 1
    chained: bool = False

    def give(self, args: tuple, kwargs: dict):
        """A return value without computing it."""
        x = args[0] if args else next(iter(kwargs.values()))
        return x if self.copies == 1 else (x,) * self.copies


@dataclass(frozen=True)
class Family:
    """One row of the registry.

    name: of the family, as reports and recipes call it.
    module: the end of the module path of the model's class.
    model: the name of that class.
    lists: (path of a list in the model, kind of block, spec) in running order.
    where: (path, value) of an attribute that tells rows of one class apart.
    side_modules: see `SideModule`.
    refusal: why models of this family are sampled plainly.
    mixed: streams that have no tensor of their own in the blocks, so that only the output holds them apart.
    output_only: why nothing but their output can be cached."""

    name: str
    module: str
    model: str
    lists: tuple[tuple[str, str, BlockSpec], ...] = ()
    where: tuple[str, object] | None = None
    side_modules: tuple[SideModule, ...] = ()
    mixed: tuple[str, ...] = ()
    refusal: str | None = None
    output_only: str | None = None

    @property
    def modules(self) -> bool:
        """Whether module outputs can be put back."""
        return bool(self.lists) and all(spec.modules for _, _, spec in self.lists)

    @property
    def tokens(self) -> bool:
        """Whether token rows can be refreshed alone."""
        return self.modules and all(spec.rows for _, _, spec in self.lists)

    @property
    def attention(self) -> bool:
        """Whether token rows have their attention too: its value norms, and live attention."""
        return self.tokens and all(spec.adapter is not None for _, _, spec in self.lists)
