"""Quality and speed of the caching methods on the embedded model: `python -m bench.quality`.

Every method is compared with the uncached pictures of the same captions and seeds, at several intervals,
    beside the same model with fewer steps. All cached runs share the same warm-up of full
    steps, so that one part differs at a time. Guidance is 1 (the caption alone), which halves the cost and
    leaves the comparison as it is. Writes quality.json and quality.png.

The first step count gets the whole list of configurations, the others the comparison with random tokens;
--full gives everything to all."""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from tqdm import tqdm

from cache_core.config import CacheConfig
from cache_core.predictors.extrapolation import predictor
from cache_core.report.metrics import psnr, ssim
from cache_core.schedule.cost import CostModel, estimated_speedup
from cache_core.selectors.token_selection import SCORES, Selector
from demo.plots import quality_curves
from demo.run import decode, finite, machine, text_table, timed_sample
from demo.scenes import SIZE, TOKENS, caption_of, random_scene
from demo.weights import MODEL, WEIGHTS, load_autoencoder, load_transformer

METHODS = ("fewer", "heun", "fora", "toca", "duca", "duca-linear", "linear", "live")
WARMUP = 3
"""Full steps at the beginning of every cached run, as in the FLUX recipes of DuCa and TaylorSeer."""
DECODE_SHARE = 6.0
"""Decoding and comparing a 256 px picture takes about as long as this many full evaluations of it; for
planning only."""


@dataclass(frozen=True)
class Config:
    """One line of the bench: a method of METHODS (or "uncached") against `steps` uncached Euler steps.

    run_steps: steps it really takes, with `sampler`, at noise levels `sigmas` where they are not the even
        ones. parts: what the JSON says of it. curve: its line in the picture."""

    method: str
    curve: str
    steps: int
    run_steps: int
    sampler: str = "euler"
    settings: CacheConfig | None = None
    parts: dict = field(default_factory=dict)
    sigmas: tuple[float, ...] | None = None

    @property
    def schedule(self):
        return self.settings.schedule_for(self.run_steps) if self.settings else None

    @property
    def full_calls(self) -> int:
        if self.settings:
            return len(self.schedule.full_steps)
        return (
            self.run_steps if self.sampler == "euler" else 2 * self.run_steps - 1
        )  # the last step of Heun is Euler's

    @property
    def work(self) -> float:
        """Roughly what a picture takes, sampled, decoded and compared, in full evaluations; for planning
        only."""
        cheap = self.schedule.counts()["C"] * (0.1 + 0.7 * self.parts["ratio"]) if self.settings else 0
        return self.full_calls + cheap + DECODE_SHARE

    def ideal_flops(self, cost: CostModel) -> float:
        if self.settings:
            run = sum(self.settings.blocks_run(["double"] * cost.double + ["single"] * cost.single))
            return estimated_speedup(
                self.schedule,
                cost,
                live_attention=self.settings.attention == "live",
                aggressive=run / (cost.double + cost.single),
            )
        return self.steps / self.full_calls


def cached(
    method: str,
    curve: str,
    steps: int,
    interval: int,
    order: str = "A",
    selector: str = "random",
    gain: float | None = None,
    attention: str = "frozen",
    ratio: float = 0.1,
) -> Config:
    """A cached run: F every `interval` steps, `order` between; a gain means a linear forecast of the final
    hidden state."""
    generator = {"type": "dual", "interval": interval, "order": order, "ratio": ratio, "warmup": WARMUP}
    settings = CacheConfig(
        method=method,
        generator=generator,
        selector=Selector(selector),
        attention=attention,
        predictor=predictor("reuse") if gain is None else predictor("linear", gain=gain),
    )
    tokens = (
        {"selector": selector, "attention": attention}
        if "C" in order
        else {"selector": None, "attention": None}
    )
    return Config(
        method,
        curve,
        steps,
        steps,
        settings=settings,
        parts={
            "interval": interval,
            "order": order,
            "ratio": ratio,
            "predictor": settings.predictor.name,
            "gain": gain,
            **tokens,
        },
    )


def configurations(steps: int, whole: bool = True, full: bool = False) -> list[Config]:
    """The configurations for one step count, the uncached run first.

    whole: every selector, three gains and live attention; else random tokens and one gain only, both at N =
        3, 4, 5, 7. full: also N = 2 and 6 without C steps, all gains at all intervals, more of Heun, of live
        attention and of dual caching with a forecast."""
    whole = whole or full
    main = (3, 4, 5, 7)
    skips = (2, 3, 4, 5, 6, 7) if full else main
    fora = [cached("fora", "FORA (reuse)", steps, n) for n in skips]
    calls = list(dict.fromkeys(c.full_calls for c in fora))
    out = [Config("uncached", "uncached", steps, steps)]
    out += [Config("fewer", "fewer steps, Euler", steps, n) for n in calls]
    # Heun takes 2 n - 1 calls, so it meets a number of calls, or one less.
    heun = calls if full else calls[::2] if whole else calls[1:2]
    out += [Config("heun", "fewer steps, Heun", steps, (n + 1) // 2, "heun") for n in heun]
    out += fora
    for method, title, order in (("toca", "ToCa", "C"), ("duca", "DuCa", "CA")):
        for score in SCORES if whole else SCORES[:1]:
            out += [
                cached(method, f"{title}, {score.replace('_', ' ')}", steps, n, order, score) for n in main
            ]
    out += [
        cached("duca-linear", "DuCa + linear 0.9", steps, n, "CA", gain=0.9)
        for n in (main if full else (3, 5) if whole else (5,))
    ]
    for gain in (0.9, 0.8, 1.0) if whole else (0.9,):
        out += [
            cached("linear", f"linear {gain:.1f}", steps, n, gain=gain)
            for n in (skips if full or gain == 0.9 else (3,))
        ]
    if whole:
        out += [
            cached("live", f"DuCa, live attention, {r:.0%}", steps, n, "CA", attention="live", ratio=r)
            for r in (0.1, 0.3)
            for n in ((3, 5) if full else (5,))
        ]
    return out


def plan(
    steps: Sequence[int], only: Sequence[str] = METHODS, full: bool = False, quick: bool = False
) -> list[Config]:
    """All configurations of a bench, with the uncached run of each step count; `quick` keeps one of each
    curve."""
    out = []
    for i, n in enumerate(steps):
        chosen = [c for c in configurations(n, whole=i == 0, full=full) if c.method in ("uncached", *only)]
        out += list({c.curve: c for c in chosen}.values()) if quick else chosen
    return out


def prompts(count: int) -> list[str]:
    """Fixed captions, the same for every run of the bench."""
    rng = np.random.default_rng(2024)
    return [caption_of(random_scene(rng)) for _ in range(count)]


def cost_of(model, size: int) -> CostModel:
    """The cost model with the embedded model's own sizes."""
    c = model.config
    return CostModel(
        width=c.hidden, image_tokens=(size // 16) ** 2, text_tokens=TOKENS, double=c.double, single=c.single
    )


def measure(
    model,
    autoencoder,
    configs: Sequence[Config],
    captions: Sequence[str],
    batch: int,
    guidance: float,
    size: int,
    quiet: bool = False,
) -> list[dict]:
    """Samples every configuration and compares it with the uncached run of its step count; one dict per
    configuration, in order.

    Batches of captions are the outer loop, and each goes through the configurations in another order after
    the uncached run, so that a drift of the machine's speed does not hit one method. Raises ValueError where
    a step count has no uncached run."""
    missing = {c.steps for c in configs} - {c.steps for c in configs if c.method == "uncached"}
    if missing:
        raise ValueError(
            f"configs must hold an uncached run for {', '.join(map(str, sorted(missing)))} steps."
        )
    one = partial(timed_sample, model, guidance=guidance, size=size)
    some = list(captions[:batch])
    for settings in (None, cached("duca", "", 5, 5, "CA").settings):  # warm-up, discarded
        one(some, range(len(some)), steps=5, settings=settings)
    done = [{"seconds": 0.0, "psnr": [], "ssim": [], "calls": 0, "report": None} for _ in configs]
    with tqdm(total=round(sum(c.work for c in configs) * len(captions)), unit="eval", disable=quiet) as bar:
        for first in range(0, len(captions), batch):
            some = list(captions[first : first + batch])
            order = list(range(len(configs)))
            random.Random(first).shuffle(order)
            order.sort(key=lambda i: (configs[i].steps, configs[i].method != "uncached"))
            uncached = None
            for i in order:
                config, result = configs[i], done[i]
                bar.set_description(f"{config.steps} steps, {config.curve}")
                out, seconds = one(
                    some,
                    range(first, first + len(some)),
                    steps=config.run_steps,
                    sampler=config.sampler,
                    settings=config.settings,
                    sigmas=config.sigmas,
                )
                result["seconds"] += seconds
                result["calls"], result["report"] = out.calls, out.report
                pictures = decode(autoencoder, out.latents)
                if config.method == "uncached":
                    uncached = pictures
                else:
                    result["psnr"] += psnr(pictures, uncached)
                    result["ssim"] += ssim(pictures, uncached)
                bar.update(round(config.work * len(some)))
    reference = {c.steps: d["seconds"] for c, d in zip(configs, done) if c.method == "uncached"}
    return [row_of(c, d, reference[c.steps], cost_of(model, size)) for c, d in zip(configs, done)]


def row_of(config: Config, result: dict, uncached_seconds: float, cost: CostModel) -> dict:
    """What the JSON says of one configuration. Counts are per batch of captions, as they ran; PSNR in dB is
    None where not finite."""
    totals = (
        result["report"].totals()
        if result["report"]
        else {"full_calls": result["calls"], "conservative": 0, "aggressive": 0}
    )
    plain = dict.fromkeys(("interval", "order", "ratio", "predictor", "gain", "selector", "attention"))
    speedup, ideal = uncached_seconds / result["seconds"], config.ideal_flops(cost)
    return {
        "steps": config.steps,
        "method": config.method,
        "curve": config.curve,
        "sampler": config.sampler,
        "run_steps": config.run_steps,
        **plain,
        **config.parts,
        "kinds": config.schedule.kinds if config.settings else None,
        "calls": result["calls"],
        "full_calls": totals["full_calls"],
        "conservative": totals["conservative"],
        "aggressive": totals["aggressive"],
        "ideal_calls": config.steps / totals["full_calls"],
        "ideal_flops": ideal,
        "seconds": result["seconds"],
        "speedup": speedup,
        "realised_over_ideal": speedup / ideal,
        "psnr_median": finite(result["psnr"], median) if result["psnr"] else None,
        "psnr_worst": finite(result["psnr"], min) if result["psnr"] else None,
        "ssim_median": median(result["ssim"]) if result["ssim"] else None,
        "ssim_worst": min(result["ssim"]) if result["ssim"] else None,
    }


def realised(
    model,
    configs: dict[str, Config],
    steps: int,
    repetitions: int,
    size: int,
    captions: Sequence[str],
    quiet: bool = False,
) -> list[dict]:
    """Wall time of cached runs of `steps` steps, side by side: every round runs uncached and then each
    configuration (guidance 1).

    The ideal is the ratio of FLOPs, speed-up the ratio of the median seconds; a step's cost is the median of
    its kind over a full uncached step. The first round has few steps and is discarded."""
    ways: dict[str, Config | None] = {"uncached": None, **configs}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    kinds: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    for i in tqdm(range(-1, repetitions), desc="realised over ideal", disable=quiet):
        for name, config in ways.items():
            out, spent = timed_sample(
                model,
                list(captions),
                list(range(len(captions))),
                steps=min(steps, 6) if i < 0 else steps,
                guidance=1.0,
                size=size,
                settings=config.settings if config else None,
            )
            if i >= 0:
                seconds[name].append(spent)
                for kind, ms in (out.report.totals()["median_milliseconds"] if out.report else {}).items():
                    kinds[name].setdefault(kind, []).append(ms)
    plain, cost = median(seconds["uncached"]), cost_of(model, size)
    rows = []
    for name, config in configs.items():
        ideal, speedup = config.ideal_flops(cost), plain / median(seconds[name])
        rows.append(
            {
                "name": name,
                "steps": steps,
                "full_calls": config.full_calls,
                "ideal": ideal,
                "speedup": speedup,
                "realised_over_ideal": speedup / ideal,
                "uncached_seconds": seconds["uncached"],
                "cached_seconds": seconds[name],
                "step_cost": {kind: median(ms) * steps / 1e3 / plain for kind, ms in kinds[name].items()},
            }
        )
    return rows


def table_text(rows: Sequence[dict], again: Sequence[dict]) -> str:
    """The results for people."""

    def number(value, digits):
        return "" if value is None else f"{value:.{digits}f}"

    head = (
        "",
        "N",
        "calls",
        "C",
        "A",
        "ideal calls",
        "FLOPs",
        "seconds",
        "speed-up",
        "of ideal",
        "PSNR median",
        "worst",
        "SSIM median",
        "worst",
    )
    parts = []
    for steps in dict.fromkeys(r["steps"] for r in rows):
        lines = [
            (
                r["curve"],
                str(r["interval"] or ""),
                str(r["full_calls"]),
                str(r["conservative"]),
                str(r["aggressive"]),
                number(r["ideal_calls"], 2),
                number(r["ideal_flops"], 2),
                number(r["seconds"], 2),
                number(r["speedup"], 2),
                number(r["realised_over_ideal"], 2),
                number(r["psnr_median"], 1),
                number(r["psnr_worst"], 1),
                number(r["ssim_median"], 4),
                number(r["ssim_worst"], 4),
            )
            for r in rows
            if r["steps"] == steps
        ]
        parts.append(f"{steps} steps\n{text_table(head, lines)}")
    if again:
        lines = [
            (
                r["name"],
                str(r["full_calls"]),
                number(r["ideal"], 2),
                number(r["speedup"], 2),
                number(r["realised_over_ideal"], 3),
            )
            for r in again
        ]
        parts.append(
            f"realised over ideal, {again[0]['steps']} steps, batch 1, alternating, median of "
            f"{len(again[0]['cached_seconds'])}\n"
            + text_table(("", "calls", "ideal", "speed-up", "of ideal"), lines)
        )
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for quality.json and quality.png (default bench/results, out/bench with --quick)",
    )
    parser.add_argument("--prompts", type=int, default=16, help="number of captions")
    parser.add_argument(
        "--steps",
        type=int,
        nargs="+",
        default=[50, 30],
        help="uncached step counts; the first gets the whole list",
    )
    parser.add_argument(
        "--only", nargs="+", choices=METHODS, default=METHODS, help="methods to run, beside the uncached one"
    )
    parser.add_argument("--batch", type=int, default=8, help="captions per model call")
    parser.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        help="above 1 the empty caption runs beside each, at double the cost",
    )
    parser.add_argument(
        "--repetitions", type=int, default=5, help="rounds of the realised over ideal measurement, 0 for none"
    )
    parser.add_argument(
        "--full", action="store_true", help="every configuration for every step count, about twice as long"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two tiny pictures, 10 and 8 steps, one interval each, to see that it works",
    )
    args = parser.parse_args(arguments)
    size = SIZE
    if args.quick:
        args.prompts, args.steps, args.batch, size = 2, [10, 8], 2, 64
        args.repetitions = min(args.repetitions, 1)
    for name, least in (("prompts", 1), ("batch", 1), ("repetitions", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}.")
    if min(args.steps) < 1:
        parser.error("--steps must be at least 1.")
    out = args.out or (Path("out/bench") if args.quick else Path(__file__).parent / "results")
    start = time.perf_counter()
    model, autoencoder, captions = load_transformer(), load_autoencoder(), prompts(args.prompts)
    configs = plan(list(dict.fromkeys(args.steps)), args.only, args.full, args.quick)
    work = sum(c.work for c in configs) * len(captions)
    print(
        f"{len(configs)} configurations, {len(captions)} captions: work of about {work:.0f} full "
        "evaluations of one picture.",
        flush=True,
    )
    rows = measure(model, autoencoder, configs, captions, args.batch, args.guidance, size)
    n = args.steps[0]
    side_by_side = {
        "FORA (reuse), N=3": cached("fora", "", n, 3),
        "linear, N=3": cached("linear", "", n, 3, gain=0.9),
        "linear, N=5": cached("linear", "", n, 5, gain=0.9),
    }
    again = realised(model, side_by_side, n, args.repetitions, size, captions[:1]) if args.repetitions else []
    settings = {
        "prompts": captions,
        "seeds": list(range(len(captions))),
        "steps": args.steps,
        "only": list(args.only),
        "full": args.full,
        "guidance": args.guidance,
        "size": size,
        "batch": args.batch,
        "warmup": WARMUP,
        "repetitions": args.repetitions,
    }
    digest = hashlib.sha256((WEIGHTS / MODEL).read_bytes()).hexdigest()
    data = {
        "format": 1,
        "kind": "quality_bench",
        "machine": machine(),
        "model": {"file": MODEL, "sha256": digest},
        "settings": settings,
        "bench_seconds": round(time.perf_counter() - start, 1),
        "rows": rows,
        "realised": again,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "quality.json").write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    where = data["machine"]
    if any(r["psnr_median"] is not None for r in rows):
        title = (
            f"{len(captions)} captions, {size} px, guidance {args.guidance:g}, against the uncached pictures"
        )
        quality_curves(
            rows,
            out / "quality.png",
            f"{title}; {where['cpu']}, {where['threads']} thread(s), {where['date']}",
        )
    print(table_text(rows, again))
    print(f"\nWrote {out} in {time.perf_counter() - start:.0f} seconds.")


if __name__ == "__main__":
    main()
