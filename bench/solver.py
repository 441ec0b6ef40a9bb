"""Learned plans against every sampler and every cache at equal calls: `python -m bench.solver`.

Embedded model, decoded pictures. Reference runs and the ends of all runs are kept in a folder, so that an
interrupted bench goes on where it stopped; every finished row is written to solver.json at once. 8 captions
teach, 16 others judge. Rows: fewer steps of Euler, DPM-Solver++(2M) and UniPC; `planned` from a profile of
the same captions; the presets at their own number of calls; learned plans with either aim."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

from cache_core.calibration.planner import plan
from cache_core.calibration.profile import fingerprint
from cache_core.config import CacheConfig
from cache_core.learned.fit import follow
from cache_core.learned.grid import segment_errors
from cache_core.learned.learning import learn
from cache_core.learned.plans import EXACT, RUN, LearnedPlan, Plans
from cache_core.learned.reference import Trajectory, record, solve_exactly
from cache_core.learned.samplers import integrate
from cache_core.recipes import from_preset, parts_of_plan
from cache_core.report.metrics import psnr
from demo.run import decode, machine
from demo.sampler import noise_for, sample, schedule_sigmas
from demo.scenes import encode_caption
from demo.weights import load_autoencoder, load_transformer

from .profile import FIRST_SEED, calibration, jobs
from .profile import record as profile_of
from .quality import prompts

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "solver.json", HERE.parent / "docs" / "solver.md"
STEPS, EXACT_STEPS, HEUN_STEPS = 30, 40, 100
CALLS = (5, 6, 8, 10, 12, 15)
RIVALS = {"euler": "Euler", "dpmpp_2m": "DPM++ 2M", "uni_pc": "UniPC"}
PRESETS = ("balanced", "quality", "dicache")
LEARNED = {RUN: "learned, aim run", EXACT: "learned, aim exact"}
PLANNED = "planned"
Velocity = Callable[[torch.Tensor, float], tuple[torch.Tensor, torch.Tensor | None]]


def velocity_of(model, captions: Sequence[str], guidance: float) -> Velocity:
    """The guided velocity of captions and conditional minus unconditional, None at guidance 1."""
    texts = [captions] if guidance == 1 else [[""] * len(captions), captions]
    parts = [[torch.stack(v) for v in zip(*map(encode_caption, own))] for own in texts]
    tokens, pooled = (torch.cat([p[i] for p in parts]) for i in range(2))

    @torch.no_grad()
    def velocity(x, sigma):
        n = len(parts)
        out = model(x.repeat(n, 1, 1, 1), torch.full((len(x) * n,), sigma), tokens, pooled)
        if n == 1:
            return out, None
        uncond, cond = out.chunk(2)
        return uncond + guidance * (cond - uncond), cond - uncond

    return velocity


class Bench:
    """One guidance: what it samples is kept in `folder` by name."""

    def __init__(self, model, guidance: float, size: int, judge: int, learn_from: int, folder: Path):
        self.model, self.guidance, self.size = model, guidance, size
        self.captions, self.taught = prompts(judge), calibration(learn_from)
        self.folder = folder / f"{size}-{guidance:g}-{judge}-{learn_from}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.velocity = velocity_of(model, self.captions, guidance)
        self.taught_velocity = velocity_of(model, self.taught, guidance)
        self.noise = noise_for(range(judge), size)
        self.levels = schedule_sigmas(STEPS)

    def kept(self, name: str, make: Callable[[], object]):
        """What a file of the folder holds, made before where it is not there."""
        path = self.folder / f"{name}.pt"
        if not path.exists():
            torch.save(make(), path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
        return torch.load(path, weights_only=True)

    def aim(self, aim: str) -> torch.Tensor:
        """Where the judging captions should end: latents [B, ...]."""
        if aim == RUN:
            return self.kept(
                "aim-run",
                lambda: integrate("euler", self.levels, self.noise, lambda x, s: self.velocity(x, s)[0]),
            )
        return self.kept("aim-exact", lambda: self._sample(steps=HEUN_STEPS, sampler="heun")[0])

    def known(self, aim: str) -> bool:
        return (self.folder / f"aim-{aim}.pt").exists()

    def _sample(self, **options) -> tuple[torch.Tensor, int]:
        done = sample(
            self.model,
            self.captions,
            seeds=range(len(self.captions)),
            guidance=self.guidance,
            size=self.size,
            **options,
        )
        calls = done.calls
        if done.report is not None:
            calls = sum(r.full_calls > 0 for r in done.report.records)
        return done.latents, calls

    def reference(self, aim: str) -> Trajectory:
        def make():
            noise = noise_for(range(FIRST_SEED, FIRST_SEED + len(self.taught)), self.size)

            def velocity(x, s):
                return self.taught_velocity(x, s)[0]

            levels = self.levels if aim == RUN else schedule_sigmas(EXACT_STEPS)
            made = record(levels, noise, velocity) if aim == RUN else solve_exactly(levels, noise, velocity)
            return {"sigmas": list(made.sigmas), "states": made.states, "velocities": made.velocities}

        kept = self.kept(f"taught-{aim}", make)
        return Trajectory(tuple(kept["sigmas"]), kept["states"], kept["velocities"])

    def plan(self, calls: int, aim: str) -> LearnedPlan:
        """Learned: under Euler for the aim run, a sampler of its own for the exact solution."""

        def make():
            aims = [self.reference(aim)]
            errors = self.kept(f"errors-{aim}", lambda: segment_errors(aims))
            under = "euler" if aim == RUN else None
            made = learn(
                aims, lambda b, x, s: self.taught_velocity(x, s), [calls], self.guidance, aim, under, errors
            )
            return Plans({}, tuple(made)).to_json()

        return Plans.from_json(self.kept(f"plan-{aim}-{calls}", make)).plans[0]

    def end(self, row: str, calls: int) -> tuple[torch.Tensor, int]:
        """Where a row's run of so many calls ends, and the calls that it took."""
        rival = next((name for name, said in RIVALS.items() if said == row), None)
        aim = next((a for a, said in LEARNED.items() if said == row), None)

        def make():
            if rival:
                levels = schedule_sigmas(calls)
                return integrate(rival, levels, self.noise, lambda x, s: self.velocity(x, s)[0]), calls
            if aim:
                p = self.plan(calls, aim)
                return follow(self.noise, self.velocity, p.sigmas, p.full, p.weights, p.under or None), calls
            if row == PLANNED:
                settings = CacheConfig(
                    method=row, **parts_of_plan(plan(self.profile(), calls, "power").schedule)
                )
            else:
                settings = from_preset(row)
            return self._sample(steps=STEPS, settings=settings)

        return self.kept(f"end-{row}-{calls}".replace(" ", "_").replace("+", "p"), make)

    def profile(self):
        if not hasattr(self, "_profile"):
            todo = jobs(self.taught, STEPS, self.guidance, len(self.taught), self.size)
            self._profile = profile_of(self.model, todo)
        return self._profile


ROWS = (*RIVALS.values(), LEARNED[RUN], PLANNED, *PRESETS, LEARNED[EXACT])


def cells_of(rows: Sequence[str], counts: Sequence[int]) -> list[tuple[str, int]]:
    """Rows and calls (0: as many as it takes) in the order of running."""
    cells = [(row, n) for n in counts for row in rows if row in (*RIVALS.values(), LEARNED[RUN])]
    cells += [(row, 0) for row in rows if row in PRESETS]
    return cells + [(row, n) for row in (PLANNED, LEARNED[EXACT]) if row in rows for n in counts]


def measure(bench: Bench, autoencoder, said: Callable[[dict], None], exact: bool, cells) -> None:
    """Samples every cell and tells its PSNR in dB to the run, and to the exact solution where that is known
    or `exact` asks for it, in pictures."""
    pictures = {}

    def picture(aim):
        if aim not in pictures:
            pictures[aim] = decode(autoencoder, bench.aim(aim))
        return pictures[aim]

    for row, calls in cells:
        start = time.process_time()
        latents, took = bench.end(row, calls)
        image = decode(autoencoder, latents)
        found = {
            "row": row,
            "calls": took,
            "cell": calls or took,
            "seconds": round(time.process_time() - start, 1),
        }
        for aim in (RUN, EXACT):
            if aim == RUN or bench.known(aim) or exact:
                found[aim] = [round(min(v, 200.0), 2) for v in psnr(image, picture(aim))]
        if row in LEARNED.values():
            aim = next(a for a, name in LEARNED.items() if name == row)
            p = bench.plan(calls, aim)
            found.update(full=list(p.full), expected=[round(d, 2) for d in p.expected])
        said({"guidance": bench.guidance, **found})


def page(data: dict) -> str:
    """The results as a page."""
    lines = [
        "# Learned plans against samplers and caches",
        "",
        "Written by `python -m bench.solver` from `bench/results/solver.json`; do not edit.",
        "",
        f"Embedded model, {data['size']} px, float32. PSNR of decoded pictures in dB, median / worst of "
        f"{data['judge']} captions; learned from {data['learn']} others. To the run: {STEPS} Euler steps. To",
        f"the exact solution: Heun's method with {HEUN_STEPS} steps. Bold: the best median of its cell.",
        "",
    ]
    behind = []
    for aim, what in ((RUN, "the run"), (EXACT, "the exact solution")):
        for guidance in sorted({r["guidance"] for r in data["rows"]}):
            own = [r for r in data["rows"] if r["guidance"] == guidance and aim in r]
            rows = [*RIVALS.values(), PLANNED, LEARNED[aim]]
            counts = sorted({r["cell"] for r in own if r["row"] in RIVALS.values()})
            if not counts or not any(r["row"] == LEARNED[aim] for r in own):
                continue
            lines += [f"## To {what}, guidance {guidance:g}", ""]
            lines += [
                "| | " + " | ".join(f"{n} calls" for n in counts) + " |",
                "|---" * (len(counts) + 1) + "|",
            ]
            for row in rows:
                cells = {r["cell"]: r[aim] for r in own if r["row"] == row}
                if cells:
                    best = {
                        n: max(median(r[aim]) for r in own if r["cell"] == n and r["row"] in rows)
                        for n in cells
                    }
                    lines.append(
                        f"| {row} | " + " | ".join(_cell(cells.get(n), best.get(n)) for n in counts) + " |"
                    )
            presets = [r for r in own if r["row"] in PRESETS]
            told = ", ".join(f"`{r['row']}` at {r['calls']} calls {_cell(r[aim])}" for r in presets)
            lines += ["", f"Presets at their own number of calls: {told}." if told else "", ""]
            behind += _behind(own, aim, what, guidance, counts)
    lines += ["## Cells that do not lead", ""]
    lines += behind or ["The learned plan has the best median and the best worst picture in every cell."]
    return "\n".join([*lines, ""])


def _cell(values: Sequence[float] | None, best: float | None = None) -> str:
    if values is None:
        return ""
    middle = f"{median(values):.1f}"
    return f"{f'**{middle}**' if best is not None and median(values) >= best else middle} / {min(values):.1f}"


def _behind(rows, aim: str, what: str, guidance: float, counts) -> list[str]:
    """Cells where a learned plan is behind the best of the others at as many calls, or fewer."""
    out = []
    for n in counts:
        ours = next((r for r in rows if r["cell"] == n and r["row"] == LEARNED[aim]), None)
        others = [
            r
            for r in rows
            if r["row"] not in LEARNED.values()
            and (r["cell"] == n or (r["row"] in PRESETS and r["calls"] <= n))
        ]
        if ours is None or not others:
            continue
        for name, measure_of in (("median", median), ("worst picture", min)):
            best = max(others, key=lambda r: measure_of(r[aim]))
            if measure_of(best[aim]) > measure_of(ours[aim]):
                out.append(
                    f"- To {what}, guidance {guidance:g}, {n} calls, {name}: {measure_of(ours[aim]):.1f} "
                    f"against {measure_of(best[aim]):.1f} of {best['row']}."
                )
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 4.0, 7.0])
    parser.add_argument("--size", type=int, default=128, help="edge of the pictures in pixels")
    parser.add_argument("--prompts", type=int, default=16, help="captions to judge")
    parser.add_argument("--learn", type=int, default=8, help="other captions to learn from")
    parser.add_argument("--no-exact", action="store_true", help="leave the exact solution out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=HERE.parent / "runs" / "solver", help="kept runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="rows to sample")
    parser.add_argument("--calls", type=int, nargs="+", default=[6, 10, 8, 15, 5, 12], help="cells to sample")
    parser.add_argument("--plans", type=Path, help="only learn plans, and add them to this file")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    args = parser.parse_args(arguments)
    about = {"size": args.size, "judge": args.prompts, "learn": args.learn}
    if not args.page:
        torch.set_num_threads(args.threads)
        model, autoencoder = load_transformer(), load_autoencoder()
        for guidance in args.guidance:
            bench = Bench(model, guidance, args.size, args.prompts, args.learn, args.folder)
            if args.plans:
                _ship(args.plans, bench, args.calls, not args.no_exact)
                continue
            cells = [
                c for c in cells_of(args.rows, args.calls) if not (args.no_exact and c[0] == LEARNED[EXACT])
            ]
            measure(bench, autoencoder, lambda row: _add(args.out, about, row), not args.no_exact, cells)
        if args.plans:
            return
    data = json.loads(args.out.read_text(encoding="utf-8"))
    if args.out == RESULTS:
        PAGE.write_text(page(data), encoding="utf-8")
    print(page(data))


def _add(path: Path, about: dict, row: dict) -> None:
    """Puts a row into the file, in place of the one of the same cell."""
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
    kept = [r for r in data["rows"] if any(r[k] != row[k] for k in ("guidance", "row", "cell"))]
    rows = sorted([*kept, row], key=lambda r: (r["guidance"], r["row"], r["cell"]))
    where = {k: machine()[k] for k in ("cpu", "cores", "system", "date")}
    data = {"format": 1, "kind": "solver_bench", **about, "machine": where, "rows": rows}
    path.write_text(
        json.dumps({**data, "rows": []}, indent=1)[:-3].rstrip("[")
        + "[\n  "
        + ",\n  ".join(map(json.dumps, rows))
        + "\n ]\n}\n",
        encoding="utf-8",
    )
    print(
        row["guidance"],
        row["row"],
        row["cell"],
        *(f"{a} {_cell(row[a])}" for a in (RUN, EXACT) if a in row),
        flush=True,
    )


def _ship(path: Path, bench: Bench, counts: Sequence[int], exact: bool) -> None:
    """Adds the plans of a guidance to a file of learned plans."""
    area = (bench.size // 8) ** 2
    identity = {
        "model": fingerprint(bench.model),
        "lora": "none",
        "conditioning": "text",
        "area": [area, area],
    }
    for aim in (RUN, *([EXACT] if exact else [])):
        for n in sorted(counts):
            new = Plans(identity, (bench.plan(n, aim),))
            (Plans.load(path).merged(new) if path.exists() else new).save(path)
            print(bench.guidance, aim, n, new.plans[0].quality(), flush=True)


if __name__ == "__main__":
    main()
