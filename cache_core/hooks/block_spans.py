"""Runs of neighbouring blocks that a mask holds back together: one delta each, as ProfilingDiT keeps it (ICCV
2025).

On a full step what a run adds to its input is kept, one tensor per stream. On the others the run's first
block adds it to what it is given, the last one hands that on, and nothing of the run is computed. What other
code adds between the blocks of a run is in the delta already, so what it does there on such a step is
dropped."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..base.errors import CacheMismatch
from ..models.block_spec import BlockLayout, one, two
from ..models.families import Block
from .flux_adapter import FluxDouble, FluxSingle
from .layout_wiring import LayoutWiring

_LAYOUTS = {FluxDouble: two(("img", 0), ("txt", 1)), FluxSingle: one("x")}
"""How the blocks are called that have adapters of their own."""


@dataclass
class RunWiring(LayoutWiring):
    """The shims of one call; blocks outside the runs run untouched.

    runs: places of the first and the last block of each. At the level `final` a run's end itself is kept and
        put back, for the self-check."""

    runs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        super().__post_init__()
        self._joint = not any(isinstance(b.adapter, BlockLayout) for b in self.blocks)
        self.blocks = [
            b if isinstance(b.adapter, BlockLayout) else replace(b, adapter=_LAYOUTS[b.adapter])
            for b in self.blocks
        ]
        self._run_of = {i: run for run in self.runs for i in range(run[0], run[1] + 1)}
        self._open: tuple[int, int] | None = None
        self._streams: dict[
            str, torch.Tensor
        ] = {}  # the open run's inputs on a full step, its ends on another
        self._closed = 0

    def shims(self, model):
        if self.call.kind != "F":
            yield model, self._see_the_end
        for i, block in enumerate(self.blocks):
            maker = self._block(i, block)
            if maker is not None:
                yield block.module, maker

    def _block(self, i: int, block: Block):
        block = self.blocks[i]
        run, layout, full = self._run_of.get(i), block.adapter, self.call.kind == "F"
        if not self.runs or (i and (run is None or (full and i not in run))):
            return None

        def inside(original, main, args, kwargs):
            if run is None:
                return original(*args, **kwargs)
            if i == run[0]:
                # Blocks and other nodes may write into their input.
                self._streams = (
                    {s: layout.flat(x).clone() for s, x in main.items()}
                    if full
                    else self._ends(run, layout, main)
                )
                self._open = run
            if full:
                out = original(*args, **kwargs)
                given = self._fitting(layout.taken, out) if i == run[1] else None
                if given is not None and self._open == run:
                    self._keep(block, given)
                return out
            if i < run[1]:
                return layout.give(main)
            if self._open != run:
                raise CacheMismatch("The first block of a run did not run, so this call ran in full.")
            return layout.give(self._close())

        return self._behind_door(i, block, inside)

    def _enter(self, i: int, block: Block, main) -> None:
        super()._enter(i, block, main)
        if not self._joint:
            return
        call = self.call
        call.tokens, call.width = sum(x.shape[1] for x in main.values()), next(iter(main.values())).shape[2]
        call.n_txt = main["txt"].shape[1] if "txt" in main else call.n_txt
        for branch in call.batch.branches:
            branch.evidence.text_tokens = call.n_txt

    def _ends(self, run: tuple[int, int], layout: BlockLayout, main) -> dict[str, torch.Tensor]:
        """What a run gives for this input; a stream that it ends stays ended."""
        out, batch, name = {}, self.call.batch, self.blocks[run[1]].name
        for stream, x in main.items():
            site = (*name, stream)
            if stream not in layout.reads and not any(site in b.sites for b in batch.branches):
                continue
            end = self.level == "final"
            value = batch.value(site, self.predictor, owned=end)
            if value.shape != layout.flat(x).shape:
                raise CacheMismatch(
                    "The model's tokens are not those of the last full step, so this call ran in full."
                )
            out[stream] = layout.unflat(value, x) if end else x + layout.unflat(value, x)
        return out

    def _keep(self, block: Block, out) -> None:
        """Behind a run that was computed: what it added is kept, and behind the last one what such a call
        must be like."""
        layout, before = block.adapter, self._close()
        ends = {s: layout.flat(x) for s, x in out.items() if s in before}
        if any(x.shape != before[s].shape for s, x in ends.items()):
            return
        for stream, x in ends.items():
            kept = (
                x.clone(memory_format=torch.contiguous_format)
                if self.level == "final"
                else x - before[stream]
            )
            self._note((*block.name, stream), kept)
        if self._ended:
            for branch in self.call.batch.branches:
                branch.signature, branch.size = self._entered, self._rows // len(self.call.batch.branches)

    def _close(self) -> dict[str, torch.Tensor]:
        """The open run's streams, which are let go; behind the last run the call has ended well."""
        streams, self._streams, self._open = self._streams, {}, None
        self._closed += 1
        self._ended = self._closed == len(self.runs)
        return streams
