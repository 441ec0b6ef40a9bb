"""Profiles on the embedded model: `python -m bench.profile`.

Records uncached runs of some captions, solves weights and plans from them, and judges the plans on other
captions, beside fewer steps and a uniform linear forecast with the same number of full calls."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np
import torch

from cache_core.calibration.planner import Plan, plan, refine, segment_costs, solved
from cache_core.calibration.profile import Profile, fingerprint
from cache_core.calibration.recorder import Recorder
from cache_core.config import CacheConfig
from cache_core.predictors.extrapolation import predictor
from cache_core.recipes import parts_of_plan
from cache_core.report.diagnosis import PROFILE
from cache_core.schedule.plan import uniform
from demo.run import machine
from demo.sampler import sample, schedule_sigmas
from demo.scenes import SIZE, caption_of, random_scene
from demo.weights import load_autoencoder, load_transformer

from .quality import WARMUP, Config, measure, prompts

RESULTS = Path(__file__).parent / "results" / "profile.json"
SEED, FIRST_SEED = 77, 1000
"""Of the calibration captions and of their noise, apart from those that judge."""


def calibration(count: int) -> list[str]:
    """Captions to learn from; others than those of the benches."""
    rng = np.random.default_rng(SEED)
    return [caption_of(random_scene(rng)) for _ in range(count)]


@dataclass(frozen=True)
class Job:
    """A batch of captions to record; `first` is the seed of the first one's noise."""

    captions: tuple[str, ...]
    first: int
    steps: int
    guidance: float
    size: int


def jobs(captions: Sequence[str], steps: int, guidance: float, batch: int, size: int = SIZE) -> list[Job]:
    return [
        Job(tuple(captions[i : i + batch]), FIRST_SEED + i, steps, guidance, size)
        for i in range(0, len(captions), batch)
    ]


def run_job(
    model, job: Job, tokens: int = 0, clusters: int = 0, labels: torch.Tensor | None = None
) -> Profile:
    """A profile of a job's uncached runs, without identity; tokens, clusters, labels: as of `Recorder`."""
    recorder = Recorder(tokens, clusters, labels)
    sample(
        model,
        list(job.captions),
        steps=job.steps,
        seeds=range(job.first, job.first + len(job.captions)),
        guidance=job.guidance,
        size=job.size,
        settings=CacheConfig(method=PROFILE, observer=recorder),
    )
    return recorder.profile(schedule_sigmas(job.steps))


def record(
    model, todo: Sequence[Job], address: str | None = None, tokens: int = 0, clusters: int = 0
) -> Profile:
    """A profile of all jobs: one after the other in this process or, with the address of a Ray cluster, one
    task each.

    address: as `ray.init` takes it; "local" starts a cluster on this machine. RuntimeError where Ray is not
        installed. Clusters are those that the first job finds, which therefore runs before the others."""
    job, found, labels = todo[0], [], None
    if clusters:
        found, todo = [run_job(model, job, tokens, clusters)], todo[1:]
        labels = found[0].clusters.labels
    if address is None:
        found += [run_job(model, other, tokens, labels=labels) for other in todo]
    else:
        found += _on_ray([(other, tokens, 0, labels) for other in todo], address)
    return replace(
        reduce(Profile.merged, found),
        identity={
            "model": fingerprint(model),
            "level": "final",
            "sampler": "sample_euler",
            "guidance": job.guidance,
            "resolution": [job.size // 8, job.size // 8],
        },
    )


def _on_ray(todo: Sequence[tuple], address: str) -> list[Profile]:
    try:
        import ray
    except ImportError:
        raise RuntimeError("Ray is not installed; pip install ray, or leave --ray out.") from None
    if address == "local" and " " in ray.__file__:
        # Its node manager cuts the workers' command at blanks and waits for them for ever.
        raise RuntimeError(
            "Ray cannot start workers from a folder with a blank in its path; use an environment elsewhere."
        )

    @ray.remote(num_cpus=1)
    def task(arguments: tuple):
        torch.set_num_threads(1)
        return run_job(load_transformer(), *arguments)

    # The workers import this package from where the driver did.
    ray.init(
        address=None if address == "local" else address,
        num_cpus=2 if address == "local" else None,
        include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[1])}},
        logging_level="warning",
    )
    try:
        return ray.get([task.remote(job) for job in todo])
    finally:
        ray.shutdown()


def settings_for(made: Plan) -> CacheConfig:
    return CacheConfig(method="plan", **parts_of_plan(made.schedule))


def config(name: str, steps: int, settings: CacheConfig) -> Config:
    calls = len(settings.schedule_for(steps).full_steps)
    return Config(name, name, steps, steps, settings=settings, parts={"budget": calls, "ratio": 0.0})


def closed_loop(model, captions: Sequence[str], steps: int, guidance: float, batch: int):
    """Loss of a plan: mean squared distance of the cached latents to the uncached ones, over captions that it
    may learn from."""
    seeds = range(FIRST_SEED, FIRST_SEED + len(captions))
    truth = sample(model, captions, steps=steps, seeds=seeds, guidance=guidance).latents

    def loss(made: Plan) -> float:
        out = sample(
            model, captions, steps=steps, seeds=seeds, guidance=guidance, settings=settings_for(made)
        ).latents
        # The logarithm weighs every sample alike, as PSNR does.
        return float((out - truth).square().flatten(1).mean(1).log().mean())

    return loss


def candidates(profile: Profile, budget: int, costs) -> dict[str, Plan]:
    """Plans worth trying for a budget."""
    found = {}
    for objective in ("sum", "power"):
        for warmup in (1, 3):
            if warmup <= budget:
                found[f"{objective}, {warmup} first"] = plan(profile, budget, objective, warmup, costs=costs)
    for interval in range(2, profile.steps + 1):
        even = uniform(profile.steps, interval, warmup=WARMUP)
        if len(even.full_steps) == budget:
            found["uniform"] = solved(profile, even.full_steps)
            break
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--learn", type=int, default=12, help="captions to learn from")
    parser.add_argument("--prompts", type=int, default=16, help="other captions to judge on")
    parser.add_argument(
        "--intervals",
        type=int,
        nargs="+",
        default=[3, 4, 5, 7],
        help="budgets are those of uniform plans with these intervals",
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="record on a Ray cluster, one task per batch; local starts one here"
    )
    parser.add_argument("--save", type=Path, help="only record, and write the profile to this new file")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    model, start = load_transformer(), time.perf_counter()
    learn = calibration(args.learn)
    profile = record(model, jobs(learn, args.steps, args.guidance, args.batch), args.ray)
    print(f"recorded {len(profile.grams)} samples in {time.perf_counter() - start:.0f} s", flush=True)
    if args.save:
        profile.save(args.save)
        return
    start = time.perf_counter()
    costs = segment_costs(profile)
    print(f"solved in {time.perf_counter() - start:.1f} s", flush=True)
    configs, plans = [Config("uncached", "uncached", args.steps, args.steps)], []
    loss = closed_loop(model, learn[:6], args.steps, args.guidance, args.batch)
    for interval in args.intervals:
        even = {"type": "uniform", "interval": interval, "warmup": WARMUP}
        linear = CacheConfig(method="linear", generator=even, predictor=predictor("linear", gain=0.9))
        budget = len(linear.schedule_for(args.steps).full_steps)
        tried = candidates(profile, budget, costs)
        chosen, losses = refine(list(tried.values()), loss)
        plans.append(
            {
                "budget": budget,
                "tried": {
                    n: {"kinds": p.schedule.kinds, "expected": p.final, "loss": lost}
                    for (n, p), lost in zip(tried.items(), losses)
                },
            }
        )
        print(json.dumps(plans[-1], indent=1), flush=True)
        configs += [
            Config("fewer", "fewer steps", args.steps, budget, parts={"budget": budget}),
            config("linear", args.steps, linear),
            *(config(f"plan, {name}", args.steps, settings_for(p)) for name, p in tried.items()),
            config("plan, chosen", args.steps, settings_for(chosen)),
        ]
    rows = measure(model, load_autoencoder(), configs, prompts(args.prompts), args.batch, args.guidance, SIZE)
    for r in rows:
        if r["psnr_median"] is not None:
            print(f"{r['full_calls']:3d}  {r['curve']:24s} {r['psnr_median']:.1f} / {r['psnr_worst']:.1f}")
    args.out.write_text(
        json.dumps(
            {
                "format": 1,
                "kind": "profile_bench",
                "machine": machine(),
                "steps": args.steps,
                "guidance": args.guidance,
                "plans": plans,
                "rows": rows,
            },
            indent=1,
        )
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
