"""Wording of messages: names from files, numbers of things and sizes in bytes."""

from __future__ import annotations


def named(key: object, most: int = 40) -> str:
    """A key as one short piece of one line; quoted where blanks or line breaks would be lost."""
    text = str(key)[:most]
    return text if text and text.isprintable() and text == text.strip() else repr(text)


def counted(number: int, thing: str) -> str:
    """A number of things: 1 step, 2 steps."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.3g} GiB"
