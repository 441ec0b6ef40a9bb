"""A model under torch.compile: where steps are skipped, its blocks are compiled one by one, and everything
around them runs uncompiled.

If the model were compiled as a whole, every kind of step would be a graph of its own, and torch would trace
the code that keeps features and compile it again at every change, until it gives up on the model's own code
too. One graph for all blocks of a class also takes less time to make (PyTorch's regional compilation). Nodes
that compile blocks in place (each replaced by torch's `OptimizedModule`) are treated alike, for the blocks
that they have compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ..models.block_spec import Family
from ..models.families import Block, compilers_of
from .shims import shim, shimmed

AVAILABLE = hasattr(torch.compiler, "set_stance")
"""torch 2.6 and newer; before, compiled models run as torch traces them."""
SAID = "With torch.compile the blocks are compiled one by one, and only for calls that run them as they are."
NO_GRAPHS = (
    "With torch.compile's backend cudagraphs, which does nothing else, the blocks run uncompiled: graphs of "
    "single blocks would overwrite each other's results."
)
WITHOUT_GRAPHS = (
    "With torch.compile the blocks are compiled one by one, without the CUDA graphs that were asked for: "
    "graphs of single blocks would overwrite each other's results."
)
_WITHOUT_GRAPHS = {"reduce-overhead": None, "max-autotune": "max-autotune-no-cudagraphs"}
"""Modes of inductor that use CUDA graphs, and what is nearest to them without."""


def uses_graphs(asked: Mapping) -> bool:
    """Whether these arguments of torch.compile ask for CUDA graphs."""
    options = asked.get("options") or {}
    graphs = asked.get("mode") in _WITHOUT_GRAPHS or options.get("triton.cudagraphs")
    return asked.get("backend") == "cudagraphs" or bool(graphs)


def compiler(asked: Mapping[str, Any], ours: str) -> Callable[[Callable], Callable] | None:
    """torch.compile as it was asked for, by its own arguments, but without CUDA graphs; None where nothing is
    left without them.

    ours: guards on names that hold it are left out, since no block reads the entries of transformer_options
        that are called so, and runs with other settings would be compiled anew."""
    backend, mode, options = asked.get("backend", "inductor"), asked.get("mode"), asked.get("options") or {}
    if backend == "cudagraphs":
        return None
    if uses_graphs(asked):
        mode = _WITHOUT_GRAPHS.get(mode, mode) if mode else mode
        options = {k: v for k, v in options.items() if k != "triton.cudagraphs"}
        asked = {**asked, "mode": mode, "options": options or None}
    if mode is not None or not isinstance(backend, str):  # torch takes no options beside a mode
        return partial(torch.compile, **asked)

    def others(guards):
        return [ours not in guard.name for guard in guards]

    def made(function: Callable) -> Callable:
        try:
            filtered: dict[str, Any] = {**asked, "options": {**options, "guard_filter_fn": others}}
            return torch.compile(function, **filtered)
        except RuntimeError:  # a torch that knows no such filter
            return torch.compile(function, **asked)

    return made


class Compilation:
    """How a model is compiled in a run.

    compile: gives the compiled form of a function; None runs blocks uncompiled.
    only: ids of the blocks that are compiled; None for all.
    graphs: whether CUDA graphs were asked for."""

    def __init__(
        self,
        compile: Callable[[Callable], Callable] | None,
        only: frozenset[int] | None = None,
        graphs: bool = False,
    ):
        self._compile, self._only, self._made, self._begun = compile, only, {}, False
        self.said = NO_GRAPHS if compile is None else WITHOUT_GRAPHS if graphs else SAID

    @classmethod
    def of_blocks(cls, model: nn.Module, family: Family | None) -> Compilation | None:
        """How other nodes have compiled blocks of a model in place; None where they have not."""
        found = compilers_of(model, family) if AVAILABLE and family else {}
        return cls(next(iter(found.values())), frozenset(map(id, found))) if found else None

    def around(self) -> AbstractContextManager:
        """A context in which compiled modules run uncompiled."""
        self._begun = True
        return torch.compiler.set_stance("force_eager")

    @contextmanager
    def left_alone(self, model: nn.Module, blocks: Sequence[Block]) -> Iterator[None]:
        """Around a call of which nothing is skipped: where this run has compiled blocks one by one, it uses
        these."""
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

        whole: whether this call runs blocks unchanged, so that they are worth compiling. A block whose
            sub-modules are replaced is not, as it would be compiled anew each time. A model without known
            blocks counts as one block."""
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
        """The compiled form of a module's forward, one for all modules of a class; a forward that another
        node has set stays as it is."""
        own = type(part).forward
        if self._only is not None and id(part) not in self._only:
            return original
        if self._compile is None or getattr(original, "__func__", None) is not own:
            return original
        if own not in self._made:
            self._made[own] = self._compile(own)
        return partial(self._made[own], part)


def _as_it_is(original: Callable) -> Callable:
    return original
