"""Blocks of a model that the table does not know: the list of equal modules that holds most of its weights.
An experimental guess.

Whether it is right shows on the first full call: the self-check takes such a model's blocks only if they run
    one after the other, give what they take in shape, and are all that the rest of the model reads."""

from __future__ import annotations

import inspect

from torch import nn

from .block_spec import Family, one

LEAST = 4
"""Blocks that such a list must have."""
DETECTED = "detected"
"""`Family.module` of the row of a guess."""


def detect(model: nn.Module) -> Family | None:
    """A row for a model with one list of at least `LEAST` modules of one class that holds more than half of
    its weights; else None."""
    weights = sum(p.numel() for p in model.parameters())
    for path, part in model.named_modules():
        if not isinstance(part, nn.ModuleList) or len(part) < LEAST or len({type(m) for m in part}) > 1:
            continue
        if 2 * sum(p.numel() for p in part.parameters()) <= weights:
            continue
        first = next(iter(inspect.signature(part[0].forward).parameters.values()), None)
        if first is not None and first.kind in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
            return Family(
                type(model).__name__, DETECTED, type(model).__name__, ((path, "block", one(first.name)),)
            )
    return None
