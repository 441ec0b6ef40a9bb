"""Masks of modules on the embedded model, at equal work: `python -m bench.masks`.

What a step computes is chosen module by module: by BAC's plans from a profile of the modules, by a split of
    the blocks as in ProfilingDiT (one delta per run of blocks, or their modules replayed), or by a router
    that was trained (`--train`, a few minutes each).
Rivals of the same FLOPs: fewer steps, FORA, and plans of whole steps from the same profile. A run measures
    the rows that it is asked for and replaces them in masks.json; docs/masks.md is written from all of them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from cache_core.calibration.bac import block_mask, reuse_error, shared_mask
from cache_core.calibration.planner import plan
from cache_core.calibration.profile import Profile
from cache_core.config import CacheConfig
from cache_core.schedule.cost import CostModel
from cache_core.schedule.mask_files import split_mask
from cache_core.schedule.masks import Mask
from cache_core.schedule.plan import uniform
from demo.run import machine
from demo.scenes import SIZE
from demo.weights import load_autoencoder, load_transformer

from .forecasts import leads, place
from .profile import calibration, jobs, record, settings_for
from .quality import WARMUP, Config, cost_of, measure, prompts
from .routers import train

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "masks.json", HERE.parent / "docs" / "masks.md"
TOKENS = 32
"""Rows of every module that the profile looks at."""
TOP = 3
"""Modules that the union repairs at most; the paper leaves their number open."""
ROWS = {
    "fewer steps, Euler": "That many Euler steps, nothing cached.",
    "FORA, final state": "Uniform full steps, the final hidden state reused between.",
    "FORA, modules": "Uniform full steps, module outputs reused between and gated anew: FORA as published.",
    "whole steps, reuse": "Full steps planned for the least reuse error of all modules together.",
    "BAC, cosine": "Each module planned by itself, the published objective, without the union.",
    "BAC, cosine, union": f"The same with the published union for the worst 1 to {TOP} modules, at fewer "
    "refreshes.",
    "BAC, error": "Each module planned by itself for the least reuse error.",
    "BAC, error, union": f"The same with the union for the worst 1 to {TOP} modules.",
    "split of blocks": "The blocks that change most run at every step, the others at some, and their "
    "modules are replayed between.",
    "split of blocks, runs": "The same with one delta per run of neighbouring blocks added between: "
    "ProfilingDiT as published.",
    "trained router": "As HarmoniCa: scores trained on other captions, held to the budget.",
    "planned, final state": "Full steps and forecast weights planned from the profile of the final "
    "hidden state.",
}


def dearest(masks: Iterable[Mask], share: float, cost: CostModel) -> Mask:
    """Of some masks the one of most work that is not above the share; ValueError where all are."""
    fit = [m for m in masks if cost.share(m) <= share + 1e-9]
    if not fit:
        raise ValueError(f"no mask does with {share:.2f} of the work.")
    return max(fit, key=cost.share)


def split_of(profile: Profile, budget: int, cost: CostModel, runs: bool = False) -> Mask:
    """As many foreground blocks as leave the others half of the refreshes that a plan of whole steps would
    have; runs: see `split_mask`."""
    steps, parts = profile.steps, {}
    for name, gram in profile.modules.items():
        parts.setdefault(".".join(name.split(".")[:2]), []).append(reuse_error(gram))
    worst = sorted(parts, key=lambda b: -sum(parts[b]) / len(parts[b]))
    for front in range(len(worst) - 1, 0 if runs else -1, -1):
        evenly = ({i * steps // n for i in range(n)} for n in range(-(-budget // 2), budget + 1))
        made = [split_mask(steps, parts, worst[front:], refresh, runs=runs) for refresh in evenly]
        fit = [m for m in made if cost.share(m) <= budget / steps]
        if fit:
            return max(fit, key=cost.share)
    raise ValueError(f"no split does with {budget} of {steps} steps.")


def masks_for(profile: Profile, budget: int, cost: CostModel) -> dict[str, Mask]:
    """The masks that do with the work of `budget` full steps."""
    share = budget / profile.steps

    def union(objective: str) -> Mask:
        return dearest(
            (block_mask(profile, m, objective, top) for m in range(1, budget) for top in range(1, TOP + 1)),
            share,
            cost,
        )

    try:
        runs = {"split of blocks, runs": split_of(profile, budget, cost, runs=True)}
    except ValueError:  # of few blocks a single one at every step is too much
        runs = {}
    return {
        "whole steps, reuse": shared_mask(profile, budget),
        "BAC, cosine": block_mask(profile, budget, "cosine"),
        "BAC, cosine, union": union("cosine"),
        "BAC, error": block_mask(profile, budget),
        "BAC, error, union": union("error"),
        "split of blocks": split_of(profile, budget, cost),
        **runs,
    }


def configurations(
    profile: Profile, intervals: Sequence[int], cost: CostModel, trained: dict[int, Mask], rows: Sequence[str]
) -> list[Config]:
    """The uncached run and the named rows at the budgets of uniform plans with these intervals."""
    steps, out = profile.steps, [Config("uncached", "uncached", profile.steps, profile.steps)]
    for interval in intervals:
        even = uniform(steps, interval, warmup=WARMUP)
        budget = len(even.full_steps)
        masks = masks_for(profile, budget, cost)
        masks.update({"trained router": trained[budget]} if budget in trained else {})
        ways: dict[str, Callable[[], CacheConfig]] = {
            "FORA, final state": lambda even=even: CacheConfig(schedule=even),
            "FORA, modules": lambda even=even: CacheConfig(schedule=even, level="module"),
            "planned, final state": lambda budget=budget: settings_for(plan(profile, budget, "power")),
            **{
                name: lambda mask=mask: CacheConfig(mask=mask, level="module") for name, mask in masks.items()
            },
        }
        for name in rows:
            if name == "fewer steps, Euler":
                out.append(
                    Config("fewer", name, steps, budget, parts={"budget": budget, "share": budget / steps})
                )
            elif name in ways:
                share = cost.share(masks[name]) if name in masks else budget / steps
                kept = masks[name].to_dict() if name in masks else None
                out.append(
                    Config(
                        "masks",
                        name,
                        steps,
                        steps,
                        settings=ways[name](),
                        parts={"budget": budget, "share": share, "ratio": share, "mask": kept},
                    )
                )
    return out


def page(data: dict) -> str:
    """The results as a page."""
    rows = [r for r in data["rows"] if r["psnr_median"] is not None]
    budgets = sorted({r["budget"] for r in rows}, reverse=True)
    where = data["machine"]
    lines = [
        "# Masks compared",
        "",
        "Written by `python -m bench.masks` from `bench/results/masks.json`; do not edit.",
        "",
        "PSNR in dB to the uncached picture of the same caption and seed, median / worst, and in "
        "brackets the work by FLOPs",
        f"as a share of an uncached run. Embedded model, {data['steps']} steps, guidance "
        f"{data['guidance']:g},",
        f"{len(data['prompts'])} captions; profile and router learned from {data['learned']} others.",
        f"{place(where)}.",
        "",
        "| | " + " | ".join(f"work of {b} steps" for b in budgets) + " |",
        "|---" * (len(budgets) + 1) + "|",
    ]
    for name in ROWS:
        own = {r["budget"]: r for r in rows if r["curve"] == name}
        if not own:
            continue
        cells = []
        for b in budgets:
            r = own.get(b)
            lead = r is not None and r["psnr_median"] == max(
                x["psnr_median"] for x in rows if x["budget"] == b
            )
            form = "**{:.1f}** / {:.1f} ({:.2f})" if lead else "{:.1f} / {:.1f} ({:.2f})"
            cells.append("" if r is None else form.format(r["psnr_median"], r["psnr_worst"], r["share"]))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    measured = {r["curve"] for r in rows}
    lines += [
        "",
        *(f"- *{name}*: {about}" for name, about in ROWS.items() if name in measured),
        "",
        *remarks(rows),
        "",
    ]
    return "\n".join(lines)


def remarks(rows: Sequence[dict]) -> list[str]:
    """What the numbers say of masks, in sentences that hold whatever they are."""
    rows = [r for r in rows if r["psnr_median"] is not None]
    own = [n for n in ROWS if n.startswith(("BAC", "split", "trained"))]
    return leads(
        rows, own, ("fewer steps, Euler", "FORA, modules", "whole steps, reuse", "planned, final state")
    )


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
        default=[2, 3, 5],
        help="budgets are those of uniform plans with these intervals",
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--rows",
        nargs="*",
        choices=ROWS,
        default=list(ROWS),
        help="rows to measure; the others stay as they are",
    )
    parser.add_argument(
        "--train",
        action="store_true",
        help="train a router for each budget first, else those of masks.json are taken",
    )
    parser.add_argument("--minutes", type=float, default=4.0, help="how long a router is trained at most")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="only write the page again")
    args = parser.parse_args(arguments)
    empty = {"format": 1, "kind": "mask_bench", "rows": [], "trained": []}
    data = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else empty
    if not args.page:
        torch.set_num_threads(args.threads)
        run(args, data)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if args.out == RESULTS:
        PAGE.write_text(page(data), encoding="utf-8")
    print(page(data))


def run(args, data: dict) -> None:
    """Trains and measures what is asked for and replaces it in `data`; rows of other settings are dropped."""
    about = {
        "steps": args.steps,
        "guidance": args.guidance,
        "prompts": prompts(args.prompts),
        "learned": args.learn,
    }
    if any(data.get(key) != value for key, value in about.items()):
        data.update(rows=[], trained=[])
    data.update(about, machine=machine())
    model, learn = load_transformer(), calibration(args.learn)
    cost, start = cost_of(model, SIZE), time.perf_counter()
    budgets = [len(uniform(args.steps, n, warmup=WARMUP).full_steps) for n in args.intervals]
    if args.train:
        for budget in budgets:
            found = train(
                model, learn, args.steps, budget / args.steps, cost, 60 * args.minutes, args.guidance
            )
            data["trained"] = [
                *(t for t in data["trained"] if t["budget"] != budget),
                {"budget": budget, **found},
            ]
            print(json.dumps({k: v for k, v in found.items() if k != "mask"}), flush=True)
        if not args.rows:
            return
    trained = {t["budget"]: Mask.read(t["mask"]) for t in data["trained"]}
    profile = record(model, jobs(learn, args.steps, args.guidance, args.batch), tokens=TOKENS)
    print(f"ready after {time.perf_counter() - start:.0f} s", flush=True)
    configs = configurations(profile, args.intervals, cost, trained, args.rows)
    rows = measure(model, load_autoencoder(), configs, about["prompts"], args.batch, args.guidance, SIZE)
    new = {(r["curve"], r.get("budget")) for r in rows}
    data.update(
        bench_seconds=round(time.perf_counter() - start, 1),
        rows=[*(r for r in data["rows"] if (r["curve"], r.get("budget")) not in new), *rows],
    )


if __name__ == "__main__":
    main()
