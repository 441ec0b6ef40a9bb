"""What a profile is worth away from where it was recorded: `python -m bench.transfer`.

Plans from the embedded model's own profile (30 steps, guidance 2, 256 px) are judged on captions that it has
not seen, at every budget and at other guidance, step counts and sizes, beside fewer steps and an even linear
forecast with the same number of full calls. The error that a plan expects stands beside the measured one.
Replaces the judged places in transfer.json and writes docs/profiles.md."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from cache_core.calibration.planner import Plan, plan_for_speedup
from cache_core.calibration.profile import Profile
from cache_core.config import CacheConfig
from cache_core.predictors.extrapolation import predictor
from cache_core.recipes import from_preset
from cache_core.report.metrics import psnr
from cache_core.schedule.plan import explicit
from demo.run import decode, finite, machine
from demo.sampler import noise_for, sample, schedule_sigmas
from demo.scenes import SIZE
from demo.weights import PROFILE, WEIGHTS, load_autoencoder, load_transformer

from .profile import settings_for
from .quality import WARMUP, prompts

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "transfer.json", HERE.parent / "docs" / "profiles.md"
LEAD = 3.0
"""dB above the better rival that a plan should have in the median."""
FEWER, LINEAR, TOKENS, PLANNED = "fewer steps", "linear 0.9, even", "by token (TAP), even", "planned"
RIVALS = (FEWER, LINEAR)


@dataclass(frozen=True)
class Place:
    """Where plans are judged."""

    steps: int = 30
    guidance: float = 2.0
    size: int = SIZE
    speedups: tuple[float, ...] = (2.0, 3.0, 5.0)

    @property
    def name(self) -> str:
        return f"{self.steps} steps, guidance {self.guidance:g}, {self.size} px"


PLACES = (
    Place(speedups=(1.5, 2.0, 3.0, 4.0, 6.0)),
    Place(guidance=1.0),
    Place(guidance=4.0),
    Place(steps=20),
    Place(steps=40),
    Place(size=320),
)


def even(steps: int, full: int) -> str:
    """Kinds with `full` full steps: the warm-up, then evenly spaced."""
    first = min(WARMUP, full)
    places = set(range(first)) | {
        first + (steps - first) * (i + 1) // (full - first + 1) for i in range(full - first)
    }
    return "".join("F" if i in places else "A" for i in range(steps))


def ways(place: Place, made: Plan) -> dict[str, tuple[int, CacheConfig | None]]:
    """Steps and settings of each run with as many full calls as the plan."""
    calls = len(made.schedule.full_steps)
    kinds = explicit(even(place.steps, calls))
    forecasts = {LINEAR: predictor("linear", gain=0.9), TOKENS: from_preset("balanced").predictor}
    return {
        FEWER: (calls, None),
        **{name: (place.steps, CacheConfig(schedule=kinds, predictor=p)) for name, p in forecasts.items()},
        PLANNED: (place.steps, settings_for(made)),
    }


def judge(
    model, autoencoder, profile: Profile, place: Place, captions: Sequence[str], batch: int, bar=None
) -> list[dict]:
    """One row per speed-up: quality of each way, and the plan's expected and measured error at the end.

    The measured error is the distance of the latents to the uncached ones over the length of the path from
    the noise, as the expected one is that of the summed features."""
    plans = {s: plan_for_speedup(profile, schedule_sigmas(place.steps), s) for s in place.speedups}
    found = {s: {name: [] for name in ways(place, made)} for s, made in plans.items()}
    measured = {s: [] for s in plans}
    for first in range(0, len(captions), batch):
        some, seeds = (
            list(captions[first : first + batch]),
            range(first, first + len(captions[first : first + batch])),
        )
        common = {"seeds": seeds, "guidance": place.guidance, "size": place.size}
        truth = sample(model, some, steps=place.steps, **common).latents
        pictures, path = (
            decode(autoencoder, truth),
            (truth - noise_for(seeds, place.size)).flatten(1).norm(dim=1),
        )
        for s, made in plans.items():
            for name, (steps, settings) in ways(place, made).items():
                out = sample(model, some, steps=steps, settings=settings, **common).latents
                found[s][name] += psnr(decode(autoencoder, out), pictures)
                if name == PLANNED:
                    measured[s] += ((out - truth).flatten(1).norm(dim=1) / path).tolist()
                if bar is not None:
                    bar.update()
    return [
        {
            "speedup": s,
            "full_calls": len(made.schedule.full_steps),
            "kinds": made.schedule.kinds,
            "expected": made.final,
            "measured": sum(measured[s]) / len(measured[s]),
            "psnr": {
                name: [finite(values, median), finite(values, min)] for name, values in found[s].items()
            },
        }
        for s, made in plans.items()
    ]


def lead(row: dict) -> tuple[float, float]:
    """How far the plan lies above the better of its rivals, median and worst, in dB."""
    return tuple(row["psnr"][PLANNED][i] - max(row["psnr"][rival][i] for rival in RIVALS) for i in range(2))


def page(data: dict) -> str:
    """The results as a page."""
    said = data["machine"]
    lines = [
        "# What a profile is worth",
        "",
        "Written by `python -m bench.transfer` from `bench/results/transfer.json`; do not edit.",
        "",
        f"One profile of the embedded model ({data['profile']}), {len(data['prompts'])} other captions, "
        f"{said['cpu']}, {said['threads']} thread(s), torch {said['torch']}, {said['date']}.",
        "",
        "PSNR in dB to the uncached picture of the same caption and seed, median / worst; all of a row "
        "spend the same full calls.",
        "*Lead*: the plan's distance from the better of fewer steps and the even linear forecast. "
        "*Error*: what the plan expected",
        "at the end of the path beside what was measured, both relative to its length.",
        "",
        "Plans have full and aggressive steps only. The planner places no conservative steps: on this "
        "model they cost more than",
        "aggressive ones and come less close (measurements.md), and a profile of final hidden states "
        "cannot tell what they would gain.",
        "",
    ]
    for place in data["places"]:
        names = list(place["rows"][0]["psnr"])
        lines += [
            f"## {place['name']}",
            "",
            "| calls | " + " | ".join(names) + " | lead | error, expected / measured |",
            "|---" * (len(names) + 3) + "|",
        ]
        for row in place["rows"]:
            cells = " | ".join("{:.1f} / {:.1f}".format(*row["psnr"][name]) for name in names)
            ahead = "{:+.1f} / {:+.1f}".format(*lead(row))
            lines.append(
                f"| {row['full_calls']} | {cells} | {ahead} | {row['expected']:.4f} / {row['measured']:.4f} |"
            )
        lines.append("")
    rows = [(place["name"], row) for place in data["places"] for row in place["rows"]]
    short = [f"{name}, {row['full_calls']} calls" for name, row in rows if lead(row)[0] < LEAD]
    behind = [f"{name}, {row['full_calls']} calls" for name, row in rows if lead(row)[1] < 0]
    lines += [
        "## Where it falls short",
        "",
        f"Of {len(rows)} rows the median leads by less than {LEAD:g} dB in {len(short)}"
        + (f": {'; '.join(short)}." if short else "."),
        "",
        f"The worst picture is behind a rival's worst in {len(behind)}"
        + (f": {'; '.join(behind)}." if behind else "."),
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--places",
        type=int,
        nargs="+",
        default=list(range(len(PLACES))),
        help="numbers of the places to judge",
    )
    parser.add_argument("--profile", type=Path, default=WEIGHTS / PROFILE)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="only write the page again")
    args = parser.parse_args(arguments)
    if not args.page:
        torch.set_num_threads(args.threads)
        model, autoencoder, profile = load_transformer(), load_autoencoder(), Profile.load(args.profile)
        captions, places = prompts(args.prompts), [PLACES[i] for i in args.places]
        total = sum(len(p.speedups) for p in places) * 4 * -(-len(captions) // args.batch)
        with tqdm(total=total, unit="run") as bar:
            judged = [
                {
                    "name": p.name,
                    "steps": p.steps,
                    "guidance": p.guidance,
                    "size": p.size,
                    "rows": judge(model, autoencoder, profile, p, captions, args.batch, bar),
                }
                for p in places
            ]
        old = json.loads(args.out.read_text(encoding="utf-8"))["places"] if args.out.exists() else []
        by_name = {place["name"]: place for place in [*old, *judged]}
        data = {
            "format": 1,
            "kind": "transfer_bench",
            "machine": machine(),
            "profile": args.profile.name,
            "prompts": captions,
            "places": [by_name[p.name] for p in PLACES if p.name in by_name],
        }
        args.out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if args.out == RESULTS:
        PAGE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
