"""Methods that learn from a profile, at the same full calls on the embedded model: `python -m
bench.calibrated`.

ERTACache whole and in parts, HyCa's pool with clusters of channels from the profile, and weights solved for
each cluster, beside the plan that whole features give and fewer steps. 12 captions teach, 16 others judge. A
run replaces what it measures in calibrated.json; docs/calibrated.md is written from all runs."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from cache_core.calibration.ertacache import ErtaPlan, erta_plan, reuse_ratios, reuse_set, threshold_for
from cache_core.calibration.planner import Plan, plan, pooled, solved
from cache_core.calibration.profile import Profile
from cache_core.config import CacheConfig
from cache_core.recipes import parts_of_plan, preset, settings_of
from cache_core.schedule.plan import uniform
from demo.run import machine
from demo.scenes import SIZE
from demo.weights import load_autoencoder, load_transformer

from .forecasts import leads, place
from .profile import calibration, jobs, record, settings_for
from .quality import WARMUP, Config, measure, prompts

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "calibrated.json", HERE.parent / "docs" / "calibrated.md"
CLUSTERS = 4
FEWER, PLANNED = "fewer steps, Euler", "planned"
POOL = settings_of(preset("hyca")).predictor.pool
ROWS = {
    FEWER: "That many Euler steps, nothing cached.",
    PLANNED: "Full steps and weights from the Gram matrices of whole features (Plan Cache).",
    "planned by cluster": f"The same full steps, weights solved for each of {CLUSTERS} clusters of channels.",
    "planned by cluster, own steps": "Full steps by the costs of the clusters too.",
    "HyCa's pool by cluster": "The planned full steps; each cluster takes the rule of HyCa's pool that "
    "serves it best in the profile.",
    "ERTACache": "Its reuse set, step lengths and rectifier.",
    "ERTACache, no step lengths": "Its reuse set and rectifier at even noise levels.",
    "ERTACache, no rectifier": "Its reuse set and step lengths.",
    "ERTACache, reuse set alone": "Its reuse set: output minus latent, kept as it was.",
    "rectifier on planned steps": "The planned full steps with its residual and rectifier.",
}


def _cached(name: str, steps: int, budget: int, made: Plan | ErtaPlan) -> Config:
    """A row; an ERTA plan has noise levels, and perhaps steps, of its own."""
    schedule = made.schedule
    levels = made.sigmas if isinstance(made, ErtaPlan) else None
    settings = (
        settings_for(made) if levels is None else CacheConfig(method="ertacache", **parts_of_plan(schedule))
    )
    return Config(
        "calibrated",
        name,
        steps,
        schedule.steps,
        settings=settings,
        sigmas=levels,
        parts={
            "budget": budget,
            "ratio": 0.0,
            "sigmas": levels and list(levels),
            "expected": max(made.expected),
        },
    )


def configurations(profile: Profile, budgets: Sequence[int], rows: Sequence[str]) -> list[Config]:
    """The uncached run and the named rows at these numbers of full steps. ERTACache may have less where no
    threshold gives so many."""
    steps, ratios, out = (
        profile.steps,
        reuse_ratios(profile),
        [Config("uncached", "uncached", profile.steps, profile.steps)],
    )
    for budget in budgets:
        made = plan(profile, budget, "power")
        full, own = made.schedule.full_steps, reuse_set(ratios, threshold_for(ratios, budget))
        ways = {
            PLANNED: lambda made=made: made,
            "planned by cluster": lambda full=full: solved(profile, full, clusters=True),
            "planned by cluster, own steps": lambda budget=budget: plan(
                profile, budget, "power", clusters=True
            ),
            "HyCa's pool by cluster": lambda full=full: pooled(profile, full, POOL),
            "ERTACache": lambda own=own: erta_plan(profile, own),
            "ERTACache, no step lengths": lambda own=own: erta_plan(profile, own, lengths=False),
            "ERTACache, no rectifier": lambda own=own: erta_plan(profile, own, rectify=False),
            "ERTACache, reuse set alone": lambda own=own: erta_plan(
                profile, own, lengths=False, rectify=False
            ),
            "rectifier on planned steps": lambda full=full: erta_plan(profile, full, lengths=False),
        }
        for name in rows:
            if name == FEWER:
                out.append(Config("fewer", name, steps, budget, parts={"budget": budget}))
            else:
                out.append(_cached(name, steps, budget, ways[name]()))
    return out


def page(data: dict) -> str:
    """The results as a page."""
    lines = [
        "# Methods that learn from a profile",
        "",
        "Written by `python -m bench.calibrated` from `bench/results/calibrated.json`; do not edit.",
        "",
        "PSNR in dB to the uncached picture of the same caption and seed, median / worst, at the same "
        "number of full",
        "calls; in brackets the calls where a method has fewer. Embedded model, 256 px.",
        "",
    ]
    for run in data["runs"]:
        rows = [r for r in run["rows"] if r["psnr_median"] is not None]
        budgets = sorted({r["budget"] for r in rows}, reverse=True)
        lines += [
            f"## {run['steps']} steps, guidance {run['guidance']:g}",
            "",
            f"{len(run['prompts'])} captions; learned from {run['learned']} others. {place(run['machine'])}.",
            "",
            "| | " + " | ".join(f"{b} calls" for b in budgets) + " |",
            "|---" * (len(budgets) + 1) + "|",
        ]
        for name in ROWS:
            own = {r["budget"]: r for r in rows if r["curve"] == name}
            if own:
                lines.append(f"| {name} | " + " | ".join(_cell(own.get(b), rows) for b in budgets) + " |")
        lines += ["", *leads(rows, [n for n in ROWS if n not in (FEWER, PLANNED)], (FEWER, PLANNED)), ""]
    measured = {r["curve"] for run in data["runs"] for r in run["rows"]}
    return "\n".join(
        [*lines, *(f"- *{name}*: {about}" for name, about in ROWS.items() if name in measured), ""]
    )


def _cell(r: dict | None, rows: Sequence[dict]) -> str:
    if r is None:
        return ""
    best = r["psnr_median"] == max(x["psnr_median"] for x in rows if x["budget"] == r["budget"])
    text = ("**{:.1f}** / {:.1f}" if best else "{:.1f} / {:.1f}").format(r["psnr_median"], r["psnr_worst"])
    return text if r["full_calls"] == r["budget"] else f"{text} ({r['full_calls']})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--learn", type=int, default=12, help="captions to learn from")
    parser.add_argument("--prompts", type=int, default=16, help="other captions to judge on")
    parser.add_argument(
        "--intervals",
        type=int,
        nargs="+",
        default=[3, 5, 7],
        help="budgets are those of uniform plans with these intervals",
    )
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        default=list(ROWS),
        help="rows to measure; the others stay as they are",
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="only write the page again")
    args = parser.parse_args(arguments)
    data = (
        json.loads(args.out.read_text(encoding="utf-8"))
        if args.out.exists()
        else {"format": 1, "kind": "calibrated_bench", "runs": []}
    )
    if not args.page:
        torch.set_num_threads(args.threads)
        model, start = load_transformer(), time.perf_counter()
        profile = record(
            model,
            jobs(calibration(args.learn), args.steps, args.guidance, args.batch, args.size),
            clusters=CLUSTERS,
        )
        print(f"recorded after {time.perf_counter() - start:.0f} s", flush=True)
        budgets = [len(uniform(args.steps, n, warmup=WARMUP).full_steps) for n in args.intervals]
        about = {
            "steps": args.steps,
            "guidance": args.guidance,
            "prompts": prompts(args.prompts),
            "learned": args.learn,
            "size": args.size,
        }
        configs = configurations(profile, budgets, args.rows)
        _replace(
            data,
            about,
            measure(
                model, load_autoencoder(), configs, about["prompts"], args.batch, args.guidance, args.size
            ),
        )
    args.out.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if args.out == RESULTS:
        PAGE.write_text(page(data), encoding="utf-8")
    print(page(data))


def _replace(data: dict, about: dict, rows: list[dict]) -> None:
    """Puts measured rows into the run of the same settings, or into a new one."""
    run = next((r for r in data["runs"] if all(r[k] == v for k, v in about.items())), None)
    if run is None:
        run = {**about, "rows": []}
        data["runs"] = sorted([*data["runs"], run], key=lambda r: (r["steps"], r["guidance"]))
    new = {(r["curve"], r.get("budget")) for r in rows}
    run.update(
        machine=machine(), rows=[*(r for r in run["rows"] if (r["curve"], r.get("budget")) not in new), *rows]
    )


if __name__ == "__main__":
    main()
