"""Errors of the cache, and how an error of the allocator or of this package is recognised."""

from __future__ import annotations

from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parents[1]

_OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


class CacheMismatch(Exception):
    """What is cached does not fit the running call; nothing was changed and the call can be repeated in
    full."""


class CacheTooLarge(CacheMismatch):
    """The caches would not fit into the budget; the settings have been lowered and the call can be
    repeated."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device."""
    return isinstance(error, _OUT_OF_MEMORY) or (
        isinstance(error, RuntimeError) and any(w in str(error).lower() for w in _WORDS)
    )


def raised_here(error: BaseException) -> bool:
    """Whether an error comes out of this package's own lines, and not out of the model."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and Path(frame.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)
