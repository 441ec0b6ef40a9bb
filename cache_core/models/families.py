"""Finding a model's row in the block table, and its blocks in the running model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from .block_spec import Aside, BlockLayout, Family
from .registry import FAMILIES


@dataclass(frozen=True)
class Block:
    """A block of a running model: its `name` (kind, index) in the cache, its adapter or layout and whether it
    is the `last` one."""

    name: tuple[str, int]
    module: nn.Module
    adapter: type | BlockLayout
    last: bool


def find_family(model: nn.Module) -> Family | None:
    """The row of a model, or None when the table has none."""
    for base in type(model).__mro__:
        for row in FAMILIES:
            if (
                base.__name__ == row.model
                and (base.__module__ == row.module or base.__module__.endswith("." + row.module))
                and (row.where is None or _at(model, row.where[0]) == row.where[1])
            ):
                return row
    return None


def unknown_families(names: Iterable[str]) -> str | None:
    """A sentence about names that are in no row, None where all are."""
    known = {row.name for row in FAMILIES}
    unknown = sorted(set(names) - known)
    if not unknown:
        return None
    more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
    return (
        f"The recipe has settings for families that this pack does not know, which play no part: "
        f"{', '.join(n[:40] for n in unknown[:3])}{more}."
    )


def _at(model, path: str):
    """The attribute at a dotted path, or None."""
    for name in path.split("."):
        model = getattr(model, name, None)
    return model


def _modules(found) -> Iterable[nn.Module]:
    """The modules of a list, a dict or a single module; none of None."""
    if isinstance(found, nn.ModuleDict):
        return found.values()
    return [found] if isinstance(found, nn.Module) and not isinstance(found, nn.ModuleList) else found or ()


def blocks_of(model: nn.Module, family: Family) -> list[Block]:
    """The blocks of a model in running order; empty if a list of the row is missing or the last list is
    empty."""
    found = []
    for path, kind, adapter in family.lists:
        modules = _at(model, path)
        if modules is None:
            return []
        found += [((kind, i), m, adapter) for i, m in enumerate(_modules(modules))]
    if not found or found[-1][2] is not family.lists[-1][2]:
        return []
    return [Block(name, m, adapter, i == len(found) - 1) for i, (name, m, adapter) in enumerate(found)]


def asides_of(model: nn.Module, family: Family) -> tuple[tuple[nn.Module, Aside], ...]:
    """The modules beside the blocks."""
    return tuple((m, aside) for aside in family.asides for m in _modules(_at(model, aside.path)))
