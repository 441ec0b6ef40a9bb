"""Check and bench on a GPU, inside ComfyUI, with random weights at real size and without a network:
`python -m bench.gpu`.

Checks that the pack is exact where it must be, and measures milliseconds of every kind of step, realised
against ideal speed-up, memory against the estimate, calls that make the host wait and launches, on FLUX.1-dev
at 1024 x 1024, Wan 14B at 480p and Qwen-Image. A run is added to bench/results/gpu.json after every section,
so that one that is cut off loses nothing, and docs/gpu.md is written from it.

    python -m bench.gpu --bundle [COMFYUI]     packs what a bare machine lacks into .gpu (ignored by git)
    python -m bench.gpu --comfy DIR            runs; DIR is a folder of ComfyUI
    python -m bench.gpu --tiny --comfy DIR     the same on the CPU with tiny models
    python -m bench.gpu --add FILE             adds the runs of a file from another machine to the results
"""

from __future__ import annotations

import argparse
import json
import os
import time
import traceback
from datetime import datetime, timezone
from pathlib import Path

START = time.perf_counter()
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "gpu.json"


def parse(arguments=None) -> argparse.Namespace:
    ask = argparse.ArgumentParser(prog="python -m bench.gpu", description="Check and bench on a GPU.")
    ask.add_argument("--comfy", type=Path, default=os.environ.get("COMFYUI_UNDER_TEST"))
    ask.add_argument("--out", type=Path, default=RESULTS)
    ask.add_argument("--minutes", type=float, default=4.6, help="sections that no longer fit are left out")
    ask.add_argument("--only", default="", help="names of sections, with commas")
    ask.add_argument("--skip", default="")
    ask.add_argument("--blocks", type=int, default=0, help="at most so many blocks of each kind, 0 for all")
    ask.add_argument("--tiny", action="store_true", help="tiny models on the CPU")
    ask.add_argument("--bundle", nargs="?", type=Path, const=Path.home() / "comfy" / "ComfyUI", default=None)
    ask.add_argument("--python", default="3.12", help="version of Python on the machine that is bundled for")
    ask.add_argument("--add", type=Path, default=None)
    ask.add_argument("--dynamic-child", action="store_true", help=argparse.SUPPRESS)
    return ask.parse_args(arguments)


class Bench:
    """One run: its sections in order, each guarded and saved."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.sections: dict = {}
        self.record = {"date": f"{datetime.now(timezone.utc):%Y-%m-%d}", "sections": self.sections}
        kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"runs": []}
        self.results = {"runs": [*kept["runs"], self.record]}

    def left(self) -> float:
        """Seconds."""
        return self.options.minutes * 60 - (time.perf_counter() - START)

    def save(self) -> None:
        self.record["seconds"] = round(time.perf_counter() - START, 1)
        self.options.out.parent.mkdir(parents=True, exist_ok=True)
        self.options.out.write_text(json.dumps(self.results, indent=1, default=str) + "\n", encoding="utf-8")

    def section(self, name: str, measure, least: float = 0.0) -> None:
        """Runs a section where it is asked for and at least `least` seconds are left."""
        only = self.options.only.split(",") if self.options.only else None
        if (only and name not in only) or name in self.options.skip.split(","):
            return
        if self.left() < least and not self.options.tiny:
            self.sections[name] = {"skipped": f"{self.left():.0f} s left of {least:.0f} needed"}
            self.save()
            return
        began = time.perf_counter()

        def keep(found: dict) -> None:
            self.sections[name] = found
            self.save()

        try:
            found = measure(keep)
        except Exception:
            found = {**self.sections.get(name, {}), "error": traceback.format_exc()[-2500:]}
        found["took_s"] = round(time.perf_counter() - began, 1)
        keep(found)
        state = "ERROR" if "error" in found else found.get("skipped", "done")
        print(f"[{time.perf_counter() - START:6.1f} s] {name}: {state}", flush=True)
        if "error" in found:
            print(found["error"][-800:], flush=True)


def measure(options: argparse.Namespace) -> dict:
    """All sections; gives the run's record."""
    from . import gpu_host, gpu_memory, gpu_sections
    from .gpu_models import Loaded

    host, bench = gpu_host.start(options), Bench(options)
    section = bench.section
    if options.dynamic_child:
        section("dynamic", lambda _: gpu_memory.dynamic_child(host))
        return bench.record
    section("environment", lambda _: gpu_sections.environment(host))
    model = Loaded(host, "flux").load()
    section("flux", lambda save: gpu_sections.timed(model, gpu_sections.PRESETS, 16, None, save), 40)
    for name, function, least in (
        ("correct", gpu_sections.correct, 15),
        ("synchronising", gpu_sections.synchronising, 12),
        ("launches", gpu_sections.launches, 25),
        ("guidance", gpu_sections.guidance, 8),
        ("offloaded", gpu_memory.offloaded, 12),
        ("out_of_memory", gpu_memory.out_of_memory, 12),
        ("attention_backends", gpu_sections.attention_backends, 100),
    ):
        section(name, lambda _, function=function: function(model), least)
    model.drop()
    section("compiled", lambda _: gpu_memory.compiled(host, bench.left), 35)
    section("dynamic", lambda _: gpu_memory.dynamic(host, options, bench.left()), 40)
    section("streamed", lambda _: gpu_memory.streamed(host), 12)
    for name, least in (("wan", 55), ("qwen", 25)):
        section(
            name,
            lambda save, name=name: gpu_sections.video_or_large(host, name, bench.left(), save),
            least,
        )
    return bench.record


def main() -> None:
    options = parse()
    if options.bundle is not None:
        from .gpu_bundle import bundle

        print(bundle(options.bundle, options.python))
        return
    if options.add is not None:
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"runs": []}
        results["runs"] += json.loads(options.add.read_text(encoding="utf-8"))["runs"]
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    elif options.comfy is None:
        raise SystemExit("bench.gpu needs --comfy, the folder of a ComfyUI.")
    else:
        measure(options)
    if options.out == RESULTS:
        from .gpu_page import write

        write()


if __name__ == "__main__":
    main()
