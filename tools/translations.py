"""Marks translated help pages that are older than their English page.

The last line of a translated page is a comment with the digest of the English page that it follows. Where
the English page has changed since, `python -m tools.regenerate` puts a line under the title that says so.
`python -m tools.regenerate translated NODE` records that a translator has brought the page up to date."""

from __future__ import annotations

import hashlib
import re

MARK = "<!-- older than the English page -->"
NOTES = {"zh": f"> 本页早于英文页面，部分内容可能已经改变。 {MARK}"}
"""The line that a page of each language carries while it lags."""
FOLLOWS = re.compile(r"\n*<!-- follows the English page ([0-9a-f]{12}) -->\n*\Z")


def digest(english: str) -> str:
    """Twelve hexadecimal digits that change with the English page."""
    return hashlib.sha256(english.encode()).hexdigest()[:12]


def lags(page: str) -> bool:
    """Whether a translated page says that it is older than the English one."""
    return MARK in page


def plain(page: str) -> str:
    """A translated page without its marks, as the translator wrote it."""
    lines = FOLLOWS.sub("\n", page).split("\n")
    at = next((i for i, line in enumerate(lines) if MARK in line), None)
    if at is not None:
        del lines[at : at + 2]
    return "\n".join(lines)


def marked(page: str, english: str, language: str, up_to_date: bool = False) -> str:
    """The translated page with its marks as they should be.

    up_to_date: the page follows the English one as it is now. So does, for a start, a page without a
    digest."""
    follows, now = FOLLOWS.search(page), digest(english)
    known = now if up_to_date or follows is None else follows[1]
    text = plain(page).rstrip("\n")
    if known != now:
        title, _, rest = text.partition("\n")
        text = f"{title}\n\n{NOTES[language]}\n{rest}"
    return f"{text}\n\n<!-- follows the English page {known} -->\n"
