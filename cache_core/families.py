"""The block table: which models the cache knows, and where their blocks are.

A row names a model class (the end of its module path, and its class name, looked up along the class's bases) and its block
lists in the order they run, each with the adapter that knows its blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .flux_blocks import FluxDouble, FluxSingle


@dataclass(frozen=True)
class Family:
    """One row: `lists` holds (attribute of the model, kind of block, adapter) in running order."""

    name: str
    module: str
    model: str
    lists: tuple[tuple[str, str, type], ...]


_FLUX = (("double_blocks", "double", FluxDouble), ("single_blocks", "single", FluxSingle))

FAMILIES = (
    Family("FLUX", "comfy.ldm.flux.model", "Flux", _FLUX),
    Family("FLUX (embedded)", "demo.flux", "Flux", _FLUX),
)


@dataclass(frozen=True)
class Block:
    """A block of a running model: its `name` (kind, index) in the cache, its adapter and whether it is the `last` one."""

    name: tuple[str, int]
    module: nn.Module
    adapter: type
    last: bool


def find_family(model: nn.Module) -> Family | None:
    """The row of a model, or None when the table has none.

    FLUX.2 shares FLUX.1's classes; its modulation stands outside the blocks, which the adapters have not been tested with.
    """
    if getattr(getattr(model, "params", None), "global_modulation", False):
        return None
    for base in type(model).__mro__:
        for row in FAMILIES:
            if base.__name__ == row.model and (base.__module__ == row.module or base.__module__.endswith("." + row.module)):
                return row
    return None


def blocks_of(model: nn.Module, family: Family) -> list[Block]:
    """The blocks of a model in running order; empty if a list of the row is missing or the last list is empty."""
    found = []
    for attribute, kind, adapter in family.lists:
        modules = getattr(model, attribute, None)
        if modules is None:
            return []
        found += [((kind, i), m, adapter) for i, m in enumerate(modules)]
    if not found or found[-1][2] is not family.lists[-1][2]:
        return []
    return [Block(name, m, adapter, i == len(found) - 1) for i, (name, m, adapter) in enumerate(found)]
