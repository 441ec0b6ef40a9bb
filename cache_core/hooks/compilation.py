"""A model under torch.compile: where steps are skipped, its blocks are compiled one by one and everything
around them runs as it stands.

Compiled as a whole, every kind of step would be a graph of its own, and what counts and keeps features would
be traced along and compiled again at every change, until torch gives up on the model's own code too. One
graph for all blocks of a class is also made in less time (PyTorch's recipe of regional compilation)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

import torch
from torch import nn

from ..models.families import Block
from .shims import shim, shimmed

AVAILABLE = hasattr(torch.compiler, "set_stance")
"""torch 2.6 and newer; before, compiled models run as torch traces them."""
SAID = "With torch.compile the blocks are compiled one by one, and only for calls that run them as they are."
NO_GRAPHS = (
    "With torch.compile's CUDA graphs the blocks run uncompiled, as graphs of single blocks "
    "would overwrite each other's results."
)
_WITH_GRAPHS = ("reduce-overhead", "max-autotune")


def compiler(asked: Mapping, ours: str) -> Callable[[Callable], Callable] | None:
    """torch.compile as it was asked for, by its own arguments; None where that means CUDA graphs.

    ours: guards on names that hold it are left out, since no block reads the entries of transformer_options
        that are called so, and runs with other settings would be compiled anew."""
    backend, mode, options = asked.get("backend", "inductor"), asked.get("mode"), asked.get("options") or {}
    if backend == "cudagraphs" or mode in _WITH_GRAPHS or options.get("triton.cudagraphs"):
        return None
    if mode is not None or not isinstance(backend, str):  # torch takes no options beside a mode
        return partial(torch.compile, **asked)

    def others(guards):
        return [ours not in guard.name for guard in guards]

    def made(function: Callable) -> Callable:
        try:
            return torch.compile(function, **{**asked, "options": {**options, "guard_filter_fn": others}})
        except RuntimeError:  # a torch that knows no such filter
            return torch.compile(function, **asked)

    return made


class Compilation:
    """How a model is compiled in a run. compile: gives the compiled form of a function; None runs blocks as
    they were written."""

    def __init__(self, compile: Callable[[Callable], Callable] | None):
        self._compile, self._made, self._begun = compile, {}, False
        self.said = NO_GRAPHS if compile is None else SAID

    def around(self) -> AbstractContextManager:
        """Inside it compiled modules run as they were written."""
        self._begun = True
        return torch.compiler.set_stance("force_eager")

    @contextmanager
    def left_alone(self, model: nn.Module, blocks: Sequence[Block]) -> Iterator[None]:
        """Around a call of which nothing is skipped: where this run has compiled blocks one by one, it goes
        on with these."""
        with ExitStack() as stack:
            if self._begun:
                stack.enter_context(self.around())
                for part, maker in self.shims(model, (), blocks, True):
                    stack.enter_context(shim(part, maker))
            yield

    def shims(
        self, model: nn.Module, shims: Iterable, blocks: Sequence[Block], whole: bool
    ) -> Iterator[tuple[nn.Module, Callable]]:
        """(module, maker of its shim) of a call, as `Wiring.shims` gives them, and of all other blocks.

        whole: whether this call runs blocks as they are, so that they are worth compiling; those whose inside
            is led another way are not, as that would be compiled anew each time. A model without known blocks
            is taken for one."""
        inner = {id(block.module) for block in blocks} or {id(model)}
        shims = list(shims)
        met = {id(part) for part, _ in shims}
        for part, maker in [
            *shims,
            *((block.module, _as_it_is) for block in blocks if id(block.module) not in met),
        ]:
            yield part, self._inside(part, maker, whole) if id(part) in inner else maker

    def _inside(self, part: nn.Module, maker: Callable, whole: bool) -> Callable:
        def make(original):
            inner = self._of(part, original) if whole else original

            def forward(*args, **kwargs):
                run = inner if inner is original or not shimmed(part) else original
                with torch.compiler.set_stance("default"):  # what other packs compile inside stays compiled
                    return run(*args, **kwargs)

            return maker(forward)

        return make

    def _of(self, part: nn.Module, original: Callable) -> Callable:
        """The compiled form of a module's forward, one for all modules of a class; another node's, or a
        compiled one, stays itself."""
        own = type(part).forward
        if self._compile is None or getattr(original, "__func__", None) is not own:
            return original
        if own not in self._made:
            self._made[own] = self._compile(own)
        return partial(self._made[own], part)


def _as_it_is(original: Callable) -> Callable:
    return original
