"""What fails after sampling must not lose what was sampled."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management

log = logging.getLogger("dual_cache")


def sentence_of(error: Exception) -> str:
    """An error as one sentence; an interrupt by the user is raised again."""
    if isinstance(error, comfy.model_management.InterruptProcessingException):
        raise error
    return f"{' '.join(str(error).split()).rstrip('.') or type(error).__name__}."


@contextmanager
def only_logged(what: str) -> Iterator[None]:
    """Logs an error where `what` failed, and goes on."""
    try:
        yield
    except Exception as error:
        log.warning("Dual Cache: %s failed (%r); the run itself is not affected.", what, error)
