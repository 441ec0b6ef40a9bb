"""The demo: `python -m demo.run`. The embedded model sampled uncached, with three ways of caching, and with
fewer plain steps in equal time.

Writes the pictures, the plan with the time of every step, and a table of calls, measured seconds and likeness
to the uncached pictures."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from cache_core.calibration.planner import plan_for_speedup
from cache_core.calibration.profile import Profile
from cache_core.config import CacheConfig
from cache_core.recipes import from_preset
from cache_core.report.comparison import far_apart
from cache_core.report.metrics import psnr
from cache_core.report.run_report import Report

from .judge import read_right
from .plots import picture_grid, schedule_plot
from .sampler import Sampled, sample, schedule_sigmas
from .scenes import SIZE, Scene, Thing, caption_of
from .weights import PROFILE, WEIGHTS, load_autoencoder, load_judge, load_transformer

PRESETS = ("duca", "balanced", "planned")
SCENES = (
    Scene((Thing("large", "red", "circle", "center"),), "plain", "white"),
    Scene((Thing("medium", "blue", "star", "left"),), "striped", "beige"),
    Scene((Thing("large", "yellow", "heart", "center"),), "gradient", "navy"),
    Scene((Thing("small", "green", "square", "top right"),), "checkered", "gray"),
    Scene((Thing("medium", "purple", "ring", "bottom"),), "dotted", "white"),
    Scene(
        (Thing("small", "orange", "triangle", "left"), Thing("medium", "cyan", "diamond", "right")),
        "plain",
        "black",
    ),
    Scene(
        (Thing("medium", "pink", "heart", "top left"), Thing("small", "blue", "cross", "bottom right")),
        "striped",
        "mint",
    ),
    Scene(
        (Thing("medium", "green", "circle", "top"), Thing("small", "red", "star", "bottom")),
        "gradient",
        "beige",
    ),
)


@dataclass(frozen=True)
class Options:
    """What the demo samples: `scenes` at `size` pixels in `steps` Euler steps, `batch` captions at once, with
    the `presets` as rivals."""

    scenes: tuple[Scene, ...] = SCENES
    steps: int = 30
    guidance: float = 2.0
    size: int = SIZE
    batch: int = 4
    presets: tuple[str, ...] = PRESETS

    @property
    def captions(self) -> list[str]:
        return [caption_of(s) for s in self.scenes]

    @property
    def batches(self) -> int:
        return math.ceil(len(self.scenes) / self.batch)


QUICK = Options(scenes=(SCENES[0], SCENES[5]), steps=12, size=64, batch=1)
"""A tiny run that shows only that everything works."""


@dataclass(frozen=True)
class Run:
    """One way of sampling all captions: measured `seconds`, latents [B,16,h,w], the caching report of each
    batch (none without a cache)."""

    name: str
    steps: int
    seconds: float
    latents: torch.Tensor
    reports: tuple[Report, ...] = ()

    @property
    def kinds(self) -> str:
        """Evaluations by what ran, as counts of full/conservative/aggressive."""
        t = (
            self.reports[0].totals()
            if self.reports
            else {"full": self.steps, "conservative": 0, "aggressive": 0}
        )
        return f"{t['full']}/{t['conservative']}/{t['aggressive']}"

    @property
    def full_calls(self) -> int:
        return self.reports[0].totals()["full_calls"] if self.reports else self.steps


@dataclass(frozen=True)
class Row:
    """A line of the table; PSNR in dB to the uncached pictures, None where they are the same."""

    name: str
    steps: int
    full_calls: int
    kinds: str
    seconds: float
    speedup: float
    psnr_median: float | None
    psnr_worst: float | None
    read_right: int
    pictures: int


def machine() -> dict:
    """What the numbers were measured on: processor, threads, software and date."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next(
            (
                line.split(":", 1)[1].strip()
                for line in info.read_text().splitlines()
                if line.startswith("model name")
            ),
            name,
        )
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": "float32",
        "python": platform.python_version(),
        "system": platform.system(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def equal_time_steps(steps: int, seconds: float, cached_seconds: float) -> int:
    """Plain steps that fit into `cached_seconds` when `steps` of them take `seconds`: rounded half up, at
    least 1.

    ValueError for times not above 0.
    """
    if not (seconds > 0 and cached_seconds > 0):
        raise ValueError("seconds and cached_seconds must be above 0.")
    return max(1, math.floor(steps * cached_seconds / seconds + 0.5))


def finite(values: Sequence[float], pick: Callable) -> float | None:
    """`pick` of the values, or None where that is infinite (equal pictures), for which JSON has no number."""
    value = float(pick(values))
    return value if math.isfinite(value) else None


@torch.no_grad()
def decode(autoencoder, latents: torch.Tensor, batch: int = 4) -> torch.Tensor:
    """Pictures [B,3,8h,8w] in 0..1 of latents [B,16,h,w], `batch` at once."""
    # Channels last is a fifth faster on CPUs and changes the result by rounding only.
    autoencoder = autoencoder.to(memory_format=torch.channels_last)
    parts = [autoencoder.decode(z.to(memory_format=torch.channels_last)) for z in latents.split(batch)]
    return torch.cat(parts).contiguous()


def counting(bar) -> Callable[[Iterable], Iterable]:
    """A `progress` for `sample` that moves one bar over many runs."""

    def wrap(items):
        for item in items:
            yield item
            bar.update()

    return wrap


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first one to the left and the others to the right."""
    width = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(r, width))).rstrip()
        for r in (head, *rows)
    ]
    return "\n".join(lines)


def timed_sample(model, captions, seeds, **options) -> tuple[Sampled, float]:
    """`sample` and the wall seconds it took."""
    start = time.perf_counter()
    out = sample(model, captions, seeds=seeds, **options)
    return out, time.perf_counter() - start


def sample_side_by_side(
    model, ways: dict[str, tuple[int, CacheConfig | None]], options: Options, bar
) -> dict[str, Run]:
    """Samples all captions in each of the named ways (steps, settings).

    The ways take turns batch by batch, so that a drift of the machine's speed hits all alike.
    """
    captions, parts = options.captions, {name: [] for name in ways}
    for first in range(0, len(captions), options.batch):
        some = captions[first : first + options.batch]
        for name, (steps, settings) in ways.items():
            bar.set_description(name)
            parts[name].append(
                timed_sample(
                    model,
                    some,
                    range(first, first + len(some)),
                    steps=steps,
                    guidance=options.guidance,
                    size=options.size,
                    settings=settings,
                    progress=counting(bar),
                )
            )
    return {
        name: Run(
            name,
            ways[name][0],
            sum(s for _, s in done),
            torch.cat([o.latents for o, _ in done]),
            tuple(o.report for o, _ in done if o.report),
        )
        for name, done in parts.items()
    }


def settings_of(preset: str, steps: int) -> CacheConfig:
    """The settings of a preset; one that plans from profiles takes the embedded model's own."""
    settings = from_preset(preset)
    if settings.speedup is None:
        return settings
    return from_preset(
        preset,
        plan_for_speedup(Profile.load(WEIGHTS / PROFILE), schedule_sigmas(steps), settings.speedup).schedule,
    )


def sample_all(model, options: Options, quiet: bool = False) -> list[Run]:
    """The uncached run, one per preset, then the runs with fewer plain steps in the time of each preset, in
    that order."""
    ways = {
        "uncached": (options.steps, None),
        **{p: (options.steps, settings_of(p, options.steps)) for p in options.presets},
    }
    with tqdm(total=options.steps * options.batches * len(ways), disable=quiet) as bar:
        # The first calls allocate and tune; they are not measured.
        bar.set_description("warming up")
        for settings in (None, from_preset(options.presets[0])) if options.presets else (None,):
            sample(
                model,
                options.captions[: options.batch],
                steps=5,
                guidance=options.guidance,
                size=options.size,
                settings=settings,
            )
        runs = sample_side_by_side(model, ways, options, bar)
        rivals: dict[int, list[str]] = {}
        for preset in options.presets:
            rivals.setdefault(
                equal_time_steps(options.steps, runs["uncached"].seconds, runs[preset].seconds), []
            ).append(preset)
        fewer = {f"{n} plain steps (time of {' and '.join(names)})": (n, None) for n, names in rivals.items()}
        bar.total += sum(n for n, _ in fewer.values()) * options.batches
        runs.update(sample_side_by_side(model, fewer, options, bar))
        bar.set_description("sampled")
    return list(runs.values())


def rows_of(
    runs: Sequence[Run], pictures: dict[str, torch.Tensor], judge, scenes: Sequence[Scene]
) -> list[Row]:
    """The table: every run against the first one, which is the uncached one."""
    first, rows = runs[0], []
    for run in runs:
        values = None if run is first else psnr(pictures[run.name], pictures[first.name])
        right = read_right(judge, pictures[run.name], list(scenes))
        rows.append(
            Row(
                run.name,
                run.steps,
                run.full_calls,
                run.kinds,
                run.seconds,
                first.seconds / run.seconds,
                None if values is None else finite(values, median),
                None if values is None else finite(values, min),
                sum(right),
                len(right),
            )
        )
    return rows


def table_text(rows: Sequence[Row]) -> str:
    def decibel(row, value):
        return "" if row is rows[0] else "equal" if value is None else f"{value:.1f}"

    head = ("", "steps", "full calls", "F/C/A", "seconds", "speed-up", "PSNR median", "worst", "read right")
    return text_table(
        head,
        [
            (
                r.name,
                str(r.steps),
                str(r.full_calls),
                r.kinds,
                f"{r.seconds:.2f}",
                f"{r.speedup:.2f}x",
                decibel(r, r.psnr_median),
                decibel(r, r.psnr_worst),
                f"{r.read_right} of {r.pictures}",
            )
            for r in rows
        ],
    )


def scattered(rows: Sequence[Row]) -> str:
    """A sentence where rivals that were to take the time of a preset took another; empty where none did."""
    seconds, far = {r.name: r.seconds for r in rows}, []
    for r in rows:
        presets = r.name.removesuffix(")").partition("(time of ")[2]
        if any(far_apart(r.seconds, seconds[p]) for p in presets.split(" and ") if p in seconds):
            far.append(r.name)
    return (
        f"Times scattered on this machine: read {' and '.join(far)} by calls, not by time.\n" if far else ""
    )


def run_demo(out: Path, options: Options, quiet: bool = False) -> list[Row]:
    """Samples, measures and writes grid.png, schedule.png, table.txt and table.json into `out`."""
    model, autoencoder, judge = load_transformer(), load_autoencoder(), load_judge()
    runs = sample_all(model, options, quiet)
    pictures = {
        run.name: decode(autoencoder, run.latents) for run in tqdm(runs, desc="decoding", disable=quiet)
    }
    rows = rows_of(runs, pictures, judge, options.scenes)
    out.mkdir(parents=True, exist_ok=True)
    where = machine()
    picture_grid(
        {
            f"{r.name.replace(' (', chr(10) + '(')}\n{r.full_calls} full calls\n{r.seconds:.1f} s": pictures[
                r.name
            ]
            for r in rows
        },
        options.captions,
        out / "grid.png",
        f"{options.steps} Euler steps, guidance {options.guidance:g}, {where['cpu']}",
    )
    schedule_plot(
        {run.name: run.reports[0] for run in runs if run.reports},
        out / "schedule.png",
        f"milliseconds measured for a batch of {min(options.batch, len(options.scenes))} with guidance "
        f"on {where['cpu']}",
    )
    text = (
        f"{table_text(rows)}\n\n{len(options.scenes)} captions, {options.size} px, Euler, guidance "
        f"{options.guidance:g}; "
        f"seconds measured for all captions on {where['cpu']}, {where['threads']} thread(s).\n"
        "Full calls per batch; PSNR in dB to the uncached pictures; read right: shape and colour as "
        "told, by a classifier.\n"
        f"{scattered(rows)}"
    )
    (out / "table.txt").write_text(text, encoding="utf-8")
    settings = {
        "captions": options.captions,
        "steps": options.steps,
        "guidance": options.guidance,
        "size": options.size,
        "batch": options.batch,
        "seeds": list(range(len(options.scenes))),
        "sampler": "euler",
    }
    data = {
        "format": 1,
        "kind": "demo",
        "machine": where,
        "settings": settings,
        "rows": [asdict(r) for r in rows],
        "reports": {run.name: [r.to_dict() for r in run.reports] for run in runs if run.reports},
    }
    (out / "table.json").write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if not quiet:
        print(text)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/demo"),
        help="folder for grid.png, schedule.png, table.txt and table.json",
    )
    parser.add_argument("--quick", action="store_true", help="two tiny pictures, to see that it works")
    args = parser.parse_args(arguments)
    start = time.perf_counter()
    run_demo(args.out, QUICK if args.quick else Options())
    print(f"Wrote {args.out} in {time.perf_counter() - start:.0f} seconds.")


if __name__ == "__main__":
    main()
