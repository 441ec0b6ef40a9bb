"""Sections about memory and compilation: offloaded snapshots, out of memory, weights that stay in main
memory, DynamicVRAM, torch.compile."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from .gpu_host import ROOT, Host
from .gpu_models import Loaded
from .gpu_run import cached, predictor, run, warm_up

GIB = 2**30
KINDS = "FFFAAFAAF"
KEPT = ("wall_s", "step_ms", "ms", "kinds", "messages", "peak_over_start_mb")


def _some(figures: dict, names=KEPT) -> dict:
    return {k: figures[k] for k in names if k in figures}


def offloaded(model: Loaded) -> dict:
    """Snapshots in pinned main memory under a small budget: the same latents, and what the copies cost."""
    found, more = {}, 60 if model.host.cuda else 0
    warm_up(model, cached(model, "taylorseer", "FFFAF", memory=more))
    near, _, figures = run(model, cached(model, "taylorseer", KINDS, memory=more), steps=9)
    found["on_device"] = _some(figures)
    for memory in (2.0, 0.5, 0.25):
        runs, equal = [], True
        for _ in range(2 if memory == 0.5 else 1):
            away, _, figures = run(model, cached(model, "taylorseer", KINDS, memory=memory), steps=9)
            equal = equal and bool(torch.equal(near, away))
            runs.append(_some(figures))
        found[f"{memory} GB"] = {"equal": equal, "runs": runs}
    return found


def out_of_memory(model: Loaded) -> dict:
    """Memory ends while features are kept: the call is repeated, the rest is plain, nothing leaks."""
    host = model.host
    if not host.cuda:
        return {"skipped": "needs CUDA"}
    total = torch.cuda.get_device_properties(0).total_memory
    plain, _, before = run(model, steps=9)
    found = {}
    for extra in (0.4, 1.2, 2.5):  # GB beyond what plain sampling takes
        host.release()
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, (before["peak_mb"] * 2**20 + extra * GIB) / total)
        )
        try:
            out, _, figures = run(model, cached(model, "taylorseer", KINDS, memory=60), steps=9)
            found[f"{extra} GB"] = {
                "equals_plain": bool(torch.equal(out, plain)),
                **_some(figures, ("kinds", "messages")),
            }
        except Exception as error:
            found[f"{extra} GB"] = {"error": repr(error)[:300]}
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    host.release()
    after, _, figures = run(model, steps=9)
    found["afterwards"] = {
        "equals_plain": bool(torch.equal(after, plain)),
        "peak_mb": figures["peak_mb"],
        "plain_peak_mb": before["peak_mb"],
    }
    return found


def streamed(host: Host) -> dict:
    """Weights stay in main memory, as with --novram: are those of skipped blocks sent on A steps?"""
    import comfy.model_management as management

    model = Loaded(host, "flux", 0 if host.tiny else 3).fill_in_main_memory()
    mode, found = management.vram_state, {"weights_mb": model.megabytes[0]}
    try:
        if host.cuda:
            management.vram_state = management.VRAMState.NO_VRAM
        for key in ("plain", "plain_last"):
            _, _, figures = run(model, steps=4)
            found[key] = figures["step_ms"]
            if key == "plain":
                for name, kinds in (("balanced", KINDS), ("duca", "FFFCAFCAF"), ("taylorseer", KINDS)):
                    _, _, cached_figures = run(model, cached(model, name, kinds), steps=9)
                    found[name] = _some(cached_figures)
    finally:
        management.vram_state = mode
        model.drop()
    return found


def compiled(host: Host, seconds_left) -> dict:
    """ComfyUI's torch.compile node, default mode and CUDA graphs, on a few blocks of full width."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = Loaded(host, "flux", 3).load()
    warm_up(model, cached(model, "balanced", "FFFAF"))
    _, _, plain = run(model, steps=9)
    eager, _, figures = run(model, cached(model, "balanced", KINDS), steps=9)
    found: dict = {"eager": {"plain": plain["step_ms"], "cached": figures["step_ms"]}}
    ways = {
        "inductor": dict(backend="inductor"),
        "reduce-overhead": dict(backend="inductor", mode="reduce-overhead"),
    }
    if not host.cuda:
        ways = {"eager backend": dict(backend="eager")}
    for name, how in ways.items():
        if seconds_left() < 25 and not host.tiny:
            found[name] = {"skipped": f"{seconds_left():.0f} s left"}
            continue
        torch._dynamo.reset()
        patcher = cached(model, "balanced", KINDS)
        set_torch_compile_wrapper(patcher, **how)
        began = time.perf_counter()
        first, _, _ = run(model, patcher, steps=9)
        took = round(time.perf_counter() - began, 2)
        second, _, figures = run(model, patcher, steps=9)
        found[name] = {
            "first_run_s": took,
            **_some(figures),
            "off_eager_by": round(float((second - eager).norm() / eager.norm()), 6),
            "repeats": bool(torch.equal(first, second)),
            "frames": sum(torch._dynamo.utils.counters["frames"].values()),
            "graph_breaks": sum(torch._dynamo.utils.counters["graph_break"].values()),
        }
        if seconds_left() > 25 or host.tiny:
            alone = model.patcher.clone()
            set_torch_compile_wrapper(alone, **how)
            run(model, alone, steps=3)
            _, _, figures = run(model, alone, steps=5)
            found[name]["plain"] = figures["step_ms"]
    model.drop()
    return found


def dynamic(host: Host, options, seconds_left: float) -> dict:
    """DynamicVRAM (comfy-aimdo) in a process of its own, with little memory left for weights."""
    if not host.cuda:
        return {"skipped": "needs CUDA"}
    out = Path(options.out).with_suffix(".dynamic.json")
    command = [sys.executable, "-m", "bench.gpu", "--dynamic-child", "--comfy", str(options.comfy)]
    command += ["--out", str(out), "--minutes", str(max(0.5, (seconds_left - 6) / 60))]
    took = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=max(30, seconds_left - 3), check=False
    )
    said = [line for line in (took.stdout + took.stderr).splitlines() if not line.startswith("aimdo:")]
    if not out.exists():
        return {"error": "\n".join(said)[-1500:]}
    found = json.loads(out.read_text(encoding="utf-8"))["runs"][-1]["sections"]["dynamic"]
    out.unlink()
    return found


def dynamic_child(host: Host) -> dict:
    """What the process of `dynamic` measures: FLUX at half of its weights, LTX-2 at 40 %."""
    import comfy.memory_management
    import comfy.model_patcher
    import comfy_aimdo.control

    try:
        ready = comfy_aimdo.control.init_devices((0,))
    except TypeError:
        ready = comfy_aimdo.control.init_devices([0])
    if not ready or "comfy_aimdo" in host.replaced:
        return {"skipped": "comfy-aimdo does not start here"}
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
    found: dict = {}
    model = Loaded(host, "flux", 8, dynamic=True).fill_in_main_memory()
    filler = _leave_free(host, int(0.5 * model.patcher.model_size()) + 3 * GIB)
    _, _, plain = run(model, steps=6)
    found["flux"] = {"weights_mb": model.megabytes[0], "plain": plain["step_ms"]}
    for name in ("balanced", "taylorseer"):
        _, _, figures = run(model, cached(model, name, KINDS), steps=9)
        found["flux"][name] = _some(figures)
    del filler
    model.drop()
    model = Loaded(host, "ltx2", 10, dynamic=True).fill_in_main_memory()
    filler = _leave_free(host, int(0.4 * model.patcher.model_size()) + 2 * GIB)
    _, _, plain = run(model, steps=4)
    patcher = cached(model, None, KINDS, predictor=predictor(host, name="linear"))
    _, _, figures = run(model, patcher, steps=9)
    found["ltx2"] = {"weights_mb": model.megabytes[0], "plain": plain["step_ms"], "linear": _some(figures)}
    del filler
    model.drop()
    return found


def _leave_free(host: Host, bytes_free: int) -> torch.Tensor:
    """A tensor that takes the device's memory up to so many free bytes."""
    host.release()
    taken = max(0, torch.cuda.mem_get_info()[0] - bytes_free)
    return torch.empty(taken, dtype=torch.int8, device=host.device)
