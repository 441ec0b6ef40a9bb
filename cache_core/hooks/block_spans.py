"""Spans of neighbouring blocks that a mask skips together: one delta each, as ProfilingDiT keeps it (ICCV
2025).

On a full step what a span adds to its input is kept, one tensor per stream. On the others the span's first
block adds it to its own input, the last one returns that, and nothing of the span is computed. What other
code adds between the blocks of a span is part of the delta already, so what it adds on such a step is
dropped."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..base.errors import CacheMismatch
from ..models.families import Block
from .shims import without_prefetch
from .wiring import Streams, Wiring


@dataclass
class SpanWiring(Wiring):
    """The shims of one call; blocks outside the spans run untouched.

    runs: places of the first and the last block of each span. At the level `final` the end of a span itself
        is kept and put back, for the self-check."""

    runs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        super().__post_init__()
        self._run_of = {i: run for run in self.runs for i in range(run[0], run[1] + 1)}
        self._open: tuple[int, int] | None = None
        # Of the open span: its inputs on a full step, its ends on another.
        self._streams: dict[str, torch.Tensor] = {}
        self._closed = 0

    def shims(self, model):
        if self.call.kind != "F":
            yield model, without_prefetch
            yield model, self._require_last_block
        yield from self._block_shims()

    def _block(self, i: int, block: Block):
        run, spec, full = self._run_of.get(i), block.spec, self.call.kind == "F"
        if not self.runs or (i and (run is None or (full and i not in run))):
            return None

        def inside(original, main, args, kwargs):
            if run is None:
                return original(*args, **kwargs)
            if i == run[0]:
                self._open, self._streams = run, self._inputs(block, main) if full else self._ends(run, main)
            if full:
                out = original(*args, **kwargs)
                given = self._fitting(spec.taken, out) if i == run[1] else None
                if given is not None and self._open == run:
                    self._keep_span(block, given)
                return out
            if i < run[1]:
                return spec.give(main)
            if self._open != run:
                raise CacheMismatch("The first block of a skipped span did not run; this call runs in full.")
            return spec.give(self._close())

        return self._checked(i, block, inside)

    @staticmethod
    def _inputs(block: Block, main: Streams) -> dict[str, torch.Tensor]:
        """Copies, since blocks and other nodes may write into their input."""
        return {s: block.spec.flat(x).clone() for s, x in main.items()}

    def _ends(self, run: tuple[int, int], main: Streams) -> dict[str, torch.Tensor]:
        """What a span gives for this input; a stream that it ends stays ended."""
        block, end, out = self.blocks[run[1]], self.level == "final", {}
        for stream, x in self._forecast_streams(block, main):
            value = self._value((*block.name, stream), block.spec, x, owned=end)
            value = block.spec.unflat(value, x)
            out[stream] = value if end else x + value
        return out

    def _keep_span(self, block: Block, out: Streams) -> None:
        """After a span that was computed: what it added is kept, and after the last one what later calls must
        match."""
        spec, before = block.spec, self._close()
        ends = {s: spec.flat(x) for s, x in out.items() if s in before}
        if any(x.shape != before[s].shape for s, x in ends.items()):
            return
        for stream, x in ends.items():
            final = self.level == "final"
            kept = x.clone(memory_format=torch.contiguous_format) if final else x - before[stream]
            self._note((*block.name, stream), kept)
        if self._ended and self._entered is not None:
            self._sign(self._entered, self._samples)

    def _close(self) -> dict[str, torch.Tensor]:
        """The open span's streams, which are let go; after the last span the call has ended as planned."""
        streams, self._streams, self._open = self._streams, {}, None
        self._closed += 1
        self._ended = self._closed == len(self.runs)
        return streams
