"""The levels on blocks that the table describes by their layout alone; their number of streams and their
order are data."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from ..base.errors import CacheMismatch
from ..base.names import FINAL, STACK
from ..models.block_spec import Aside, BlockLayout
from ..models.families import Block
from .module_replay import modulated_input, record, replay
from .wiring import Wiring


def _site(name: tuple, layout: BlockLayout, stream: str) -> tuple:
    """The site of a stream that is put back: the level's own for the first, another for every further one."""
    return name if stream == layout.reads[0] else (*name, stream)


@dataclass
class LayoutWiring(Wiring):
    """The shims of one call of such a model; its blocks' adapters are layouts.

    asides: lists of modules whose results nothing but the blocks read.
    """

    asides: tuple[tuple[nn.Module, Aside], ...] = ()
    _entered: tuple | None = field(default=None, init=False)

    def shims(self, model: nn.Module):
        yield from super().shims(model)
        if self.call.kind == "A" and self.level == "final" and not self.probe:
            for module, aside in self.asides:
                yield module, self._skip_aside(aside)

    def _skip_aside(self, aside: Aside):
        def make(original):
            def forward(*args, **kwargs):
                if not self._ended:
                    return aside.give(args, kwargs)
                if aside.chained:
                    raise CacheMismatch(
                        "A module behind the last block reads what was skipped, so this call ran in full."
                    )
                return original(*args, **kwargs)

            return forward

        return make

    def _block(self, i: int, block: Block):
        call, layout = self.call, block.adapter
        if call.kind == "A" and self.level in ("final", "stack"):
            return self._skip(i, block)
        modules = call.kind != "F" or call.modules
        watched = (
            i in (0, self.first) or block.last or self.level == "block" or i < self.first + self.probe_blocks
        )
        if not modules and not (watched and self.level != "output"):
            return None

        def inside(original, main, args, kwargs):
            if call.kind == "A" and self.level == "block":
                return self._add(block, main)
            self._look(i, block, (original, block, args, kwargs))
            before = main
            if self.level == "block" and layout.writes:
                before = {s: x.clone() for s, x in main.items()}
            if call.kind != "F":
                out = replay(original, block, call, args, kwargs)
            elif call.modules and layout.modules:
                out = record(original, block, call, args, kwargs)
            else:
                out = original(*args, **kwargs)
            given = self._fitting(layout.taken, out)
            if given is not None:
                self._leave(i, block, before, given)
            return out

        return self._behind_door(i, block, inside)

    def _behind_door(self, i: int, block: Block, inside):
        """The maker of a block's shim: what the call brings is read and checked, then `inside(original, main,
        args, kwargs)` runs."""

        def make(original):
            def forward(*args, **kwargs):
                main = self._fitting(block.adapter.take, args, kwargs)
                if main is None:
                    return original(*args, **kwargs)
                self._enter(i, block, main)
                return inside(original, main, args, kwargs)

            return forward

        return make

    def _fitting(self, read, *call):
        """What a layout reads off a call; on a full step None where the call is of another make, so that
        nothing is kept of it."""
        try:
            return read(*call)
        except CacheMismatch:
            if self.call.kind != "F":
                raise
            return None

    def _skip(self, i: int, block: Block):
        layout = block.adapter

        def inside(original, main, args, kwargs):
            if i < self.first:
                return original(*args, **kwargs)
            self._look(i, block, (original, block, args, kwargs))
            if i < self.first + self.probe_blocks:
                out = original(*args, **kwargs)
                self._measure(i, block, layout.taken(out))
                if not block.last:
                    return out
            if not block.last:
                return layout.give(main)
            self._ended = True
            return layout.give({**main, **self._end(layout, main)})

        return self._behind_door(i, block, inside)

    def _end(self, layout: BlockLayout, main) -> dict[str, torch.Tensor]:
        """What is put back for the streams that code behind the last block reads."""
        name = FINAL if self.level == "final" else STACK
        base = self._base(layout) if self.level == "stack" else None
        out = {}
        for stream in layout.reads:
            value = self.call.batch.value(_site(name, layout, stream), self.predictor, owned=True)
            if value.shape != layout.flat(main[stream]).shape:
                raise CacheMismatch(
                    "The model's tokens are not those of the last full step, so this call ran in full."
                )
            if base is not None:
                value.add_(base[stream])
            out[stream] = layout.unflat(value, main[stream])
        return out

    def _enter(self, i: int, block: Block, main) -> None:
        """At a block's door: at the first one sizes are checked, and the input of a cached run of blocks is
        kept."""
        layout = block.adapter
        if self._entered is None:
            self._entered = tuple((s, tuple(layout.flat(x).shape[1:]), x.dtype) for s, x in main.items())
            self._rows = self.call.batch_size = next(iter(main.values())).shape[layout.batch]
            if self.call.kind != "F" and self.level != "output":
                self._check(None, 0)
            for branch in self.call.batch.branches:
                branch.evidence.grid = self.call.grid
        if self.call.kind == "F":  # tokens may stand in the dimension of the batch too
            sizes = {s: (x.numel() // self._rows // x.shape[-1], x.shape[-1]) for s, x in main.items()}
            self.call.door(block.name, sizes, next(iter(main.values())).element_size())
        if i == self.first and (self.level == "stack" or self.probe == "block"):
            self._input = {s: layout.flat(x).clone() for s, x in main.items()}

    def _check(self, x, tokens) -> None:
        branches = self.call.batch.branches
        if any(b.signature != self._entered for b in branches) or self._rows != sum(b.size for b in branches):
            raise CacheMismatch(
                "The model's tokens are not those of the last full step, so this call ran in full."
            )

    def _look(self, i: int, block: Block, bound) -> None:
        if self.probe == "input" and i == self.first:
            seen = modulated_input(*bound)
            if seen is not None:
                self.call.batch.observe(seen)

    def _base(self, layout: BlockLayout) -> dict[str, torch.Tensor]:
        """The kept input of the run of blocks, in the streams of its last block."""
        if self._input is None:
            raise CacheMismatch("The first block of the stack did not run, so this call ran in full.")
        if layout.streams[0] not in self._input and layout.joined:
            return {layout.streams[0]: torch.cat([self._input[s] for s in layout.joined], 1)}
        return self._input

    def _measure(self, i: int, block: Block, out) -> None:
        if not self.probe_blocks or self._input is None or i != self.first + self.probe_blocks - 1:
            return
        layout = block.adapter
        if layout.reads[0] in self._input:
            self.call.batch.observe(layout.flat(out[layout.reads[0]]) - self._input[layout.reads[0]])

    def _add(self, block: Block, main):
        """The block's input plus the forecast of what the block adds; a stream that the block ends stays
        ended."""
        layout, batch, out = block.adapter, self.call.batch, {}
        for stream, x in main.items():
            name = (*block.name, stream)
            if stream not in layout.reads and not any(name in b.sites for b in batch.branches):
                continue
            value = batch.value(name, self.predictor)
            if value.shape != layout.flat(x).shape:
                raise CacheMismatch(
                    "The model's tokens are not those of the last full step, so this call ran in full."
                )
            out[stream] = x + layout.unflat(value, x)
        return layout.give(out)

    def _leave(self, i: int, block: Block, main, out) -> None:
        layout, batch = block.adapter, self.call.batch
        if self.call.kind == "A":
            return
        self._measure(i, block, out)
        if self.level == "block":
            for stream, after in out.items():
                if stream in main:
                    self._note((*block.name, stream), layout.flat(after) - layout.flat(main[stream]))
        if not block.last:
            return
        if self.level == "stack" and self._input is None:
            return  # another node held back the first block of the stack
        base = self._base(layout) if self.level == "stack" else None
        if base is not None and any(layout.flat(out[s]).shape != base[s].shape for s in layout.reads):
            return
        if self.level in ("final", "stack"):
            for stream in layout.reads:
                end = layout.flat(out[stream])
                self._note(
                    _site(FINAL if base is None else STACK, layout, stream),
                    end.clone(memory_format=torch.contiguous_format) if base is None else end - base[stream],
                )
        for branch in batch.branches if self.call.kind == "F" and self.level != "output" else ():
            branch.signature, branch.size = self._entered, self._rows // len(batch.branches)
