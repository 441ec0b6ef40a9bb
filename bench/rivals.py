"""Everything against everything on the embedded model inside ComfyUI: `python -m bench.rivals --packs
FOLDER`.

Samples plain, with fewer steps by samplers of first and second order, with ComfyUI's own EasyCache and
LazyCache, with the caching packs of others that lie in a folder, and with this pack's presets, and compares
the pictures with those of plain sampling. Each part is one ComfyUI, one dtype and one guidance, measured by
`bench.rivals_worker` under that ComfyUI's Python; a part replaces its old results in rivals.json, from which
docs/rivals.md with its picture, the table of docs/measurements.md and the presets' field `measured` are made.

ComfyUI is found as scripts/test.sh finds it: COMFYUI_PATH, else the one this pack stands in, else
~/comfy/ComfyUI, and the oldest supported one at COMFYUI_OLD_PATH or ~/comfy/ComfyUI-0.3.64; COMFYUI_PYTHON
names their Python where they have no .venv or venv."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles

from tqdm import tqdm

from cache_core.recipes import PRESETS, preset, to_json
from demo.run import finite, machine
from demo.scenes import SIZE
from demo.weights import MODEL, WEIGHTS

from .measured import RECIPES, with_measurements
from .quality import prompts
from .rivals_page import page, picture, with_table
from .rivals_worker import EXACT, PLAIN

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "bench" / "results" / "rivals.json", ROOT / "docs" / "rivals.md"
MEASUREMENTS = ROOT / "docs" / "measurements.md"
STEPS, EXACT_STEPS = 30, 25
"""Of plain sampling, as in the workflows; and of Heun's method for pictures that stand for the exact
solution."""
PARTS = {
    "new": ("new", "float32", 1.0),
    "bf16": ("new", "bfloat16", 1.0),
    "guided": ("new", "float32", 2.0),
    "old": ("old", "float32", 1.0),
}
"""ComfyUI, dtype and guidance of each part; 2 is the guidance of the workflows."""
PACKS = ("ComfyUI-TeaCache", "Comfy-WaveSpeed", "ComfyUI-MagCache", "ComfyUI-TaylorSeer")


def row(
    group: str, curve: str, label: str, *nodes, steps: int = STEPS, sampler: str = "euler", **more
) -> dict:
    """One way of sampling; see `rivals_worker.build` for `nodes`."""
    return {
        "group": group,
        "curve": curve,
        "label": label,
        "steps": steps,
        "sampler": sampler,
        "nodes": list(nodes),
        **more,
    }


def fewer(short: bool) -> list[dict]:
    euler, second, heun = (
        ((15, 12, 9, 6), (12, 8), ()) if short else ((18, 15, 12, 10, 9, 8, 6, 5), (12, 9, 6), (6, 4))
    )
    return [
        row("fewer", f"fewer steps, {sampler}", str(n), steps=n, sampler=sampler)
        for sampler, counts in (("euler", euler), ("dpmpp_2m", second), ("heun", heun))
        for n in counts
    ]


def core(short: bool) -> list[dict]:
    """ComfyUI's own caches over their threshold. EasyCache also as it comes, which in fp32 overwrites the
    sampler's own tensor."""
    rows = []
    for threshold in (0.1,) if short else (0.03, 0.1, 0.3):
        inputs = {"reuse_threshold": threshold, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
        rows += [
            row("core", "EasyCache, input protected", f"{threshold:g}", ["EasyCache", inputs], protect=True),
            row("core", "LazyCache", f"{threshold:g}", ["LazyCache", inputs]),
        ]
        if threshold == 0.1:
            rows.append(row("core", "EasyCache", f"{threshold:g}", ["EasyCache", inputs]))
    return rows


SEER = [
    (f"N {n}, order {order}", {"fresh_threshold": n, "max_order": order})
    for n, order in ((3, 1), (4, 1), (6, 1), (6, 2))
]
PACK_NODES = {
    "TeaCache": (
        PACKS[0],
        "TeaCache",
        {"model_type": "flux", "start_percent": 0.0, "end_percent": 1.0, "cache_device": "cpu"},
        [(f"{x:g}", {"rel_l1_thresh": x}) for x in (0.2, 0.3, 0.4, 0.8)],
    ),
    "WaveSpeed (first block)": (
        PACKS[1],
        "ApplyFBCacheOnModel",
        {"object_to_patch": "diffusion_model"},
        [(f"{x:g}", {"residual_diff_threshold": x}) for x in (0.05, 0.08, 0.12, 0.2)],
    ),
    "MagCache": (
        PACKS[2],
        "MagCache",
        {"model_type": "flux", "retention_ratio": 0.2, "start_step": 0, "end_step": -1},
        [
            (f"{x:g}, K {k}", {"magcache_thresh": x, "magcache_K": k})
            for x, k in ((0.03, 2), (0.06, 2), (0.12, 3), (0.24, 5))
        ],
    ),
    "TaylorSeer pack": (
        PACKS[3],
        "TaylorSeer",
        {"model_type": "flux", "first_enhance": 3, "last_enhance": 50},
        SEER,
    ),
    "TaylorSeer pack, Lite": (
        PACKS[3],
        "TaylorSeerLite",
        {"model_type": "flux", "first_enhance": 3, "last_enhance": 50},
        SEER,
    ),
}
"""Packs of others over their main setting, the rest as their nodes have it: pack, node, its inputs, and those
of each row."""


def packs(short: bool) -> list[dict]:
    """A short list has the last but one setting of each."""
    return [
        row("pack", curve, label, [node, {**inputs, **more}], pack=pack)
        for curve, (pack, node, inputs, rows) in PACK_NODES.items()
        for label, more in (rows[-2:-1] if short else rows)
    ]


SHORT_PRESETS = ("quality", "balanced", "fast", "planned")
SAMPLED_PRESETS = (*SHORT_PRESETS, "adaptive", "duca", "fora", "taylorseer", "dicache")
"""The others are compared by bench.forecasts and bench.quality."""
SPEEDUPS = (2.0, 4.0)
FORECASTS = {
    "TAP": PRESETS["tap"]["predictor"],
    "least squares": {"name": "linear", "gain": 0.9, "adapt": "least_squares"},
}
"""Candidates for the general presets, which must do without a profile; others stand behind these in
docs/forecasts.md."""
ENDS = {"3 first, 1 last": {"warmup": 3, "tail": 1}, "1 first": {"warmup": 1}}


def recipe_row(group: str, curve: str, label: str, recipe: dict) -> dict:
    return row(group, curve, label, ["FeatureForecast", {"preset": "balanced", "recipe": to_json(recipe)}])


def ours(short: bool, candidates: bool) -> list[dict]:
    """The presets, and perhaps the range that the general ones were chosen from."""
    rows = [
        row("preset", name, name, ["DualCache", {"preset": name}])
        for name in PRESETS
        if name in (SHORT_PRESETS if short else SAMPLED_PRESETS)
    ]
    rows += [
        recipe_row("plan", "planned", f"{s:g}x", {"name": "planned", **preset("planned"), "speedup": s})
        for s in SPEEDUPS
    ]
    taken = [preset(name) for name in SAMPLED_PRESETS]
    for name, forecast in FORECASTS.items() if candidates else ():
        for ends, more in ENDS.items():
            for n in (2, 3, 4, 5):
                parts = {"generator": {"type": "uniform", "interval": n, **more}, "predictor": forecast}
                if not any(parts.items() <= other.items() for other in taken):
                    rows.append(
                        recipe_row(
                            "candidate",
                            f"{name}, {ends}",
                            f"N {n}",
                            {"name": "candidate", "about": "Candidate for a preset.", **parts},
                        )
                    )
    return rows


def rows_of(part: str) -> list[dict]:
    """What a part samples: plain sampling first, then perhaps what stands for the exact solution.

    The packs of others have their range on the older ComfyUI, where they run; what the presets were chosen
    from stands on the newer one, at both guidances."""
    short = part != "new"
    exact = [] if short else [row(EXACT, EXACT, str(EXACT_STEPS), steps=EXACT_STEPS, sampler="heun")]
    others = packs(part != "old") if PARTS[part][2] == 1 else []
    return [
        row(PLAIN, PLAIN, str(STEPS)),
        *exact,
        *fewer(short),
        *core(short),
        *others,
        *ours(short, candidates=part in ("new", "guided")),
    ]


# --- the hosts ------------------------------------------------------------------------------------


def comfyui(which: str) -> Path | None:
    """A ComfyUI folder, found as scripts/test.sh finds it, or None."""
    if which == "old":
        places = [os.environ.get("COMFYUI_OLD_PATH"), Path.home() / "comfy" / "ComfyUI-0.3.64"]
    else:
        inside = ROOT.parent.parent if ROOT.parent.name == "custom_nodes" else None
        places = [os.environ.get("COMFYUI_PATH"), inside, Path.home() / "comfy" / "ComfyUI"]
    return next(
        (p for p in map(Path, filter(None, places)) if (p / "main.py").is_file() and (p / "comfy").is_dir()),
        None,
    )


def python_of(folder: Path) -> str | None:
    """The Python that a ComfyUI runs with, or None."""
    own = (folder / env / path for env in (".venv", "venv") for path in ("bin/python", "Scripts/python.exe"))
    return next((str(p) for p in own if p.is_file()), None) or shutil.which(
        os.environ.get("COMFYUI_PYTHON", "")
    )


def found_packs(folder: Path | None) -> dict[str, Path]:
    """Folders of the known packs, by name."""
    return {
        name: (folder / name).resolve()
        for name in PACKS
        if folder is not None and (folder / name / "__init__.py").is_file()
    }


def commit_of(folder: Path) -> str | None:
    done = subprocess.run(
        ["git", "-C", str(folder), "log", "-1", "--format=%h, %cs"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


def measure(part: str, args, known: dict | None) -> dict:
    """Runs a part's worker; adds its captions to those of `known` where the rows are the same. RuntimeError
    where it cannot run."""
    which, dtype, guidance = PARTS[part]
    folder = comfyui(which)
    python = folder and python_of(folder)
    if not python:
        raise RuntimeError(
            f"The part {part} needs a ComfyUI with a Python of its own; set "
            f"COMFYUI_{'OLD_' * (which == 'old')}PATH to one."
        )
    there, rows = (
        found_packs(args.packs),
        [r for r in rows_of(part) if not args.only or r["group"] in (PLAIN, EXACT, *args.only)],
    )
    rows = [r for r in rows if "pack" not in r or r["pack"] in there]
    same = known is not None and args.add and [key_of(r) for r in known["rows"]] == [key_of(r) for r in rows]
    captions = prompts(args.prompts)
    todo = [i for i, caption in enumerate(captions) if not same or caption not in known["captions"]]
    job = {
        "comfyui": str(folder),
        "packs": [str(p) for p in there.values()],
        "dtype": dtype,
        "guidance": guidance,
        "size": args.size,
        "captions": captions,
        "todo": todo,
        "rows": rows,
        "threads": args.threads,
        "minutes": args.minutes,
    }
    with tempfile.TemporaryDirectory() as temporary:
        task, out = Path(temporary) / "job.json", Path(temporary) / "out.jsonl"
        task.write_text(json.dumps(job), encoding="utf-8")
        with (
            subprocess.Popen([python, "-m", "bench.rivals_worker", str(task), str(out)], cwd=ROOT) as process,
            tqdm(total=len(rows) * len(todo), desc=part, disable=args.quiet) as bar,
        ):
            while process.poll() is None:
                time.sleep(1)
                if out.exists():
                    bar.update(out.read_bytes().count(b"\n") - bar.n)
        lines = (
            [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
            if out.exists()
            else []
        )
    if not any("done" in line for line in lines) and (process.returncode or not same):
        why = (
            f"with exit status {process.returncode} before its first caption; it says why above"
            if process.returncode
            else ("before its first caption was done; give it more minutes")
        )
        raise RuntimeError(f"The part {part} ended {why}.")
    return result(
        part, job, lines, {name: commit_of(path) for name, path in there.items()}, known if same else None
    )


def key_of(row: dict) -> tuple:
    return row["group"], row["curve"], row["label"]


def result(part: str, job: dict, lines: Sequence[dict], packs: dict, known: dict | None = None) -> dict:
    """What the JSON says of a part: what its worker told of the captions that it finished, behind those of
    `known`."""
    whole = {line["caption"] for line in lines if "done" in line}
    about = {
        k: v for line in lines if "row" not in line for k, v in line.items() if k not in ("caption", "done")
    }
    where = machine()
    loads = [
        *(known["loads"] if known else []),
        *(round(about[k][0], 1) for k in ("load_before", "load_after") if k in about),
    ]
    rows = []
    for i, row in enumerate(job["rows"]):
        own = [line for line in lines if line.get("row") == i]
        error = next((line["error"] for line in own if "error" in line), None)
        if error is not None:
            rows.append({**row, "error": error})
            continue
        own = sorted((line for line in own if line["caption"] in whole), key=lambda line: line["caption"])
        old = known["rows"][i] if known else {}
        if "error" in old:
            rows.append(old)  # it lacks the captions before
            continue
        lists = {
            name: [*old.get(name, []), *(_rounded(line[name]) for line in own)]
            for name in MEASURES
            if name in (own or [old])[0]
        }
        rows.append({**row, **lists, **summary(lists)})
    return {
        "part": part,
        **about["versions"],
        "guidance": job["guidance"],
        "size": job["size"],
        "steps": STEPS,
        "captions": [*(known["captions"] if known else []), *(job["captions"][i] for i in sorted(whole))],
        "machine": {k: where[k] for k in ("cpu", "cores", "system", "date")},
        "loads": loads,
        "packs": packs,
        "rows": rows,
    }


MEASURES = ("cpu", "wall", "full_calls", "psnr", "ssim", "exact")
"""Of every caption: CPU and wall seconds, evaluations in full, PSNR and SSIM to plain sampling, PSNR to the
exact solution."""


def _rounded(x: float) -> float | None:
    """As JSON has it: None stands for an infinite PSNR, of equal pictures."""
    return round(x, 4) if math.isfinite(x) else None


def summary(lists: dict[str, list]) -> dict:
    """Medians and quartiles of CPU seconds, median and worst likeness."""
    low, middle, high = quantiles(lists["cpu"], n=4) if len(lists["cpu"]) > 1 else lists["cpu"] * 3
    said = {
        "seconds": round(middle, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "calls": round(median(lists["full_calls"]), 1),
    }
    for name in ("psnr", "ssim", "exact"):
        if name in lists:
            values = [math.inf if v is None else v for v in lists[name]]
            said[f"{name}_median"], said[f"{name}_worst"] = finite(values, median), finite(values, min)
    return said


def read(path: Path) -> dict:
    return (
        json.loads(path.read_text(encoding="utf-8"))
        if path.exists()
        else {"format": 1, "kind": "rivals_bench", "runs": []}
    )


def text_of(data: dict) -> str:
    """JSON with a line per row."""
    runs = [
        json.dumps({**run, "rows": []}, allow_nan=False).replace(
            '"rows": []',
            '"rows": [\n  ' + ",\n  ".join(json.dumps(r, allow_nan=False) for r in run["rows"]) + "]",
        )
        for run in data["runs"]
    ]
    return (
        json.dumps({**data, "runs": []}, indent=1).replace(
            '"runs": []', '"runs": [\n ' + ",\n ".join(runs) + "\n ]"
        )
        + "\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packs", type=Path, help=f"folder that holds {', '.join(PACKS)}, or some of them")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="what to measure; other parts keep their results",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=("fewer", "core", "pack", "preset", "plan", "candidate"),
        help="groups of rows",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON whose parts are replaced")
    parser.add_argument("--prompts", type=int, default=16, help="number of captions")
    parser.add_argument(
        "--add",
        action="store_true",
        help="go on with the captions that earlier results lack, instead of replacing them",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=1e6,
        help="no further caption is begun when a part has run for so long",
    )
    parser.add_argument("--size", type=int, default=SIZE, help="edge of the pictures in pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--page", action="store_true", help="only make the page and the picture again")
    args = parser.parse_args(arguments)
    for part in [] if args.page else args.parts:
        try:
            run = measure(part, args, next((r for r in read(args.out)["runs"] if r["part"] == part), None))
        except RuntimeError as error:
            sys.exit(str(error))
        data = read(args.out)  # again, as another part may have been measured beside this one
        data["model"] = {"file": MODEL, "sha256": hashlib.sha256((WEIGHTS / MODEL).read_bytes()).hexdigest()}
        data["runs"] = sorted(
            [*(r for r in data["runs"] if r["part"] != part), run], key=lambda r: list(PARTS).index(r["part"])
        )
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text_of(data), encoding="utf-8")
    data = read(args.out)
    if args.out == RESULTS:
        picture(data, PAGE.with_suffix(".png"))
        PAGE.write_text(page(data), encoding="utf-8")
        text = with_table(MEASUREMENTS.read_text(encoding="utf-8"), data)
        MEASUREMENTS.write_text(text, encoding="utf-8")
        RECIPES.write_text(with_measurements(RECIPES.read_text(encoding="utf-8")), encoding="utf-8")
    print(page(data))


if __name__ == "__main__":
    main()
