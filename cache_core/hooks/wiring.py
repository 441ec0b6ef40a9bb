"""Where features are taken and put back in one model call, at each of the levels of `settings.LEVELS`.

output  the whole model's output (AB-Cache, MeanCache, TaylorSeer-Lite's other home); any model has it
final   the final hidden state, the last block's output (DuCa's aggressive steps, TaylorSeer-Lite, FreqCa,
        Spectrum)
stack   what a run of blocks adds to its input, the blocks before it running on every step (Delta-DiT,
        DiCache)
block   what each block adds to its input (HyCa)
module  each module's output before its gate (TaylorSeer, FoCa, FORA)

Conservative steps always work on the modules, and leave a correction at the level that aggressive steps use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ..base.errors import CacheMismatch
from ..base.names import FINAL, OUTPUT, PATH, STACK
from ..models.families import Block
from .call_context import Call
from .shims import capture


def joint(streams) -> torch.Tensor:
    """A block's main tensors (one, or image and text) as one sequence, text first."""
    return torch.cat((streams[1], streams[0]), 1) if isinstance(streams, tuple) else streams


def signature(x: torch.Tensor, tokens: int) -> tuple:
    """What must be equal between a call and the full step before it; x [B,N,d] is one stream of `tokens`
    joint tokens."""
    return tokens, x.shape[2], x.dtype


def _sizes(*values) -> tuple:
    """What must be equal between two calls of a whole model: the sizes of all tensors it is given, also in
    lists."""
    return tuple(
        (tuple(v.shape[1:]), v.dtype) if isinstance(v, torch.Tensor) else _sizes(*v)
        for v in values
        if isinstance(v, (torch.Tensor, list, tuple))
    )


def _about(x, out) -> torch.Tensor | None:
    """The part of a model's input [B,C,...] that its output [B',C',...] is about: what else a host gives a
    model stands behind it."""
    if (
        not isinstance(x, torch.Tensor)
        or not isinstance(out, torch.Tensor)
        or x.ndim != out.ndim
        or x.ndim < 3
    ):
        return None
    return x[:, : out.shape[1]] if x.shape[2:] == out.shape[2:] and x.shape[1] >= out.shape[1] else None


@dataclass
class Wiring:
    """The shims of one call.

    call: the running call. blocks: of the model, in order. first, probe_blocks: how many run on every step
        before the skipped run, and how many at its beginning for a probe."""

    call: Call
    blocks: list[Block]
    first: int = 0
    probe_blocks: int = 0

    def __post_init__(self):
        settings = self.call.settings
        self.level, self.predictor = settings.level, settings.predictor
        self.probe = self.predictor.probe if self.level in ("final", "stack") else None
        self._latent = self.level == "output" and self.predictor.probe == "latent"
        self._input: torch.Tensor | None = None
        self._ended = False
        for branch in self.call.batch.branches:
            branch.evidence.now = None

    def shims(self, model: nn.Module) -> Iterator[tuple[nn.Module, Callable]]:
        """(module, maker of its shim) for every module that does not run untouched."""
        if self.call.kind == "F" and self.call.observed:
            yield model, self._watch_path
        if self.level == "output":
            if self.call.kind == "A":
                yield model, self._skip_model
                return
            yield model, self._watch_model
        elif self.call.kind == "A" and self.level in ("final", "stack"):
            yield model, self._see_the_end
        for i, block in enumerate(self.blocks):
            maker = self._block(i, block)
            if maker is not None:
                yield block.module, maker

    # --- the whole model ------------------------------------------------------------------------

    def _skip_model(self, original):
        def forward(x, *args, **kwargs):
            self._check_input(x, _sizes(x, *args, *kwargs.values()))
            if self._latent:
                self._observe(_about(x, self.call.batch.branches[0].sites[OUTPUT].snapshots[0]))
            names = [
                OUTPUT,
                *(n for n in self.call.batch.branches[0].sites if n[:2] == OUTPUT and n != OUTPUT),
            ]
            out = [self.call.batch.value(n, self.predictor, owned=True) for n in names]
            return out if len(out) > 1 else out[0]

        return forward

    def _watch_path(self, original):
        def forward(x, *args, **kwargs):
            before = x.clone() if isinstance(x, torch.Tensor) else None  # the model may write into it
            out = original(x, *args, **kwargs)
            given = _about(before, out)
            if given is not None:
                self.call.note(PATH, torch.stack((given, out), 1))
            return out

        return forward

    def _watch_model(self, original):
        def forward(x, *args, **kwargs):
            mark = _sizes(x, *args, *kwargs.values())
            if self.call.kind == "C":
                self._check_input(x, mark)
            latent = (
                x.clone() if self._latent and isinstance(x, torch.Tensor) else None
            )  # the model may write into it
            out = original(x, *args, **kwargs)
            given = _about(latent, out)
            self._observe(
                given if given is None or given.shape == latent.shape else given.clone()
            )  # a part would hold the whole
            parts = out if isinstance(out, (list, tuple)) else (out,)
            if self.call.kind == "F" and all(isinstance(o, torch.Tensor) for o in parts):
                self.call.batch_size = parts[0].shape[0]
                self.call.door(
                    OUTPUT,
                    {"": (sum(o.numel() for o in parts) // parts[0].shape[0], 1)},
                    parts[0].element_size(),
                )
            several = isinstance(out, (list, tuple)) and len(out) > 1  # video and sound
            if several and all(isinstance(o, torch.Tensor) for o in out):
                for i, o in enumerate(out[1:], 1):
                    self._note((*OUTPUT, i), o.clone())
                self._note(OUTPUT, out[0].clone(), mark)
            elif isinstance(out, torch.Tensor):  # models that give something else are left alone
                self._note(OUTPUT, out.clone(), mark)
            return out

        return forward

    def _see_the_end(self, original):
        def forward(*args, **kwargs):
            out = original(*args, **kwargs)
            if not self._ended:
                raise CacheMismatch(
                    "The last block did not run, so nothing was put back and this call ran in full."
                )
            return out

        return forward

    def _observe(self, latent: torch.Tensor | None) -> None:
        if latent is not None:
            self.call.batch.observe(latent)

    def _check_input(self, x, mark: tuple) -> None:
        branches, x = self.call.batch.branches, x if isinstance(x, torch.Tensor) else x[0]
        if any(b.signature != mark for b in branches) or x.shape[0] != sum(b.size for b in branches):
            raise CacheMismatch(
                "The model's input is not of the size of the last full step, so this call ran in full."
            )

    # --- blocks ---------------------------------------------------------------------------------

    def _block(self, i: int, block: Block):
        call, adapter = self.call, block.adapter
        if call.kind == "A" and self.level in ("final", "stack"):
            return self._skip(i, block)
        modules = call.kind != "F" or call.modules
        watched = i == self.first or block.last or self.level == "block" or i < self.first + self.probe_blocks
        if not modules and not (watched and self.level != "output"):
            return None

        def make(original):
            def forward(*args, **kwargs):
                bound = adapter.bind(args, kwargs)
                main = adapter.skip(bound)
                self._enter(i, main)
                if call.kind != "F":
                    self._look(i, block, bound)
                elif self.level == "block":  # a block may write into its input
                    main = tuple(m.clone() for m in main) if isinstance(main, tuple) else main.clone()
                if call.kind == "A" and self.level == "block":
                    out = self._add(block, main)
                elif call.kind == "F":
                    with self._overheard(i, block, bound):
                        out = (
                            adapter.record(original, block.module, block.name, call, bound)
                            if call.modules
                            else original(**bound)
                        )
                else:
                    out = adapter.conserve(original, block.module, block.name, call, bound)
                self._leave(i, block, main, out)
                return out

            return forward

        return make

    def _skip(self, i: int, block: Block):
        """An aggressive step at the end of a run of blocks: those before it run, and those that a probe looks
        at."""
        call, adapter = self.call, block.adapter

        def make(original):
            def forward(*args, **kwargs):
                bound = adapter.bind(args, kwargs)
                main = adapter.skip(bound)
                self._enter(i, main)
                if i < self.first:
                    return original(**bound)
                self._look(i, block, bound)
                if i < self.first + self.probe_blocks:
                    out = original(**bound)
                    self._measure(i, out)
                    if not block.last:
                        return out
                if not block.last:
                    return main
                self._ended = True
                if self.level == "final":
                    return call.batch.value(FINAL, self.predictor, owned=True)
                if self._input is None:
                    raise CacheMismatch("The first block of the stack did not run, so this call ran in full.")
                return call.batch.value(STACK, self.predictor, owned=True).add_(self._input)

            return forward

        return make

    def _enter(self, i: int, main) -> None:
        """At a block's door: sizes are checked, and the input of a cached run of blocks is kept."""
        call = self.call
        x = main[0] if isinstance(main, tuple) else main
        tokens = sum(m.shape[1] for m in main) if isinstance(main, tuple) else main.shape[1]
        if isinstance(main, tuple):
            call.n_txt = main[1].shape[1]
        call.batch_size, call.tokens, call.width = x.shape[0], tokens, x.shape[2]
        if call.kind != "F" and self.level != "output":
            self._check(x, tokens)
        if call.kind == "F":
            named = zip(("img", "txt"), main) if isinstance(main, tuple) else [("x", main)]
            call.door(self.blocks[i].name, {s: (m.shape[1], m.shape[2]) for s, m in named}, x.element_size())
        for branch in call.batch.branches:
            branch.evidence.text_tokens, branch.evidence.grid = call.n_txt, call.grid
        if i == self.first and (self.level == "stack" or self.probe == "block"):
            self._input = (
                joint(main) if isinstance(main, tuple) else main.clone()
            )  # blocks and nodes may write into it

    def _check(self, x: torch.Tensor, tokens: int) -> None:
        branches = self.call.batch.branches
        if any(b.signature != signature(x, tokens) for b in branches) or x.shape[0] != sum(
            b.size for b in branches
        ):
            raise CacheMismatch(
                "The model's tokens are not those of the last full step, so this call ran in full."
            )

    def _look(self, i: int, block: Block, bound) -> None:
        if self.probe == "input" and i == self.first:
            self.call.batch.observe(block.adapter.modulated_input(block.module, bound))

    @contextmanager
    def _overheard(self, i: int, block: Block, bound) -> Iterator[None]:
        """As `_look` on a full step, where the block works out by itself what it wants to see."""
        if self.probe != "input" or i != self.first:
            yield
            return
        paths = block.adapter.inputs
        with capture({path: block.module.get_submodule(path) for path in paths}, inputs=True) as seen:
            yield
        if len(seen) == len(paths) and sum(seen[path].shape[1] for path in paths) == self.call.tokens:
            self.call.batch.observe(torch.cat([seen[path] for path in paths], 1))
        else:  # a block that other nodes lead another way
            self._look(i, block, bound)

    def _measure(self, i: int, out) -> None:
        if self.probe_blocks and self._input is not None and i == self.first + self.probe_blocks - 1:
            self.call.batch.observe(joint(out) - self._input)

    def _add(self, block: Block, main):
        """The block's input plus the forecast of what the block adds."""
        if isinstance(main, tuple):
            return tuple(
                x + self.call.batch.value((*block.name, s), self.predictor)
                for s, x in zip(("img", "txt"), main)
            )
        return main + self.call.batch.value((*block.name, "residual"), self.predictor)

    def _leave(self, i: int, block: Block, main, out) -> None:
        """Behind a block that ran: what it added is kept, and at the last block the end of the run."""
        call = self.call
        if call.kind == "A":
            return
        self._measure(i, out)
        if self.level == "block":
            named = zip(("img", "txt"), main, out) if isinstance(main, tuple) else [("residual", main, out)]
            for stream, before, after in named:
                self._note((*block.name, stream), after - before)
        if not block.last:
            return
        mark = signature(out, out.shape[1])
        if self.level == "final":
            self._note(FINAL, out.clone() if call.kind == "F" else out, mark)
        elif self.level == "stack":
            if self._input is not None:  # else another node held back the first block of the stack
                self._note(STACK, out - self._input, mark)
        elif self.level != "output" and call.kind == "F":
            self._mark(out, mark)

    def _note(self, name, truth: torch.Tensor, mark=None) -> None:
        """Keeps a site's truth: as a snapshot on a full step, as a correction on a conservative one."""
        call = self.call
        if call.kind == "C":
            call.batch.correct(name, truth, self.predictor)
            return
        call.note(name, truth)
        call.batch.record(name, truth, self.predictor)
        if mark is not None:
            self._mark(truth, mark)
        for branch in call.batch.branches:
            if branch.evidence.now is not None and name in (FINAL, STACK, OUTPUT):
                branch.evidence.past.push(branch.evidence.now, call.batch.node, self.predictor.needs)

    def _mark(self, x: torch.Tensor, mark: tuple) -> None:
        branches = self.call.batch.branches
        for branch in branches:
            branch.signature, branch.size = mark, x.shape[0] // len(branches)
