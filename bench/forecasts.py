"""Every forecast on the embedded model at the same full steps: `python -m bench.forecasts`.

All cached runs of one interval share their schedule (3 full steps, then one every N), so that only the
forecast and the level differ,
beside the same number of full calls as fewer Euler steps. Each run of the command measures
    one step count at one guidance, or the cost of a step, and replaces that part of forecasts.json; the page
    docs/forecasts.md is written from all of them."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from cache_core.recipes import PRESETS, settings_of
from demo.run import machine
from demo.scenes import SIZE
from demo.weights import load_autoencoder, load_transformer

from .quality import WARMUP, Config, measure, prompts, realised

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "forecasts.json", HERE.parent / "docs" / "forecasts.md"


def _at(name: str, **more) -> dict:
    return {"predictor": {"name": name, **more}}


def _recipe(name: str, **changes) -> dict:
    """The parts of a recipe that comes with the pack."""
    return {
        **{
            k: v
            for k, v in PRESETS[name].items()
            if k not in ("about", "source", "measured", "generator", "kinds", "families")
        },
        **changes,
    }


INDEX = {"coordinate": "index"}
ROWS: dict[str, dict] = {
    "reuse (FORA)": _at("reuse"),
    "linear": _at("linear"),
    "linear, gain 0.9": _at("linear", gain=0.9),
    "linear, gain 0.7": _at("linear", gain=0.7),
    "linear, gain 0.5": _at("linear", gain=0.5),
    "linear over log-SNR": _at("linear", coordinate="log_snr"),
    "linear, least squares": _at("linear", gain=0.9, adapt="least_squares"),
    "linear, back-off": _at("linear", gain=0.9, adapt="back_off"),
    "newton 2, least squares": _at("newton", order=2, gain=0.9, adapt="least_squares"),
    "newton 2, back-off": _at("newton", order=2, gain=0.9, adapt="back_off"),
    "newton 2": _at("newton", order=2),
    "TaylorSeer-Lite, order 2": _recipe("taylorseer-lite"),
    "RK2": _at("rk2", **INDEX),
    "BDF2": _at("bdf2", **INDEX),
    "Adams-Moulton": _at("adams_moulton", **INDEX),
    "FoCa forecast": _at("foca", **INDEX),
    "FoCa forecast, gain 0.9": _at("foca", gain=0.9, **INDEX),
    "FoCa forecast, back-off": _at("foca", adapt="back_off", **INDEX),
    "HiCache, final": _at("hermite", order=2),
    "mean velocity, K = 2": _at("mean_velocity", order=1),
    "mean velocity, K = 3": _at("mean_velocity", order=2),
    "Spectrum": _recipe("spectrum"),
    "Spectrum, corrected": _recipe("spectrum corrected"),
    "FreqCa": _recipe("freqca"),
    "TAP": _recipe("tap"),
    "DiCache": _recipe("dicache"),
    "Delta-DiT": _recipe("delta-dit"),
    "AB-Cache, output": _recipe("ab-cache"),
    "MeanCache, output": _recipe("meancache"),
    "HyCa, blocks": _recipe("hyca"),
    "TaylorSeer, modules": _recipe("taylorseer"),
    "FoCa, modules": _recipe("foca"),
    "HiCache, modules": _recipe("hicache"),
}
SHORT = (
    "reuse (FORA)",
    "linear",
    "linear, gain 0.9",
    "linear, gain 0.7",
    "linear, least squares",
    "linear, back-off",
    "FoCa forecast",
    "TaylorSeer-Lite, order 2",
    "Spectrum, corrected",
    "HiCache, final",
    "AB-Cache, output",
    "HyCa, blocks",
    "TaylorSeer, modules",
    "TAP",
)
"""What is measured with guidance, where a picture costs twice as much."""


def config(name: str, steps: int, interval: int) -> Config:
    """One row of the table at an interval."""
    parts = {
        **ROWS[name],
        "name": name,
        "generator": {"type": "uniform", "interval": interval, "warmup": WARMUP},
    }
    settings = settings_of(parts)
    about = {
        "interval": interval,
        "level": settings.level,
        "predictor": settings.predictor.name,
        "recipe": ROWS[name],
        "ratio": 0.0,
    }
    return Config(name, name, steps, steps, settings=settings, parts=about)


def configurations(steps: int, intervals: Sequence[int], names: Sequence[str]) -> list[Config]:
    """The uncached run, fewer steps, and every named row, at each interval."""
    cached = [config(name, steps, n) for name in names for n in intervals]
    calls = {c.full_calls: c.parts["interval"] for c in cached}
    fewer = [
        Config("fewer", "fewer steps, Euler", steps, n, parts={"interval": interval})
        for n, interval in calls.items()
    ]
    return [Config("uncached", "uncached", steps, steps), *fewer, *cached]


COSTED = (
    "reuse (FORA)",
    "linear, gain 0.9",
    "linear, least squares",
    "Spectrum, corrected",
    "FreqCa",
    "TAP",
    "DiCache",
    "Delta-DiT",
    "AB-Cache, output",
    "HyCa, blocks",
    "TaylorSeer, modules",
    "FoCa, modules",
)
"""Rows whose steps are timed."""


def best(runs: Sequence[dict]) -> dict[str, dict]:
    """Per interval and measure the row that leads, over all runs; for the page and whoever chooses a
    default."""
    found: dict[str, dict] = {}
    for run in runs:
        for r in run["rows"]:
            if r["psnr_median"] is None:
                continue
            key = f"{run['steps']} steps, guidance {run['guidance']:g}, {r['full_calls']} calls"
            for measure_of in ("psnr_median", "psnr_worst"):
                old = found.setdefault(key, {}).get(measure_of)
                if old is None or r[measure_of] > old[1]:
                    found[key][measure_of] = (r["curve"], r[measure_of])
    return found


def place(machine: dict) -> str:
    return f"{machine['cpu']}, {machine['threads']} thread(s), torch {machine['torch']}, {machine['date']}"


def by_aggressive(row: dict) -> float:
    """Realised over ideal speed-up where full steps take as long as plain ones, from the measured cost of an
    aggressive step."""
    full, steps = row["full_calls"], row["steps"]
    return steps / (full + (steps - full) * row["step_cost"]["A"]) / row["ideal"]


def leads(rows: Sequence[dict], names: Sequence[str], rivals: Sequence[str]) -> list[str]:
    """How far named rows lie from each rival at equal budgets, in sentences that hold whatever the numbers
    are; blank lines between."""
    of = {(r["curve"], r["budget"]): r["psnr_median"] for r in rows}
    budgets, lines = sorted({b for _, b in of}, reverse=True), []
    for rival in rivals:
        apart = {
            n: [f"{of[n, b] - of[rival, b]:+.1f}" for b in budgets if (n, b) in of and (rival, b) in of]
            for n in names
        }
        found = [f"{name} ({', '.join(values)})" for name, values in apart.items() if values]
        if found:
            lines += [f"Against *{rival}*, dB of the median at falling budgets: {'; '.join(found)}.", ""]
    return lines[:-1]


def page(data: dict) -> str:
    """The results as a page: one table per run, median and worst PSNR per number of full calls."""
    lines = [
        "# Forecasts compared",
        "",
        "Written by `python -m bench.forecasts` from `bench/results/forecasts.json`; do not edit.",
        "",
        "PSNR in dB to the uncached picture of the same caption and seed, median / worst. Every cached "
        "run of a column has the same",
        f"full steps: {WARMUP} at the beginning, then one every N. *Fewer steps* are that many Euler "
        "steps. Embedded model.",
        "",
    ]
    for run in data["runs"]:
        rows = [r for r in run["rows"] if r["psnr_median"] is not None]
        columns = sorted({r["full_calls"] for r in rows}, reverse=True)
        lines += [
            f"## {run['steps']} steps, guidance {run['guidance']:g}",
            "",
            f"{len(run['prompts'])} captions, {place(run['machine'])}.",
            "",
            "| | " + " | ".join(f"{c} calls" for c in columns) + " |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for name in dict.fromkeys(r["curve"] for r in rows):
            cells = []
            for c in columns:
                r = next((r for r in rows if r["curve"] == name and r["full_calls"] == c), None)
                lead = r is not None and r["psnr_median"] == max(
                    x["psnr_median"] for x in rows if x["full_calls"] == c
                )
                form = "**{:.1f}** / {:.1f}" if lead else "{:.1f} / {:.1f}"
                cells.append("" if r is None else form.format(r["psnr_median"], r["psnr_worst"]))
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    if "cost" in data:
        cost = data["cost"]
        lines += [
            "## What a step costs",
            "",
            f"Side by side, {cost['rounds']} rounds, N = 5, {cost['batch']} pictures at a time, "
            f"{place(cost['machine'])}. F and A: median time of a full and of an"
            " aggressive step over one of plain sampling. Ideal: by FLOPs. A full step does no more than "
            "keep what it saw, so"
            " how far F lies from 1 shows how noisy the machine was. The last column counts it as 1.",
            "",
            "| | F | A | ideal speed-up | realised | realised over ideal | by the cost of A alone |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {r['name']} | {r['step_cost']['F']:.3f} | {r['step_cost']['A']:.3f} | {r['ideal']:.2f} | "
            f"{r['speedup']:.2f} | "
            f"{r['realised_over_ideal']:.2f} | {by_aggressive(r):.2f} |"
            for r in cost["rows"]
        ]
        lines.append("")
    return "\n".join(lines)


def run(args) -> dict:
    """Measures one step count at one guidance."""
    start, captions = time.perf_counter(), prompts(args.prompts)
    names = args.rows or (list(ROWS) if args.guidance == 1 else SHORT)
    rows = measure(
        load_transformer(),
        load_autoencoder(),
        configurations(args.steps, args.intervals, names),
        captions,
        args.batch,
        args.guidance,
        SIZE,
    )
    return {
        "steps": args.steps,
        "guidance": args.guidance,
        "intervals": args.intervals,
        "prompts": captions,
        "machine": machine(),
        "bench_seconds": round(time.perf_counter() - start, 1),
        "rows": rows,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON whose part is replaced")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--intervals", type=int, nargs="+", default=[3, 4, 5, 6, 7])
    parser.add_argument("--prompts", type=int, default=16, help="number of captions")
    parser.add_argument("--batch", type=int, default=8, help="captions per model call")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        help="rows of the table (default: all, or the short list above guidance 1)",
    )
    parser.add_argument(
        "--cost",
        type=int,
        metavar="ROUNDS",
        help="instead time each kind of step side by side, this many rounds of N = 5",
    )
    parser.add_argument("--page", action="store_true", help="only write the page again")
    args = parser.parse_args(arguments)
    if not args.page:
        torch.set_num_threads(args.threads)
        empty = {"format": 1, "kind": "forecast_bench", "runs": []}
        data = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else empty
        if args.cost:
            configs, some = {name: config(name, args.steps, 5) for name in COSTED}, prompts(args.batch)
            rows = realised(load_transformer(), configs, args.steps, args.cost, SIZE, some)
            data["cost"] = {"machine": machine(), "batch": args.batch, "rounds": args.cost, "rows": rows}
        else:
            data["runs"] = sorted(
                [
                    *(r for r in data["runs"] if (r["steps"], r["guidance"]) != (args.steps, args.guidance)),
                    run(args),
                ],
                key=lambda r: (r["guidance"], -r["steps"]),
            )
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    data = json.loads(args.out.read_text(encoding="utf-8"))
    if args.out == RESULTS:
        PAGE.write_text(page(data), encoding="utf-8")
    print(page(data))
    for key, leads in best(data["runs"]).items():
        print(key, "|", "; ".join(f"{m}: {name} {value:.1f}" for m, (name, value) in leads.items()))


if __name__ == "__main__":
    main()
