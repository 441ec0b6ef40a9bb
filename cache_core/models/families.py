"""Finding a model's row in the registry, and its blocks in the running model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from .block_spec import BlockSpec, Family, SideModule
from .registry import FAMILIES


@dataclass(frozen=True)
class Block:
    """A block of a running model.

    name: (kind, index) in the cache.
    module: the block itself, also where torch.compile is around it.
    spec: what the registry says of its kind.
    last: whether it is the model's last block."""

    name: tuple[str, int]
    module: nn.Module
    spec: BlockSpec
    last: bool


def find_family(model: nn.Module) -> Family | None:
    """The row of a model, or None when the registry has none."""
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
        f"Ignored the recipe's settings for model families that this pack does not have: "
        f"{', '.join(n[:40] for n in unknown[:3])}{more}."
    )


def _at(model, path: str):
    """The attribute at a dotted path, or None."""
    for name in path.split("."):
        model = getattr(model, name, None)
    return model


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself where torch.compile is around it (`OptimizedModule`)."""
    return getattr(module, "_orig_mod", module)


def _modules(found) -> Iterable[nn.Module]:
    """The modules of a list, a dict or a single module; none of None."""
    if isinstance(found, nn.ModuleDict):
        return found.values()
    return [found] if isinstance(found, nn.Module) and not isinstance(found, nn.ModuleList) else found or ()


def _listed(model: nn.Module, family: Family) -> list[tuple[tuple[str, int], nn.Module, BlockSpec]]:
    """(name, block as it lies in its list, spec), in running order; empty if a list of the row is missing or
    the last list is empty."""
    found = []
    for path, kind, spec in family.lists:
        modules = _at(model, path)
        if modules is None:
            return []
        found += [((kind, i), m, spec) for i, m in enumerate(_modules(modules))]
    return found if found and found[-1][2] is family.lists[-1][2] else []


def blocks_of(model: nn.Module, family: Family) -> list[Block]:
    """The blocks of a model in running order; empty if a list of the row is missing or the last list is
    empty."""
    found = _listed(model, family)
    return [Block(name, uncompiled(m), spec, i == len(found) - 1) for i, (name, m, spec) in enumerate(found)]


def compilers_of(model: nn.Module, family: Family) -> dict[nn.Module, Callable[[Callable], Callable]]:
    """The torch.compile that other nodes have put around single blocks: for each of these what makes the
    compiled form of a function."""
    return {
        uncompiled(m): compiler
        for _, m, _ in _listed(model, family)
        if (compiler := getattr(m, "dynamo_ctx", None)) is not None
    }


def side_modules_of(model: nn.Module, family: Family) -> tuple[tuple[nn.Module, SideModule], ...]:
    """The modules beside the blocks, each with what the registry says of it."""
    return tuple(
        (uncompiled(m), side) for side in family.side_modules for m in _modules(_at(model, side.path))
    )
