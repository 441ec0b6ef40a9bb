"""A lock between processes that change one file. The operating system frees it when its process ends, so a
crash leaves nothing locked."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

PATIENCE, PAUSE = 60.0, 0.05
"""Seconds that a process waits for another one, and between two tries."""


@contextmanager
def locked(path: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Holds the lock of a file, in a file beside it that is removed afterwards. OSError when another process
    holds it for longer than `patience` seconds."""
    beside, until = path.with_name(f"{path.name}.lock"), time.monotonic() + patience
    while True:
        held = os.open(beside, os.O_RDWR | os.O_CREAT, 0o644)
        if _take(held):
            if _is_there(held, beside):
                break
        elif time.monotonic() > until:
            os.close(held)
            raise OSError(f"another process has been writing to {path.name} for {patience:g} seconds")
        os.close(held)  # held by another process, or removed by it between opening and locking
        time.sleep(PAUSE)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            beside.unlink()
        os.close(held)


def _take(held: int) -> bool:
    """Tries to lock an open file."""
    try:
        if fcntl is not None:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(held, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True


def _is_there(held: int, path: Path) -> bool:
    """Whether an open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(held), os.stat(path))
    except OSError:
        return False
