"""A model under torch.compile: where steps are skipped, its blocks are compiled one by one and everything around them runs as it stands.

Compiled as a whole, every kind of step would be a graph of its own, and what counts and keeps features would be traced along and compiled
again at every change, until torch gives up on the model's own code too. One graph for all blocks of a class is also made in less time
(PyTorch's recipe of regional compilation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import nn

from .families import Block
from .sites import shimmed

AVAILABLE = hasattr(torch.compiler, "set_stance")
"""torch 2.6 and newer; before, compiled models run as torch traces them."""
SAID = "With torch.compile the blocks are compiled one by one, and only for calls that run them as they are."


class Compilation:
    """How a model is compiled in a run. compile: gives the compiled form of a function, with the user's backend and options."""

    def __init__(self, compile: Callable[[Callable], Callable]):
        self._compile, self._made = compile, {}

    def around(self) -> AbstractContextManager:
        """Inside it compiled modules run as they were written."""
        return torch.compiler.set_stance("force_eager")

    def shims(self, model: nn.Module, shims: Iterable, blocks: Sequence[Block], whole: bool) -> Iterator[tuple[nn.Module, Callable]]:
        """(module, maker of its shim) of a call, as `Wiring.shims` gives them, and of all other blocks.

        whole: whether this call runs blocks as they are, so that they are worth compiling; those whose inside is led another way are not,
        as that would be compiled anew each time. A model without known blocks is taken for one.
        """
        inner = {id(block.module) for block in blocks} or {id(model)}
        shims = list(shims)
        met = {id(part) for part, _ in shims}
        for part, maker in [*shims, *((block.module, _as_it_is) for block in blocks if id(block.module) not in met)]:
            yield part, self._inside(part, maker, whole) if id(part) in inner else maker

    def _inside(self, part: nn.Module, maker: Callable, whole: bool) -> Callable:
        def make(original):
            inner = self._of(part, original) if whole else original

            def forward(*args, **kwargs):
                with torch.compiler.set_stance("default"):  # what other packs compile inside stays compiled
                    return (original if shimmed(part) else inner)(*args, **kwargs)
            return maker(forward)
        return make

    def _of(self, part: nn.Module, original: Callable) -> Callable:
        """The compiled form of a module's forward, one for all modules of a class; another node's, or a compiled one, stays itself."""
        own = type(part).forward
        if getattr(original, "__func__", None) is not own:
            return original
        if own not in self._made:
            self._made[own] = self._compile(own)
        return partial(self._made[own], part)


def _as_it_is(original: Callable) -> Callable:
    return original
