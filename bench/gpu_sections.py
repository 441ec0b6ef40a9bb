"""Sections that every model is put through: time per kind of step, memory against the estimate, exactness,
synchronising calls and launches."""

from __future__ import annotations

import time
import warnings
from collections import Counter, defaultdict

import torch

from .gpu_host import ROOT, Host
from .gpu_models import Loaded
from .gpu_run import Clock, cached, ideal, predictor, run, warm_up

PRESETS = ("balanced", "quality", "fast", "adaptive", "duca", "taylorseer")
PLANS = {"duca": "FFFCACFCA"}
PLAN = "FFFAAFAAF"
"""Of runs that are too short for a preset's own plan."""
TRACED = ("balanced", "adaptive", "duca", "taylorseer")
SAME_LEVELS = [1.0, 0.8, 0.8, 0.5, 0.5, 0.0]
"""Noise levels at which a skipped step stands where the full one before it stood."""
EXACT = {
    "A at the final hidden state": ("FFAFA", {}),
    "A at every block": ("FFAFA", {"level": "block"}),
    "A at every module": ("FFAFA", {"level": "module"}),
    "A at a run of blocks": ("FFAFA", {"level": "stack"}),
    "A at the output": ("FFAFA", {"level": "output"}),
    "C of all rows": ("FFCFC", {}),
    "C of all rows, attention live": ("FFCFC", {"attention": "live"}),
}
ROUNDED = ("A at every block", "A at a run of blocks")
"""These add a difference that was rounded to 16 bits, so they are close and not equal."""


def environment(host: Host) -> dict:
    import comfy.ldm.modules.attention
    import comfy.model_management as management

    found = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(0) if host.cuda else "CPU",
        "dtype": str(host.dtype).removeprefix("torch."),
        "comfyui": host.part("nodes.comfy.sampling_run").HOST,
        "replaced_packages": sorted(host.replaced),
        "attention": comfy.ldm.modules.attention.optimized_attention.__name__,
        "memory_mode": management.vram_state.name,
        "notes": {k: v for k, v in host.notes.items() if isinstance(v, str)},
    }
    if host.cuda:
        found["total_mb"] = torch.cuda.get_device_properties(0).total_memory >> 20
        found["free_mb"] = torch.cuda.mem_get_info()[0] >> 20
    return found


def timed(
    model: Loaded,
    presets,
    steps: int,
    kinds: str | None = None,
    save=lambda found: None,
    warm: bool = True,
) -> dict:
    """Plain sampling and presets: ms per kind of step, speed-up and ideal, peak against estimate.

    warm: whether every preset runs before it is timed; not where a step takes seconds."""
    weights, here = model.megabytes
    found: dict = {"weights_mb": weights, "on_device_mb": here, "runs": {}}
    if warm:
        warm_up(model)
    else:
        run(model, steps=1)
    plain_latents, _, plain = run(model, steps=steps)
    step = sorted(plain["step_ms"][1:])[len(plain["step_ms"][1:]) // 2]
    found["runs"]["plain"], found["plain_step_ms"] = plain, step
    for name in presets:
        plan = {"duca": "FFCAF"}.get(name, "FFFAF")
        if warm:
            warm_up(model, cached(model, name, plan))
        latents, _, figures = run(model, cached(model, name, kinds), steps=steps)
        best = ideal(figures["kinds"])
        figures.update(
            speedup=round(plain["wall_s"] / figures["wall_s"], 3),
            ideal=best,
            added_peak_mb=figures.get("peak_mb", 0) - plain.get("peak_mb", 0),
            from_plain=round(float((latents - plain_latents).norm() / plain_latents.norm()), 4),
        )
        found["runs"][name] = figures
        save(found)
    return found


def correct(model: Loaded) -> dict:
    """Off equals plain; a skipped step at the noise level of the full one before it is exact; so is a
    conservative step of all rows; a run repeats itself and leaves nothing on the model."""
    plain, _, _ = run(model, steps=4)
    again, _, _ = run(model, steps=4)
    off, _, _ = run(model, cached(model, "off"), steps=4)
    found: dict = {
        "plain_repeats": bool(torch.equal(plain, again)),
        "off_equals_plain": bool(torch.equal(plain, off)),
    }
    for name, (kinds, changes) in EXACT.items():
        patcher = cached(
            model, None, kinds, ratio=1.0, predictor=predictor(model.host, name="reuse"), **changes
        )
        _, clock, figures = run(model, patcher, sigmas=SAME_LEVELS, keep=True)
        pairs = [(clock.outputs[i], clock.outputs[i + 1]) for i in (1, 3)]
        found[name] = {
            "kinds": figures["kinds"],
            "equal": all(torch.equal(a, b) for a, b in pairs),
            "off_by": max(float((a - b).norm() / a.norm()) for a, b in pairs),
            "messages": figures["messages"],
        }
    first, _, _ = run(model, cached(model, "balanced", PLAN), steps=9)
    second, _, _ = run(model, cached(model, "balanced", PLAN), steps=9)
    found["cached_repeats"] = bool(torch.equal(first, second))
    found["left_behind"] = [n for n, m in model.patcher.model.named_modules() if "forward" in m.__dict__]
    return found


def synchronising(model: Loaded) -> dict:
    """Calls that make the host wait, by torch's own warning, with the line that made them, per kind."""
    host = model.host
    if not host.cuda:
        return {"skipped": "needs CUDA"}
    found = {}
    for name in (None, *PRESETS):
        clock, seen = Clock(host), defaultdict(Counter)

        def note(message, category, filename, line, *_, clock=clock, seen=seen):
            if "synchroniz" in str(message):
                where = filename.replace(str(ROOT), "PACK").replace(str(host.comfy), "COMFY")
                seen[clock.at][f"{where}:{line}"] += 1

        show = warnings.showwarning
        patcher = cached(model, name, PLANS.get(name, PLAN)) if name else None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.showwarning = note
                torch.cuda.set_sync_debug_mode("warn")
                _, _, figures = run(model, patcher, steps=9, clock=clock)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            warnings.showwarning = show
        found[name or "plain"] = _by_kind(figures.get("kinds", "F" * 9), seen)
    return found


def _by_kind(kinds: str, seen: dict) -> dict:
    by: dict = defaultdict(lambda: [0, Counter()])
    for i, kind in enumerate(kinds):
        key = f"{kind} first" if i == 0 else f"{kind} last" if i == len(kinds) - 1 else kind
        by[key][0] += 1
        by[key][1].update(seen.get(i, {}))
    return {
        key: {"evaluations": n, "per_evaluation": round(sum(where.values()) / n, 2), "where": dict(where)}
        for key, (n, where) in by.items()
    }


def launches(model: Loaded) -> dict:
    """Launches, copies and waits per kind of step, by torch.profiler; operators where there is no GPU."""
    from torch.profiler import ProfilerActivity, profile

    host, found = model.host, {}
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if host.cuda else [])]
    for name in (None, *(TRACED[:1] if host.tiny else TRACED)):
        with profile(activities=activities, acc_events=True) as traced:
            patcher = cached(model, name, PLANS.get(name, PLAN)) if name else None
            _, _, figures = run(model, patcher, steps=9, label=True)
        kinds = figures.get("kinds", "F" * 9)
        found[name or "plain"] = _counted(traced.events(), kinds, host.cuda)
    return found


def _counted(events, kinds: str, cuda: bool) -> dict:
    spans, calls = {}, []
    for e in events:
        if e.name.startswith("EVAL ") and e.device_type == torch.autograd.DeviceType.CPU:
            spans[int(e.name[5:])] = (e.time_range.start, e.time_range.end)
        elif (cuda and e.name.startswith("cu")) or (not cuda and e.name.startswith("aten::")):
            calls.append((e.time_range.start, e.name))
    by: dict = defaultdict(lambda: [0, Counter()])
    for i, (start, end) in spans.items():
        if i:
            by[kinds[i]][0] += 1
            by[kinds[i]][1].update(_group(name) for at, name in calls if start <= at <= end)
    return {
        kind: {"evaluations": n, **{k: round(v / n, 1) for k, v in count.items() if k}}
        for kind, (n, count) in by.items()
    }


def _group(name: str) -> str:
    for part, group in (
        ("Launch", "launches"),
        ("Memcpy", "copies"),
        ("Synchronize", "waits"),
        ("cudaMalloc", "allocations"),
        ("HostAlloc", "pinned_allocations"),
        ("aten::", "operators"),
    ):
        if part in name:
            return group
    return ""


def guidance(model: Loaded) -> dict:
    """Two branches per step."""
    warm_up(model, cached(model, "balanced", "FFFAF"), cfg=3.0)
    _, _, plain = run(model, steps=9, cfg=3.0)
    _, _, figures = run(model, cached(model, "balanced", PLAN), steps=9, cfg=3.0)
    return {
        "plain_s": plain["wall_s"],
        "cached_s": figures["wall_s"],
        "ideal": ideal(figures["kinds"]),
        "added_peak_mb": figures.get("peak_mb", 0) - plain.get("peak_mb", 0),
        **{k: figures[k] for k in ("kinds", "ms", "estimate_mb", "cached_mb")},
    }


def attention_backends(model: Loaded) -> dict:
    """Every backend of scaled_dot_product_attention under a cached run."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        found[backend.name] = _under(backend if model.host.cuda else SDPBackend.MATH, model, sdpa_kernel)
    return found


def _under(backend, model: Loaded, sdpa_kernel) -> dict:
    try:
        with sdpa_kernel([backend]):
            _, _, figures = run(model, cached(model, "duca", "FFCAFCAF"), steps=8)
        return {k: figures[k] for k in ("kinds", "ms", "messages")}
    except RuntimeError as error:  # a card may lack it
        return {"error": str(error)[:200]}


def video_or_large(host: Host, which: str, seconds_left: float, save) -> dict:
    """A model of its own, with fewer blocks where the time is short."""
    blocks = 0 if seconds_left > 120 or host.tiny else 20
    began = time.perf_counter()
    model = Loaded(host, which, blocks).load()
    try:
        found = timed(model, ("balanced", "adaptive"), 6, "FFFAAF", save, warm=which != "wan")
        found["blocks"] = blocks or "all"
        found["took_s"] = round(time.perf_counter() - began, 1)
        return found
    finally:
        model.drop()
