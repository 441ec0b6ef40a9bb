"""Blocks of a model that is not in the registry: the list of equal modules that holds most of its weights. An
experimental guess.

The self-check of the first full call decides whether it is right: it accepts the blocks only if they run one
after the other, return the shape that they are given, and are all that the rest of the model reads."""

from __future__ import annotations

import inspect

from torch import nn

from .block_spec import Family, one
from .families import uncompiled

LEAST = 4
"""Blocks that such a list must have at least."""
DETECTED = "detected"
"""`Family.module` of a guessed row."""


def detect(model: nn.Module) -> Family | None:
    """A row for a model with one list of at least `LEAST` modules of one class that holds more than half of
    its weights; else None."""
    weights = sum(p.numel() for p in model.parameters())
    for path, part in model.named_modules():
        if (
            not isinstance(part, nn.ModuleList)
            or len(part) < LEAST
            or len({type(uncompiled(m)) for m in part}) > 1
        ):
            continue
        if 2 * sum(p.numel() for p in part.parameters()) <= weights:
            continue
        first = next(iter(inspect.signature(uncompiled(part[0]).forward).parameters.values()), None)
        if first is not None and first.kind in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
            return Family(
                type(model).__name__, DETECTED, type(model).__name__, ((path, "block", one(first.name)),)
            )
    return None
