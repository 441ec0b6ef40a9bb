"""Draws a workflow's thumbnail: its title, its plan as bars, and its pictures where there are any."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

EDGE, MARGIN, PICTURES = 512, 36, 230
PAPER, INK, FAINT = "#16181d", "#f2f3f5", "#9aa0ab"
KINDS = {"F": ("#4c8dff", 1.0, "full"), "C": ("#f0a52b", 0.55, "conservative"), "A": ("#6b7280", 0.22, "aggressive")}
"""Colour, height of the bar and name of each kind of step."""


def draw_thumbnail(path: Path, title: str, kinds: str, pictures: list[Image.Image]) -> None:
    """Writes a square JPEG. kinds: one letter per step."""
    image = Image.new("RGB", (EDGE, EDGE), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN - 8), title, INK, ImageFont.load_default(40))
    top = 110
    if pictures:
        edge = min(PICTURES, (EDGE - 2 * MARGIN - 12 * (len(pictures) - 1)) // len(pictures))
        for i, picture in enumerate(pictures):
            image.paste(picture.convert("RGB").resize((edge, edge), Image.Resampling.LANCZOS), (MARGIN + i * (edge + 12), top - 10))
        top += edge + 10
    _bars(draw, kinds, top, EDGE - 84)
    x, font = MARGIN, ImageFont.load_default(22)
    for letter, (colour, _, name) in KINDS.items():
        if letter in kinds:
            text = f"{kinds.count(letter)} {name}"
            draw.rectangle((x, EDGE - 52, x + 18, EDGE - 34), colour)
            draw.text((x + 28, EDGE - 56), text, FAINT, font)
            x += 28 + draw.textlength(text, font) + 24
    image.save(path, quality=88, optimize=True)


def _bars(draw: ImageDraw.ImageDraw, kinds: str, top: float, bottom: float) -> None:
    pitch = (EDGE - 2 * MARGIN) / len(kinds)
    for i, letter in enumerate(kinds):
        colour, share, _ = KINDS[letter]
        left = MARGIN + i * pitch
        draw.rectangle((left, bottom - share * (bottom - top), left + pitch - 3, bottom), colour)
