"""Pictures of a run: the plan with what it took, quality against calls, and the grid of samples with their
captions."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cache_core.report.run_report import KINDS, Report

# Okabe and Ito's colours, which people with any colour vision can tell apart.
BLUE, ORANGE, GREEN, SKY, RED, PURPLE, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#56B4E9",
    "#D55E00",
    "#CC79A7",
    "#000000",
)
KIND_COLOURS = {"F": BLUE, "C": ORANGE, "A": SKY}
CURVE_COLOURS = (BLACK, "#999999", RED, GREEN, ORANGE, PURPLE, BLUE, SKY)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def schedule_plot(reports: Mapping[str, Report], path: Path, note: str = "") -> Path:
    """One panel per named report: a bar per evaluation, its height the measured milliseconds, its letter the
    kind that ran; sigma a line.

    An evaluation that did not run as planned carries the planned letter in brackets. Returns `path`;
    ValueError without a report."""
    if not reports:
        raise ValueError("reports must hold at least one report.")
    figure = Figure(figsize=(10, 0.6 + 2.6 * len(reports)), layout="constrained")
    panels = figure.subplots(len(reports), 1, squeeze=False)[:, 0]
    for axes, (name, report) in zip(panels, reports.items()):
        records, totals = report.records, report.totals()
        times = [r.milliseconds for r in records]
        axes.bar(range(len(records)), times, color=[KIND_COLOURS[r.actual] for r in records], width=0.85)
        for i, r in enumerate(records):
            letter = r.actual if r.actual == r.planned else f"{r.actual} ({r.planned})"
            axes.annotate(
                letter, (i, times[i]), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7
            )
        counts = ", ".join(f"{totals[long]} {long}" for long in KINDS.values())
        axes.set(
            title=f"{name}: {counts}",
            xlabel="evaluation",
            ylabel="milliseconds",
            xlim=(-0.7, len(records) - 0.3),
            ylim=(0, 1.15 * max([*times, 1e-3])),
        )
        axes.xaxis.get_major_locator().set_params(integer=True)
        sigma = axes.twinx()
        sigma.plot(
            range(len(records)),
            [r.sigma for r in records],
            color=BLACK,
            linewidth=1.2,
            marker=".",
            markersize=3,
        )
        sigma.set(ylabel="sigma", ylim=(0, 1.05 * max([r.sigma for r in records] or [1.0])))
    keys = [Patch(color=KIND_COLOURS[k], label=f"{k} {long}") for k, long in KINDS.items()]
    figure.legend(
        handles=[*keys, Line2D([], [], color=BLACK, marker=".", label="sigma")],
        loc="outside upper right",
        ncols=4,
        fontsize=8,
    )
    if note:
        figure.supxlabel(note, fontsize=8)
    return _save(figure, path)


def quality_curves(rows: Sequence[Mapping], path: Path, title: str = "") -> Path:
    """PSNR of many runs as curves: a column per step count; median against full calls, worst against full
    calls, median against seconds.

    rows: dicts with steps, method (sets the colour), curve (the line's name in the legend), full_calls,
        seconds, psnr_median and psnr_worst in dB. Rows whose PSNR is None (the uncached runs) are left out.
        Returns `path`; ValueError when nothing is left."""
    rows = [r for r in rows if r["psnr_median"] is not None]
    if not rows:
        raise ValueError("rows must hold at least one run with a PSNR.")
    columns = sorted({r["steps"] for r in rows}, reverse=True)
    curves: dict[str, list[str]] = {}
    for r in rows:
        known = curves.setdefault(r["method"], [])
        if r["curve"] not in known:
            known.append(r["curve"])
    looks = {
        curve: {
            "color": colour,
            "linestyle": ("-", "--", ":")[i % 3],
            "marker": "os^v"[i % 4],
            "markersize": 3.5,
            "linewidth": 1.2,
        }
        for colour, names in zip(cycle(CURVE_COLOURS), curves.values())
        for i, curve in enumerate(names)
    }
    panels = (
        ("full_calls", "psnr_median", "model calls computed in full", "PSNR, median (dB)"),
        ("full_calls", "psnr_worst", "model calls computed in full", "PSNR, worst picture (dB)"),
        ("seconds", "psnr_median", "measured seconds", "PSNR, median (dB)"),
    )
    figure = Figure(figsize=(6.2 * len(columns) + 2.2, 12), layout="constrained")
    grid = figure.subplots(len(panels), len(columns), squeeze=False)
    for i, (x, y, x_name, y_name) in enumerate(panels):
        for axes, steps in zip(grid[i], columns):
            for curve in looks:
                points = sorted((r[x], r[y]) for r in rows if r["curve"] == curve and r["steps"] == steps)
                if points:
                    axes.plot(*zip(*points), **looks[curve])
            axes.set(title=f"{steps} steps", xlabel=x_name, ylabel=y_name)
            axes.grid(alpha=0.3)
            if x == "full_calls":
                axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(
        handles=[Line2D([], [], label=c, **look) for c, look in looks.items()],
        loc="outside right center",
        fontsize=8,
    )
    if title:
        figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def picture_grid(
    rows: Mapping[str, torch.Tensor], captions: Sequence[str], path: Path, title: str = ""
) -> Path:
    """A grid of samples: a row per label of `rows` (pictures [B,3,H,W] in 0..1), a column per caption.
    Returns `path`.

    ValueError when a row does not hold one picture per caption.
    """
    for label, pictures in rows.items():
        if pictures.ndim != 4 or len(pictures) != len(captions):
            raise ValueError(
                f"rows[{label!r}] must hold one picture per caption: {len(captions)}, not "
                f"{list(pictures.shape)}."
            )
    if not rows or not captions:
        raise ValueError("rows and captions must not be empty.")
    figure = Figure(figsize=(1.5 + 1.5 * len(captions), 0.7 + 1.55 * len(rows)), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=10)
    grid = figure.subplots(len(rows), len(captions), squeeze=False)
    for i, (label, pictures) in enumerate(rows.items()):
        for j, axes in enumerate(grid[i]):
            axes.imshow(pictures[j].permute(1, 2, 0).clamp(0, 1).cpu().numpy())
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if i == 0:
                axes.set_title("\n".join(textwrap.wrap(captions[j], 24)), fontsize=6.5)
        grid[i][0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    return _save(figure, path)
