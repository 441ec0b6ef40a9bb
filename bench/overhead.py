"""What our own code costs: `python -m bench.overhead`.

At every step of a run the same evaluation is made several times, in random order: plainly, under the
    controller, and with all blocks left out, which is what no aggressive step can save (embedding and final
    layer). What a full step adds is small beside the step, so it is timed
where the blocks, or their layers, hand back what they gave before: once plainly, once under a second
    controller. All is CPU time of the thread, and only ratios of neighbours are kept, so that other work on
    the machine disturbs little. A run under a profiler names the functions of ours that take more than 2 % of
    a plain evaluation, with what torch does in them. Writes overhead.json and docs/cost.md."""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import nn
from tqdm import tqdm

from cache_core.config import CacheConfig
from cache_core.controller import Controller
from cache_core.hooks.flux_adapter import adapter_of, bind
from cache_core.hooks.shims import capture, replayed, shim
from cache_core.models.families import blocks_of, find_family
from cache_core.recipes import PRESETS, from_preset, settings_of
from cache_core.schedule.plan import explicit
from demo.run import machine
from demo.sampler import noise_for, schedule_sigmas
from demo.scenes import SIZE, encode_caption
from demo.weights import load_transformer

from .forecasts import place
from .quality import prompts

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "bench" / "results" / "overhead.json", ROOT / "docs" / "cost.md"
AGGRESSIVE, DUAL = "FFF" + "AAF" * 9, "FFF" + "CAF" * 9
LARGE = 0.02
"""Share of a plain evaluation above which a function of ours has to be explained."""
F_MOST, A_MOST = 0.02, 0.03
"""What is aimed at: what a full step adds to plain sampling, and what an aggressive one takes beyond
embedding and final layer."""


def _recipe(name: str) -> CacheConfig:
    return from_preset(
        name, explicit(DUAL if "C" in from_preset(name).schedule_for(30).kinds else AGGRESSIVE)
    )


WAYS: dict[str, Callable[[], CacheConfig]] = {
    "reuse (fora)": lambda: _recipe("fora"),
    "least squares (adaptive)": lambda: _recipe("adaptive"),
    "TAP (balanced)": lambda: _recipe("balanced"),
    "DuCa, random tokens (duca)": lambda: _recipe("duca"),
    "DuCa, everything on": lambda: settings_of(
        {
            **{k: v for k, v in PRESETS["duca"].items() if k in ("generator", "ratio")},
            "name": "everything",
            "attention": "live",
            "predictor": PRESETS["balanced"]["predictor"],
            "module_predictor": {"name": "linear"},
            "selector": {"score": "value_norm_high", "staleness": 0.25, "spatial_bonus": 0.4},
        },
        explicit(DUAL),
    ),
    "TaylorSeer, modules (taylorseer)": lambda: _recipe("taylorseer"),
    "FoCa, modules (foca)": lambda: _recipe("foca"),
    "HyCa, blocks (hyca)": lambda: _recipe("hyca"),
}
EXPLAINED = {
    "history.combine": "the forecast itself, one or two passes over the snapshots of every module or block",
    "history.weighted_sum": "the forecast itself, one pass over each snapshot of every module or block",
    "flux_blocks._gated": "the blocks' own sum of a module's gated output and its input",
    "history.put_rows_": "rows computed afresh are written into the replayed output of every module",
    "history.take_rows": "rows to compute afresh are gathered from every module's input",
    "selectors._best_of_strata": "the choice of tokens, once for each stream of each block",
    "selectors.choose": "scores are sorted once for each stream of each block",
    "history.keep": "value norms and, with live attention, copies of keys and values",
    "flux_blocks.attend_rows": "rows attend to all keys and values",
}
"""Why a function takes more than `LARGE`, by its name in the profile."""


class Stage:
    """The embedded model at one step of a run: what an evaluation takes, plainly, under a controller, or
    without its blocks."""

    def __init__(self, batch: int, size: int | None = None):
        self.model, self.batch, size = load_transformer(), batch, size or SIZE
        self.tokens, self.pooled = (torch.stack(v) for v in zip(*(encode_caption(c) for c in prompts(batch))))
        self.noise, self.grid = noise_for(range(batch), size), (size // 16, size // 16)
        self.blocks = blocks_of(self.model, find_family(self.model))

    def evaluate(self, x, sigma: float, around=None):
        """Velocity, and the CPU seconds of this thread for it with `around`, a context manager made in
        them."""
        t = torch.full((self.batch,), sigma)
        start = time.thread_time()
        with around() if around else nullcontext() as kind:
            v = self.model(x, t, self.tokens, self.pooled)
        return v, time.thread_time() - start, kind

    def without(self, modulated: bool) -> Callable[[], ExitStack]:
        """No block runs; with `modulated` each still works out its gates, as a replay of its modules must."""

        def context():
            stack = ExitStack()
            for block in self.blocks:

                def maker(_, block=block):
                    def forward(*args, **kwargs):
                        if modulated:
                            adapter = adapter_of(block.spec)
                            adapter.modulation(block.module, bind(adapter, args, kwargs)["vec"])
                        return block.spec.give(block.spec.take(args, kwargs))

                    return forward

                stack.enter_context(shim(block.module, maker))
            return stack

        return context

    def hollow(self, around=None) -> Callable[[], ExitStack]:
        """What is kept is handed back in place of being computed; inside it, `around`."""

        def context():
            stack = ExitStack()
            stack.enter_context(replayed(self.kept))
            if around:
                stack.enter_context(around())
            return stack

        return context

    def remember(self, x, sigma: float, whole: bool) -> None:
        """Keeps what the blocks give at a step, all but the first, at which forecasts look; or what the
        layers in them give."""
        inner, rest = (self.blocks[:1], self.blocks[1:]) if whole else (self.blocks, [])
        layers = dict(
            enumerate(
                [m for b in inner for m in b.module.modules() if isinstance(m, (nn.Linear, nn.GELU))]
                + [b.module for b in rest]
            )
        )
        with capture(layers) as seen:
            self.evaluate(x, sigma)
        self.kept = {layers[name]: value for name, value in seen.items()}

    def under(self, cache: Controller, sigma: float):
        def context():
            cache.begin_evaluation(sigma)
            return cache.call(self.model, ["cond"], self.grid)

        return context


@torch.no_grad()
def timed(stage: Stage, settings: CacheConfig, rounds: int, seed: int = 0) -> dict:
    """What each kind of step takes, as medians and quartiles of shares of a plain evaluation.

    kinds: the whole step. beyond: an aggressive one, less what a model without blocks takes. added: what a
        full one adds to plain sampling."""
    sigmas, modules = schedule_sigmas(len(settings.schedule.kinds)), settings.level == "module"
    kinds: dict[str, list[float]] = {}
    found: dict[str, list[float]] = {"plain": [], "bare": [], "beyond": [], "added": []}
    shuffle = random.Random(seed)
    stage.remember(stage.noise, sigmas[0], not modules and "C" not in settings.schedule.kinds)
    for _ in range(rounds):
        cache, second, x = Controller(settings, sigmas), Controller(settings, sigmas), stage.noise
        for i, (a, b) in enumerate(zip(sigmas, sigmas[1:])):
            ways = {"plain": None, "cached": stage.under(cache, a), "bare": stage.without(modules)}
            if settings.schedule.kinds[i] == "F":
                ways.update(hollow=stage.hollow(), added=stage.hollow(stage.under(second, a)))
            else:
                second.begin_evaluation(a)
            took, ran = {}, ""
            for name in shuffle.sample(list(ways), len(ways)):
                v, took[name], kind = stage.evaluate(x, a, ways[name])
                if name == "cached":
                    velocity, ran = v, kind
            x = x + (b - a) * velocity
            plain = took["plain"]
            found["plain"].append(plain)
            found["bare"].append(took["bare"] / plain)
            kinds.setdefault(ran, []).append(took["cached"] / plain)
            if ran == "A":
                found["beyond"].append((took["cached"] - took["bare"]) / plain)
            elif ran == "F" and i:  # the first step looks at the model as well, once in a run
                found["added"].append((took["added"] - took["hollow"]) / plain)
        cache.finish()
        second.finish()
    return {
        "plain_milliseconds": round(1e3 * median(found.pop("plain")), 2),
        "kinds": {k: spread(v) for k, v in kinds.items()},
        **{name: spread(v) for name, v in found.items() if v},
    }


def spread(values: Sequence[float]) -> dict:
    low, middle, high = quantiles(values, n=4)
    return {"median": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)], "runs": len(values)}


@torch.no_grad()
def profiled(stage: Stage, settings: CacheConfig, plain: float) -> dict[str, dict[str, float]]:
    """Per kind of step the functions of cache_core above `LARGE` of a plain evaluation: their own time and
    torch's in them.

    The profiler slows Python down, so that these numbers are upper bounds.
    """
    sigmas = schedule_sigmas(len(settings.schedule.kinds))
    profiles: dict[str, cProfile.Profile] = {}
    count: dict[str, int] = {}
    cache, x = Controller(settings, sigmas), stage.noise
    for i, (a, b) in enumerate(zip(sigmas, sigmas[1:])):
        kind = settings.schedule.kinds[i]
        profile = profiles.setdefault(kind, cProfile.Profile(time.thread_time))
        if i > 8:  # by then forecasts have all their snapshots
            count[kind] = count.get(kind, 0) + 1
            profile.enable()
        v, _, _ = stage.evaluate(x, a, stage.under(cache, a))
        profile.disable()
        x = x + (b - a) * v
    cache.finish()
    found = {}
    for kind, profile in profiles.items():
        stats, total = pstats.Stats(profile).stats, {}
        for (path, _, name), (_, _, own, _, callers) in stats.items():
            if "cache_core" in path:
                key = f"{Path(path).stem}.{name}"
                total[key] = total.get(key, 0.0) + own
            elif path == "~":  # a function of torch or Python, counted to who calls it
                for (caller, _, function), (_, _, spent, _) in callers.items():
                    if "cache_core" in caller:
                        key = f"{Path(caller).stem}.{function}"
                        total[key] = total.get(key, 0.0) + spent
        shares = {name: seconds / count[kind] / plain for name, seconds in total.items()}
        found[kind] = {
            name: round(s, 4) for name, s in sorted(shares.items(), key=lambda p: -p[1]) if s >= LARGE
        }
    return found


def measure(batch: int, rounds: int, names: Sequence[str], quiet: bool = False) -> dict:
    stage, rows = Stage(batch), []
    timed(stage, WAYS["TAP (balanced)"](), 1)  # warm-up, discarded
    for name in tqdm(names, desc=f"batch {batch}", disable=quiet):
        settings = WAYS[name]()
        row = timed(stage, settings, rounds)
        rows.append(
            {
                "name": name,
                "level": settings.level,
                **row,
                "functions": profiled(stage, settings, row["plain_milliseconds"] / 1e3),
            }
        )
    return {"batch": batch, "rounds": rounds, "machine": machine(), "rows": rows}


def misses(run: dict) -> list[str]:
    """What does not reach its aim, as sentences."""
    out = []
    for row in run["rows"]:
        for kind, what, most in (("F", "added", F_MOST), ("A", "beyond", A_MOST)):
            if row[what]["median"] > most:
                out.append(
                    f"{row['name']}: {row[what]['median']:.1%} of a plain evaluation where {kind} may "
                    f"take {most:.0%}"
                )
    return out


def _cell(found: dict | None) -> str:
    if found is None:
        return ""
    low, high = found["quartiles"]
    return f"{found['median']:.1%} ({low:.1%} to {high:.1%})"


def page(data: dict) -> str:
    """The results as a page."""
    lines = [
        "# What the pack's own code costs",
        "",
        "Written by `python -m bench.overhead` from `bench/results/overhead.json`; do not edit.",
        "",
        "Every evaluation of a run is made plainly, under the controller, and with all blocks left out, "
        "in random order. Medians",
        "of ratios of neighbours, in CPU time, with quartiles, over a plain evaluation. *F*, *C*, *A*: "
        "the whole step. *F adds*: what",
        "our code adds to a full step, timed where the blocks or their layers hand back kept results, "
        "since the difference of whole",
        "steps is mostly noise. *A beyond*: what A takes beyond embedding and final layer (at the "
        "modules also beyond the layers that",
        f"give the gates, which a replay needs). Aims: F adds at most {F_MOST:.0%}, A takes at most "
        f"{A_MOST:.0%} beyond.",
        "",
    ]
    for run in data["runs"]:
        lines += [
            f"## {run['batch']} picture{'s' * (run['batch'] > 1)} at a time",
            "",
            f"{place(run['machine'])}; {run['rounds']} runs of {len(AGGRESSIVE)} steps each.",
            "",
            "| | F | C | A | F adds | A beyond |",
            "|---|---|---|---|---|---|",
        ]
        for r in run["rows"]:
            cells = [_cell(r["kinds"].get(kind)) for kind in "FCA"] + [
                _cell(r[name]) for name in ("added", "beyond")
            ]
            lines.append(f"| {r['name']} | " + " | ".join(cells) + " |")
        missed = misses(run)
        lines += [
            "",
            *(["Short of the aim:", "", *(f"- {m}." for m in missed)] if missed else ["All aims are met."]),
            "",
        ]
    large = {
        (f, row["name"], kind): share
        for run in data["runs"]
        for row in run["rows"]
        for kind, found in row["functions"].items()
        for f, share in found.items()
    }
    lines += [
        f"## Functions above {LARGE:.0%} of a plain evaluation",
        "",
        "Own time and that of torch called from it, under a profiler, which makes Python slower than it is.",
        "",
    ]
    for function in dict.fromkeys(f for f, _, _ in large):
        where = [
            f"{kind} of {name.split(' (')[0]} {share:.1%}"
            for (f, name, kind), share in large.items()
            if f == function
        ]
        lines.append(f"- `{function}`: {EXPLAINED.get(function, 'not explained')} ({'; '.join(where[:4])})")
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=[1, 4],
        help="pictures at a time; other batches keep their results",
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of 30 steps")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--page", action="store_true", help="only write the page again")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    data = (
        json.loads(args.out.read_text(encoding="utf-8"))
        if args.out.exists()
        else {"format": 1, "kind": "overhead_bench", "runs": []}
    )
    for batch in [] if args.page else args.batches:
        run = measure(batch, args.rounds, args.ways)
        data["runs"] = sorted(
            [*(r for r in data["runs"] if r["batch"] != batch), run], key=lambda r: r["batch"]
        )
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if args.out == RESULTS:
        PAGE.write_text(page(data), encoding="utf-8")
    print(page(data))


if __name__ == "__main__":
    main()
