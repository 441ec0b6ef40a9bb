"""Draws what our nodes give out as an IMAGE: the sheet of a comparison, the plot of a report. With Pillow,
which ComfyUI brings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from ..cache_core.base.wording import counted
from ..cache_core.report.comparison import Comparison
from ..cache_core.report.run_report import KINDS, Report

PAPER, INK, FAINT, LINE = "#16181d", "#f2f3f5", "#9aa0ab", "#3a3f4a"
KIND_COLOURS, KIND_HEIGHTS = {"F": "#4c8dff", "C": "#f0a52b", "A": "#8b93a1"}, {"F": 1.0, "C": 0.6, "A": 0.3}
ERROR, INDICATOR, CHANGED = "#d86bff", "#3fd0a0", "#ff6b6b"
EDGE, MARGIN, SMALL, LARGE = 640, 24, 20, 26
"""Longest edge of a picture on a sheet, the space around things, and sizes of letters, in pixels."""
HEAT = ((0.0, 0.0, 0.016), (0.34, 0.06, 0.43), (0.73, 0.21, 0.33), (0.97, 0.55, 0.04), (0.99, 1.0, 0.64))
"""Colours of a difference from none to the largest: dark to bright throughout, so that they can be told apart
without hue."""


def heat(map_: torch.Tensor) -> torch.Tensor:
    """Colours [H,W,3] in 0..1 of a map [H,W] in 0..1; what is not a number is as bright as the largest
    difference."""
    colours = torch.tensor(HEAT)
    place = map_.detach().float().cpu().nan_to_num(nan=1.0).clamp(0, 1) * (len(HEAT) - 1)
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


def comparison_sheet(
    comparison: Comparison,
    pictures: Sequence[Image.Image],
    maps: Sequence[Image.Image],
    scale: float,
    which: str,
) -> Image.Image:
    """Pictures of all ways in a row, below them where each differs from the first, and the table.

    pictures: one per way. maps: one per way but the first. scale: the difference at the brightest colour.
        which: what is shown, such as "frame 3 of 16", or empty."""
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
    image = Image.new(
        "RGB", (width, 3 * MARGIN + 2 * (high + tall) + line * (len(rows) + len(notes) + 1) + MARGIN), PAPER
    )
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


def sentence_sheet(text: str) -> Image.Image:
    """A sentence, where there is nothing to draw."""
    font, ruler = ImageFont.load_default(SMALL), ImageDraw.Draw(Image.new("RGB", (1, 1)))
    lines = _wrapped(ruler, text, font, PLOT_WIDTH - 2 * MARGIN)
    image = Image.new("RGB", (PLOT_WIDTH, 2 * MARGIN + (SMALL + 10) * len(lines)), PAPER)
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + (SMALL + 10) * i), line, INK, font)
    return image


PLOT_WIDTH, AXIS, STRIP = 1280, 190, 150
"""Width of a report's plot, room for its axes, and height of each of its parts, in pixels."""


def report_plot(report: Report) -> Image.Image:
    """A run from left to right: the kind of each evaluation, its milliseconds, and where they are known the
    error of the forecast and its indicator. An evaluation that did not run as planned has a mark above its
    bar."""
    records, totals = report.records, report.totals()
    small, large = ImageFont.load_default(16), ImageFont.load_default(22)
    counts = ", ".join(f"{totals[name]} {name}" for name in KINDS.values())
    facts = (
        f"{counted(totals['evaluations'], 'evaluation')}: {counts}; "
        f"{counted(totals['calls'], 'model call')}, {totals['full_calls']} in full; "
        f"{totals['wall_seconds']:.2f} s measured"
    )
    parts = [("kind", [KIND_HEIGHTS[r.actual] for r in records]), ("ms", [r.milliseconds for r in records])]
    parts += [
        (name, values)
        for name, values in (
            ("forecast error", [r.forecast_error for r in records]),
            ("indicator", [r.indicator for r in records]),
        )
        if any(v is not None and math.isfinite(v) for v in values)
    ]
    top, pitch = 96, STRIP + 34
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    said = report.why_nothing()
    lines = _wrapped(ruler, said, small, PLOT_WIDTH - 2 * MARGIN) if said else []
    image = Image.new("RGB", (PLOT_WIDTH, top + pitch * len(parts) + 36 + 22 * len(lines)), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text(
        (MARGIN, 18),
        f"{report.method} on {report.family or 'an unknown model'}, {counted(report.steps, 'step')}",
        INK,
        large,
    )
    draw.text((MARGIN, 52), facts, FAINT, small)
    width = (PLOT_WIDTH - AXIS - MARGIN) / max(1, len(records))
    for i, (name, values) in enumerate(parts):
        y = top + i * pitch
        _part(draw, name, values, records, y, width, small)
    bottom = top + pitch * len(parts) - 24
    every = max(1, round(len(records) / 24))
    for i, r in enumerate(records):
        if (i + 1) % every == 0 or i == 0:
            text = str(r.step + 1)
            draw.text(
                (AXIS + (i + 0.5) * width - draw.textlength(text, small) / 2, bottom), text, FAINT, small
            )
    draw.text((MARGIN, bottom), "step", FAINT, small)
    for i, line in enumerate(lines):
        draw.text((MARGIN, bottom + 34 + 22 * i), line, INK, small)
    return image


def _part(
    draw: ImageDraw.ImageDraw, name: str, values: Sequence, records: Sequence, top: int, width: float, font
) -> None:
    """One of the plots that stand below each other."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    low = min(known) if name == "indicator" else 0.0
    high = max(known, default=1.0)
    span = (high - low) or 1.0
    bottom, tall = top + STRIP, STRIP - 18
    draw.line((AXIS, bottom, PLOT_WIDTH - MARGIN, bottom), LINE)
    draw.text((MARGIN, top + STRIP / 2 - 8), name, INK, font)
    if name != "kind":
        for value, y in ((high, top + 8), (low, bottom - 10)):
            text = f"{value:.3g}"
            draw.text((AXIS - 8 - draw.textlength(text, font), y - 4), text, FAINT, font)
    before = None
    for i, (value, r) in enumerate(zip(values, records)):
        if value is None or not math.isfinite(value):
            before = None
            continue
        x, y = AXIS + i * width, bottom - tall * (value - low) / span
        middle = x + width / 2
        if name in ("kind", "ms"):
            draw.rectangle(
                (x, y, max(x, x + width - (2 if width > 5 else 0)), bottom), KIND_COLOURS[r.actual]
            )
            if name == "kind" and width >= 14:
                draw.text((middle - draw.textlength(r.actual, font) / 2, bottom - 20), r.actual, PAPER, font)
            if name == "kind" and r.actual != r.planned:
                draw.polygon(((middle - 5, top), (middle + 5, top), (middle, top + 8)), CHANGED)
            continue
        colour = ERROR if name == "forecast error" else INDICATOR
        if before and name == "indicator":
            draw.line((*before, middle, y), colour, 2)
        draw.ellipse((middle - 4, y - 4, middle + 4, y + 4), colour)
        before = middle, y
