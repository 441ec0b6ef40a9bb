"""How names from a stranger's file are quoted in a sentence."""

from __future__ import annotations


def named(key: object, most: int = 40) -> str:
    """A key as one short piece of one line; quoted where blanks or line breaks would be lost."""
    text = str(key)[:most]
    return text if text and text.isprintable() and text == text.strip() else repr(text)
