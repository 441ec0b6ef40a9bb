"""Where features are taken and put back in one model call, at each of the levels of `base.names.LEVELS`.

output  the whole model's output (AB-Cache, MeanCache); any model has it
final   the final hidden state, the last block's output (DuCa's aggressive steps, TaylorSeer-Lite, FreqCa,
        Spectrum)
stack   what a run of blocks adds to its input, the blocks before it running on every step (Delta-DiT,
        DiCache)
block   what each block adds to its input (HyCa)
module  each module's output before its gate (TaylorSeer, FoCa, FORA)

Conservative steps always work on the modules, and leave a correction at the level that aggressive steps
use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from ..base.errors import CacheMismatch
from ..base.names import FINAL, PATH, STACK
from ..cache.feature_predictor import FeaturePredictor
from ..models.block_spec import BlockSpec, SideModule
from ..models.families import Block
from .model_output import ModelOutput, input_of_output, rule_of
from .module_replay import modulated_input, modulated_inputs_read, record, replay
from .shims import without_prefetch

OTHER_TOKENS = "The model's tokens do not have the size of the last full step; this call runs in full."
NO_FIRST_BLOCK = "The first block of the skipped run did not run; this call runs in full."
Streams = Mapping[str, torch.Tensor]
"""A block's main tensors by stream."""


def _site(name: tuple, spec: BlockSpec, stream: str) -> tuple:
    """The site of a stream that is put back: the level's own for the first, another for every further one."""
    return name if stream == spec.reads[0] else (*name, stream)


@dataclass
class Wiring(ModelOutput):
    """The shims of one model call, whatever its kind and level.

    call: the running call.
    blocks: of the model, in running order.
    first: how many blocks run on every step before the run of blocks that is skipped.
    probe_blocks: how many blocks at the beginning of that run are computed for a probe.
    side_modules: modules whose results only the blocks read, which are skipped with all blocks."""

    blocks: list[Block]
    first: int = 0
    probe_blocks: int = 0
    side_modules: tuple[tuple[nn.Module, SideModule], ...] = ()
    _entered: tuple | None = field(default=None, init=False)

    def __post_init__(self):
        super().__post_init__()
        self.probe = self.predictor.probe if self.level in ("final", "stack") else None
        self._samples = 0
        self._entered_at: int | None = None
        self._input: dict[str, torch.Tensor] | None = None

    def shims(self, model: nn.Module) -> Iterator[tuple[nn.Module, Callable]]:
        """(module, maker of its shim) for every module that does not run untouched."""
        if self.call.kind == "F" and self.call.observed:
            yield model, self._watch_path
        if self.call.kind == "A":
            yield model, without_prefetch
        if self.level == "output":
            if self.call.kind == "A":
                yield model, self._skip_model
                return
            yield model, self._watch_model
        elif self.call.kind == "A" and self.level in ("final", "stack"):
            yield model, self._require_last_block
        yield from self._block_shims()
        if self.call.kind == "A" and self.level == "final" and not self.probe:
            for module, side in self.side_modules:
                yield module, self._skip_side_module(side)

    def _block_shims(self) -> Iterator[tuple[nn.Module, Callable]]:
        for i, block in enumerate(self.blocks):
            maker = self._block(i, block)
            if maker is not None:
                yield block.module, maker

    def _watch_path(self, original):
        def forward(x, *args, **kwargs):
            before = x.clone() if isinstance(x, torch.Tensor) else None  # the model may write into it
            out = original(x, *args, **kwargs)
            given = input_of_output(before, out)
            if given is not None:
                self.call.note(PATH, torch.stack((given, out), 1))
            return out

        return forward

    def _skip_side_module(self, side: SideModule):
        def make(original):
            def forward(*args, **kwargs):
                if not self._ended:
                    return side.give(args, kwargs)
                if side.chained:
                    raise CacheMismatch(
                        "A module behind the last block reads what was skipped; this call runs in full."
                    )
                return original(*args, **kwargs)

            return forward

        return make

    # --- shims of blocks --------------------------------------------------------------------------

    def _block(self, i: int, block: Block) -> Callable | None:
        """The maker of a block's shim, None where the block runs untouched."""
        call = self.call
        if call.kind == "A" and self.level in ("final", "stack"):
            return self._checked(i, block, self._skip(i, block))
        watched = self.level != "output" and (
            i in (0, self.first) or block.last or self.level == "block" or i < self.first + self.probe_blocks
        )
        if call.kind == "F" and not call.modules and not watched:
            return None

        def inside(original, main, args, kwargs):
            if call.kind == "A" and self.level == "block":
                return self._add(block, main)
            before = main
            if self.level == "block" and block.spec.writes:
                before = {s: x.clone() for s, x in main.items()}
            out = self._run(i, block, original, args, kwargs)
            given = self._fitting(block.spec.taken, out)
            if given is not None:
                self._keep(i, block, before, given)
            return out

        return self._checked(i, block, inside)

    def _checked(self, i: int, block: Block, inside: Callable) -> Callable:
        """The maker of a block's shim: the block's arguments are read and checked, then `inside(original,
        main, args, kwargs)` runs."""

        def make(original):
            def forward(*args, **kwargs):
                main = self._fitting(block.spec.take, args, kwargs)
                if main is None:
                    return original(*args, **kwargs)
                self._enter(i, block, main)
                return inside(original, main, args, kwargs)

            return forward

        return make

    def _fitting(self, read: Callable, *given) -> dict[str, torch.Tensor] | None:
        """The main tensors that `read` finds. On a full step None where they do not match the spec, so that
        nothing of the block is kept; CacheMismatch on the others."""
        try:
            return read(*given)
        except CacheMismatch:
            if self.call.kind != "F":
                raise
            return None

    def _run(self, i: int, block: Block, original, args, kwargs):
        """Runs a block, in full and recorded or from its modules, and observes its modulated input where the
        forecast wants it."""
        call = self.call
        observed = self.probe == "input" and i == self.first
        if call.kind != "F":
            if observed:
                self._observe(modulated_input(original, block, args, kwargs))
            return replay(original, block, call, args, kwargs)

        def run():
            if call.modules and block.spec.modules:
                return record(original, block, call, args, kwargs)
            return original(*args, **kwargs)

        if not observed:
            return run()
        if block.spec.adapter is None:
            self._observe(modulated_input(original, block, args, kwargs))
            return run()
        with modulated_inputs_read(block) as read:
            out = run()
        if read and read[0].shape[1] == call.tokens:
            self._observe(read[0])
        else:
            self._observe(modulated_input(original, block, args, kwargs))
        return out

    def _skip(self, i: int, block: Block) -> Callable:
        """Of an aggressive step at the levels `final` and `stack`: blocks before the skipped run and those of
        the probe are computed, and the last one returns what is put back."""
        spec = block.spec

        def inside(original, main, args, kwargs):
            if i < self.first:
                return original(*args, **kwargs)
            if self.probe == "input" and i == self.first:
                self._observe(modulated_input(original, block, args, kwargs))
            if i < self.first + self.probe_blocks:
                out = original(*args, **kwargs)
                self._measure(i, block, spec.taken(out))
                if not block.last:
                    return out
            if not block.last:
                return spec.give(main)
            self._ended = True
            return spec.give({**main, **self._end(spec, main)})

        return inside

    # --- what goes into a block -------------------------------------------------------------------

    def _enter(self, i: int, block: Block, main: Streams) -> None:
        """Before a block runs: at the first one sizes are checked; the input of the skipped run is kept."""
        call, spec = self.call, block.spec
        first = next(iter(main.values()))
        call.arrived = True
        if i == self._entered_at:
            self._repeated()
        if self._entered is None:
            self._entered_at = i
            self._entered = self._mark(spec, main)
            self._samples = call.batch_size = spec.samples(first)
            if call.kind != "F" and self.level != "output" and not self._signed(self._entered, self._samples):
                raise CacheMismatch(OTHER_TOKENS)
            for branch in call.batch.branches:
                branch.evidence.grid = call.grid
        if spec.adapter is not None:
            self._count_tokens(main)
        if call.kind == "F":  # tokens may lie in the dimension of the batch too
            sizes = {s: (x.numel() // self._samples // x.shape[-1], x.shape[-1]) for s, x in main.items()}
            call.sizes_known(block.name, sizes, first.element_size())
        if i == self.first and (self.level == "stack" or self.probe == "block"):
            # Blocks and other nodes may write into it.
            self._input = {s: spec.flat(x).clone() for s, x in main.items()}

    @staticmethod
    def _mark(spec: BlockSpec, main: Streams) -> tuple:
        """What must be equal between a call and the last full step. With an adapter all blocks have the same
        joint tokens, so that a call fits in which another node skips the first blocks."""
        if spec.adapter is None:
            return tuple((s, tuple(spec.flat(x).shape[1:]), x.dtype) for s, x in main.items())
        first = next(iter(main.values()))
        return sum(x.shape[1] for x in main.values()), first.shape[2], first.dtype

    def _count_tokens(self, main: Streams) -> None:
        """Notes how many tokens of the joint sequence, text first, are text."""
        call = self.call
        call.tokens, call.width = sum(x.shape[1] for x in main.values()), next(iter(main.values())).shape[2]
        call.n_txt = main["txt"].shape[1] if "txt" in main else call.n_txt
        for branch in call.batch.branches:
            branch.evidence.text_tokens = call.n_txt

    def _base(self, spec: BlockSpec) -> Streams:
        """The kept input of the skipped run of blocks, in the streams of a block of this kind."""
        if self._input is None:
            raise CacheMismatch(NO_FIRST_BLOCK)
        if spec.streams[0] not in self._input and spec.joined:
            self._input = {spec.streams[0]: torch.cat([self._input[s] for s in spec.joined], 1)}
        return self._input

    def _measure(self, i: int, block: Block, out: Streams) -> None:
        """Observes what the probe's blocks add to the stream that code behind the blocks reads."""
        if not self.probe_blocks or self._input is None or i != self.first + self.probe_blocks - 1:
            return
        spec = block.spec
        base = self._base(spec).get(spec.reads[0])
        if base is not None:
            self._observe(spec.flat(out[spec.reads[0]]) - base)

    # --- what is put back -------------------------------------------------------------------------

    def _end(self, spec: BlockSpec, main: Streams) -> Streams:
        """What is put back for the streams that code behind the last block reads."""
        name = FINAL if self.level == "final" else STACK
        base = self._base(spec) if self.level == "stack" else None
        out = {}
        for stream in spec.reads:
            site = _site(name, spec, stream)
            value = self._value(site, spec, main[stream], owned=True, rule=rule_of(self.call.settings, site))
            if base is not None:
                value.add_(base[stream])
            out[stream] = spec.unflat(value, main[stream])
        return out

    def _add(self, block: Block, main: Streams):
        """The block's input plus the forecast of what the block adds; a stream that the block ends stays
        ended."""
        spec, out = block.spec, {}
        for stream, x in self._forecast_streams(block, main):
            out[stream] = x + spec.unflat(self._value((*block.name, stream), spec, x), x)
        return spec.give(out)

    def _forecast_streams(self, block: Block, main: Streams) -> list[tuple[str, torch.Tensor]]:
        """The main tensors that the block does not end: those that are read behind it, and those of which
        something is kept."""
        branches = self.call.batch.branches
        return [
            (s, x)
            for s, x in main.items()
            if s in block.spec.reads or any((*block.name, s) in b.sites for b in branches)
        ]

    def _value(
        self,
        site: tuple,
        spec: BlockSpec,
        like: torch.Tensor,
        owned: bool = False,
        rule: FeaturePredictor | None = None,
    ) -> torch.Tensor:
        """A site's forecast [B,n,d]; CacheMismatch where it does not have the shape of the stream `like`."""
        value = self.call.batch.value(site, rule or self.predictor, owned)
        if value.shape != spec.flat(like).shape:
            raise CacheMismatch(OTHER_TOKENS)
        return value

    # --- what is kept -----------------------------------------------------------------------------

    def _keep(self, i: int, block: Block, before: Streams, out: Streams) -> None:
        """After a block that ran: what it added is kept, and at the last one the end of the run of blocks."""
        spec, call = block.spec, self.call
        if call.kind == "A":
            return
        self._measure(i, block, out)
        if self.level == "block":
            for stream, after in out.items():
                if stream in before:
                    self._note((*block.name, stream), spec.flat(after) - spec.flat(before[stream]))
        if not block.last:
            return
        if self.level == "stack" and self._input is None:
            return  # another node has skipped the first block of the run
        base = self._base(spec) if self.level == "stack" else None
        if base is not None and any(spec.flat(out[s]).shape != base[s].shape for s in spec.reads):
            return
        if self.level in ("final", "stack"):
            for stream in spec.reads:
                end = spec.flat(out[stream])
                if base is not None:
                    end = end - base[stream]
                elif call.kind == "F":
                    end = end.clone(memory_format=torch.contiguous_format)
                self._note(_site(FINAL if base is None else STACK, spec, stream), end)
        if self.level != "output" and self._entered is not None:
            self._sign(self._entered, self._samples)
