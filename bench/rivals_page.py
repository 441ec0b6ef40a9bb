"""The results of the rivals bench for people: the front of what is best at its price, a page and a
picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from demo.plots import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY

GROUPS = {
    "fewer": "Fewer steps",
    "core": "ComfyUI's own caches",
    "pack": "Packs of others",
    "preset": "Presets of Dual Cache",
    "plan": "The preset planned at other speed-ups",
    "candidate": "What the general presets were chosen from",
}
COLOURS = {
    "fewer": (BLACK, "#777777", "#AAAAAA"),
    "core": (RED, ORANGE, "#8B4513"),
    "pack": (GREEN, "#66C2A5", "#1B7837", "#A6D96A"),
    "plan": (PURPLE,),
    "candidate": (SKY,),
    "preset": (BLUE,),
}
LOWEST = 15.0
"""PSNR below which a picture is unusable and the text names its row."""
EQUAL = "equal"
"""Shown where pictures are the same."""


def compared(run: dict) -> list[dict]:
    """Rows that ran and have a likeness."""
    return [r for r in run["rows"] if "psnr_worst" in r and r["group"] != "exact"]


def plain_seconds(run: dict) -> float:
    return next(r["seconds"] for r in run["rows"] if r["group"] == "plain")


def value(row: dict, measure: str) -> float:
    """A likeness to compare by; equal pictures are above all others."""
    return float("inf") if row[measure] is None else row[measure]


def front(rows: Sequence[dict], measure: str) -> list[dict]:
    """Rows that no other one beats: none is as fast and better, or as good and faster. Fastest first."""
    out: list[dict] = []
    for row in sorted(rows, key=lambda r: (r["seconds"], -value(r, measure))):
        if not out or value(row, measure) > value(out[-1], measure):
            out.append(row)
    return out


def name_of(row: dict) -> str:
    return row["curve"] if row["curve"] == row["label"] else f"{row['curve']}, {row['label']}"


def _decibel(row: dict, kind: str) -> str:
    if f"{kind}_median" not in row:
        return ""
    return " / ".join(
        EQUAL if row[f"{kind}_{which}"] is None else f"{row[f'{kind}_{which}']:.1f}"
        for which in ("median", "worst")
    )


def _section(run: dict) -> list[str]:
    rows, plain = compared(run), plain_seconds(run)
    best = {
        id(r): sign
        for measure, sign in (("psnr_worst", "w"), ("psnr_median", "m"))
        for r in front(rows, measure)
    }
    both = {id(r) for r in front(rows, "psnr_worst")} & {id(r) for r in front(rows, "psnr_median")}
    where, cast = run["machine"], f", computed in {run['cast']}" if run["cast"] else ""
    load = " to ".join(f"{x:g}" for x in sorted({min(run["loads"]), max(run["loads"])}))
    exact = any("exact_median" in r for r in run["rows"])
    lines = [
        f"## ComfyUI {run['comfyui']}, {run['dtype']}, guidance {run['guidance']:g}",
        "",
        f"{len(run['captions'])} captions, {run['size']} x {run['size']} pixels, {run['steps']} Euler "
        f"steps; {where['cpu']}, "
        f"{run['threads']} thread, torch {run['torch']}{cast}, {where['date']}; load {load} on "
        f"{where['cores']} cores. Plain sampling took {plain:.2f} s of CPU time.",
        "",
        "| | full calls | seconds | of plain | PSNR | SSIM |" + " to exact |" * exact + " front |",
        "|---|---|---|---|---|---|" + "---|" * exact + "---|",
    ]
    for group, title in GROUPS.items():
        some = [r for r in rows if r["group"] == group]
        if some:
            lines.append(f"| **{title}** | | | | | |" + " |" * exact + " |")
        for r in some:
            sign = "m, w" if id(r) in both else best.get(id(r), "")
            ssim = f"{r['ssim_median']:.4f} / {r['ssim_worst']:.4f}"
            lines.append(
                f"| {name_of(r)} | {r['calls']:g} | {r['seconds']:.2f} | {r['seconds'] / plain:.2f} | "
                f"{_decibel(r, 'psnr')} "
                f"| {ssim} |" + f" {_decibel(r, 'exact')} |" * exact + f" {sign} |"
            )
    if any(r["group"] == "pack" for r in run["rows"]):
        lines += [
            "",
            "Packs, by their commits: "
            + ", ".join(f"{name} ({commit})" for name, commit in run["packs"].items())
            + ".",
        ]
    if exact:
        own = next(r for r in run["rows"] if r["group"] == "exact")
        lines += ["", f"Plain sampling itself: {_decibel(own, 'psnr')} dB to exact, in {plain:.2f} s."]
    errors: dict[str, list[str]] = {}
    for r in run["rows"]:
        if "error" in r:
            errors.setdefault(f"{r['curve']}: {r['error']}", []).append(r["label"])
    if errors:
        lines += ["", "Did not run:", "", *(f"- {error}".rstrip(".") for error in errors)]
    return [*lines, ""]


def page(data: dict) -> str:
    """The results as a page: one table per part."""
    lines = [
        "# Dual Cache and its rivals",
        "",
        "Written by `python -m bench.rivals` from `bench/results/rivals.json`; do not edit.",
        "",
        "The embedded model inside ComfyUI, sampled in every way, its pictures compared with those of "
        "plain sampling of the same",
        "caption and seed: PSNR in dB and SSIM, median / worst. *Seconds* are CPU time of sampling one "
        "picture, median over captions;",
        "all ways took turns, after one run of each that was discarded. *Full calls* ran all blocks. *To "
        "exact*: PSNR to Heun's",
        "method with 25 steps, which stands for what all samplers approximate. *Front*: no other row is "
        "as fast and better, by the",
        "median (m) or by the worst picture (w). EasyCache of ComfyUI adds into the tensor that it is "
        "handed, which in float32 is the",
        "sampler's own; *input protected* hands it a copy. Settings that are not named are those of the "
        "nodes.",
        "",
        "![PSNR against seconds](rivals.png)",
        "",
    ]
    for run in data["runs"]:
        lines += _section(run)
    return "\n".join(lines)


PRESETS_SHOWN = ("quality", "balanced", "adaptive", "planned", "fast", "duca", "fora", "taylorseer")
MEASUREMENTS_ROWS = {
    "plain": "plain sampling",
    "fewer steps, euler": "fewer steps, Euler",
    "fewer steps, dpmpp_2m": "fewer steps, DPM++ 2M",
    "EasyCache, input protected": "ComfyUI's EasyCache (input protected)",
    "LazyCache": "ComfyUI's LazyCache",
    **{name: f"**{name}**" for name in PRESETS_SHOWN},
}
"""Curves of the main comparison in docs/measurements.md, by what they are called there."""
BEGIN, END = "<!-- written by python -m bench.rivals -->", "<!-- end -->"


def measurements_table(data: dict) -> str:
    """The main comparison of docs/measurements.md: presets and rivals on the newer ComfyUI, in float32, at
    guidance 1."""
    run = next(r for r in data["runs"] if r["part"] == "new")
    plain, lines = (
        plain_seconds(run),
        ["| | setting | full calls | time | PSNR | to exact |", "|---|---|---|---|---|---|"],
    )
    for curve, title in MEASUREMENTS_ROWS.items():
        for r in (r for r in run["rows"] if r["curve"] == curve and "seconds" in r):
            likeness = _decibel(r, "psnr"), _decibel(r, "exact")
            if r["group"] == "plain":
                likeness = "", _decibel(next(e for e in run["rows"] if e["group"] == "exact"), "psnr")
            setting = "" if r["group"] == "preset" else r["label"]
            lines.append(
                f"| {title} | {setting} | {r['calls']:g} | {r['seconds'] / plain:.2f} | {likeness[0]} | "
                f"{likeness[1]} |"
            )
    return "\n".join(lines)


def with_table(text: str, data: dict) -> str:
    """docs/measurements.md with its table as measured; ValueError where it has no place for it."""
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"docs/measurements.md must hold {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n{measurements_table(data)}\n{END}{after}"


def picture(data: dict, path: Path) -> None:
    """PSNR against the share of plain sampling's seconds: a column per part, median above, worst below."""
    runs = [r for r in data["runs"] if compared(r)]
    figure = Figure(figsize=(5.6 * len(runs) + 2.6, 10), layout="constrained")
    grid, looks = figure.subplots(2, len(runs), squeeze=False), {}
    marks = cycle("os^vDP")
    for run in runs:
        for group in GROUPS:
            for i, curve in enumerate(
                dict.fromkeys(r["curve"] for r in compared(run) if r["group"] == group)
            ):
                if group != "preset" and (group, curve) not in looks:
                    style = "--" if group == "candidate" else "-"
                    looks[group, curve] = {
                        "color": COLOURS[group][i % len(COLOURS[group])],
                        "marker": next(marks),
                        "markersize": 4,
                        "linewidth": 1.0,
                        "linestyle": style,
                    }
    for column, run in enumerate(runs):
        plain = plain_seconds(run)
        for axes, measure, title in zip(
            grid[:, column], ("psnr_median", "psnr_worst"), ("median", "worst picture")
        ):
            rows = [r for r in compared(run) if r[measure] is not None and r[measure] >= LOWEST]
            lost = [r for r in compared(run) if r[measure] is not None and r[measure] < LOWEST]
            if lost:
                words = "\n".join(f"below: {name_of(r)}, {r[measure]:.1f} dB" for r in lost)
                axes.text(0.02, 0.02, words, transform=axes.transAxes, fontsize=7)
            for (group, curve), look in looks.items():
                points = sorted(
                    (r["seconds"] / plain, r[measure])
                    for r in rows
                    if (r["group"], r["curve"]) == (group, curve)
                )
                if points:
                    axes.plot(*zip(*points), **look)
            for r in (r for r in rows if r["group"] == "preset"):
                x = r["seconds"] / plain
                axes.plot(x, r[measure], "*", color=BLUE, markersize=9, zorder=5)
                axes.annotate(
                    r["label"],
                    (x, r[measure]),
                    xytext=(3, 4),
                    textcoords="offset points",
                    fontsize=7,
                    color=BLUE,
                )
            axes.set(
                title=f"ComfyUI {run['comfyui']}, {run['dtype']}, guidance {run['guidance']:g}: {title}",
                xlim=(0.1, 0.85),
                xlabel="CPU seconds over those of plain sampling",
                ylabel="PSNR to plain sampling (dB)",
            )
            axes.grid(alpha=0.3)
            axes.title.set_fontsize(9)
    keys = [Line2D([], [], label=curve, **look) for (_, curve), look in looks.items()]
    keys.append(Line2D([], [], label="presets", color=BLUE, marker="*", linestyle="", markersize=9))
    figure.legend(handles=keys, loc="outside right center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
