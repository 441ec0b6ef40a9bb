"""Draws the pictures that the project makes of itself: a workflow's thumbnail, and the SVGs of the help
pages."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from cache_core.recipes import from_preset, preset_names
from cache_core.selectors.token_selection import Selector, count_rows

EDGE, MARGIN, PICTURES = 512, 36, 230
PAPER, INK, FAINT, CELL = "#16181d", "#f2f3f5", "#9aa0ab", "#2a2e36"
KINDS = {
    "F": ("#4c8dff", 1.0, "full"),
    "C": ("#f0a52b", 0.55, "conservative"),
    "A": ("#6b7280", 0.22, "aggressive"),
}
"""Colour, height of the bar and name of each kind of step."""


def draw_thumbnail(path: Path, title: str, kinds: str, pictures: list[Image.Image]) -> None:
    """Writes a square JPEG with the title, the pictures where there are any, and the plan as bars. kinds: one
    letter per step."""
    image = Image.new("RGB", (EDGE, EDGE), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN - 8), title, INK, ImageFont.load_default(40))
    top, bottom = 110, EDGE - 84
    if pictures:
        edge = min(PICTURES, (EDGE - 2 * MARGIN - 12 * (len(pictures) - 1)) // len(pictures))
        for i, picture in enumerate(pictures):
            image.paste(
                picture.convert("RGB").resize((edge, edge), Image.Resampling.LANCZOS),
                (MARGIN + i * (edge + 12), top - 10),
            )
        top += edge + 10
    pitch = (EDGE - 2 * MARGIN) / len(kinds)
    for i, letter in enumerate(kinds):
        colour, share, _ = KINDS[letter]
        left = MARGIN + i * pitch
        draw.rectangle((left, bottom - share * (bottom - top), left + pitch - 3, bottom), colour)
    x, font = MARGIN, ImageFont.load_default(22)
    for letter, (colour, _, name) in KINDS.items():
        if letter in kinds:
            text = f"{kinds.count(letter)} {name}"
            draw.rectangle((x, EDGE - 52, x + 18, EDGE - 34), colour)
            draw.text((x + 28, EDGE - 56), text, FAINT, font)
            x += 28 + draw.textlength(text, font) + 24
    image.save(path, quality=88, optimize=True)


def _svg(width: int, height: int, parts: list[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 '
            f'{width} {height}" '
            'font-family="sans-serif" font-size="15">',
            f'<rect width="{width}" height="{height}" rx="10" fill="{PAPER}"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}"/>'


def _text(x: float, y: float, fill: str, text: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{fill}">{text}</text>'


def plans_svg(steps: int = 30) -> str:
    """The plans of all presets, one row of bars each."""
    left, pitch, row, tall, parts = 150, 15, 40, 26, []
    for i, name in enumerate(preset_names()):
        bottom = 14 + i * row + tall
        parts.append(_text(18, bottom - 8, INK, name))
        for step, letter in enumerate(from_preset(name).schedule_for(steps).kinds):
            colour, share, _ = KINDS[letter]
            parts.append(
                _rect(
                    left + step * pitch,
                    round(bottom - share * tall, 2),
                    pitch - 3,
                    round(share * tall, 2),
                    colour,
                )
            )
    bottom = 14 + len(preset_names()) * row
    for i, (colour, _, name) in enumerate(KINDS.values()):
        parts += [
            _rect(left + 150 * i, bottom + 8, 13, 13, colour),
            _text(left + 20 + 150 * i, bottom + 20, FAINT, name),
        ]
    return _svg(left + steps * pitch + 18, bottom + 38, parts)


def tokens_svg(side: int = 16, ratio: float = 0.1) -> str:
    """The tokens that a random choice refreshes, on a grid of side x side."""
    n, pitch = side * side, 18
    chosen = (
        Selector("random")
        .choose(count_rows(ratio, n), n=n, generator=torch.Generator().manual_seed(0), interval=1)[0]
        .tolist()
    )
    parts = [
        _rect(
            14 + pitch * (i % side),
            14 + pitch * (i // side),
            pitch - 2,
            pitch - 2,
            KINDS["C"][0] if i in chosen else CELL,
        )
        for i in range(n)
    ]
    return _svg(pitch * side + 26, pitch * side + 26, parts)
