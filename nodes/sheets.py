"""Draws what our nodes give out as an IMAGE: the sheet of a comparison. With Pillow, which ComfyUI brings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from ..cache_core.comparison import Comparison

PAPER, INK, FAINT, LINE = "#16181d", "#f2f3f5", "#9aa0ab", "#3a3f4a"
EDGE, MARGIN, SMALL, LARGE = 640, 24, 20, 26
"""Longest edge of a picture on a sheet, the space around things, and sizes of letters, in pixels."""
HEAT = ((0.0, 0.0, 0.016), (0.34, 0.06, 0.43), (0.73, 0.21, 0.33), (0.97, 0.55, 0.04), (0.99, 1.0, 0.64))
"""Colours of a difference from none to the largest: dark to bright throughout, so that they can be told apart without hue."""


def heat(map_: torch.Tensor) -> torch.Tensor:
    """Colours [H,W,3] in 0..1 of a map [H,W] in 0..1."""
    colours = torch.tensor(HEAT)
    place = map_.detach().float().cpu().clamp(0, 1) * (len(HEAT) - 1)
    low = place.long().clamp(max=len(HEAT) - 2)
    rest = (place - low)[..., None]
    return colours[low] * (1 - rest) + colours[low + 1] * rest


def _fitted(picture: Image.Image) -> Image.Image:
    share = EDGE / max(picture.size)
    size = [max(1, round(edge * share)) for edge in picture.size]
    return picture.resize(size, Image.Resampling.LANCZOS if share < 1 else Image.Resampling.NEAREST)


def _wrapped(draw: ImageDraw.ImageDraw, text: str, font, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if draw.textlength(longer, font) <= width else [*lines, word]
    return lines


def comparison_sheet(comparison: Comparison, pictures: Sequence[Image.Image], maps: Sequence[Image.Image], scale: float, which: str
                     ) -> Image.Image:
    """Pictures of all ways in a row, below them where each differs from the first, and the table.

    pictures: one per way. maps: one per way but the first. scale: the difference at the brightest colour. which: what is shown, such as
    "frame 3 of 16", or empty.
    """
    pictures, maps = [[_fitted(p) for p in row] for row in (pictures, maps)]
    wide, tall = pictures[0].size
    left = MARGIN
    width = max(2 * MARGIN + len(pictures) * (wide + MARGIN) - MARGIN, 900)
    large, small = ImageFont.load_default(LARGE), ImageFont.load_default(SMALL)
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    rows = comparison.table()
    widths = [max(ruler.textlength(row[i], small) for row in rows) + MARGIN for i in range(len(rows[0]))]
    width = max(width, round(sum(widths)) + 2 * MARGIN)
    notes = [line for note in comparison.notes for line in _wrapped(ruler, note, small, width - 2 * MARGIN)]
    high, line = LARGE + 16, SMALL + 10
    image = Image.new("RGB", (width, 3 * MARGIN + 2 * (high + tall) + line * (len(rows) + len(notes) + 1) + MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    for i, (way, picture) in enumerate(zip(comparison.ways, pictures)):
        x = left + i * (wide + MARGIN)
        draw.text((x, MARGIN), way.name + (f", {which}" if which and i == 0 else ""), INK, large)
        image.paste(picture, (x, MARGIN + high))
        if i:
            top = 2 * MARGIN + high + tall
            draw.text((x, top), f"difference, brightest {scale:.2g} of 1", FAINT, small)
            image.paste(maps[i - 1], (x, top + high))
    y = 3 * MARGIN + 2 * (high + tall)
    for number, row in enumerate(rows):
        x = left
        for i, cell in enumerate(row):
            # Figures stand right-aligned below their headings.
            place = x if i == 0 else x + widths[i] - MARGIN - draw.textlength(cell, small)
            draw.text((place, y), cell, INK if number else FAINT, small)
            x += widths[i]
        y += line
        if not number:
            draw.line((left, y - 4, left + sum(widths) - MARGIN, y - 4), LINE)
    for sentence in notes:
        y += line
        draw.text((left, y - line // 2), sentence, FAINT, small)
    return image
