"""One sampling run, timed evaluation by evaluation on the device's clock."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections import defaultdict
from statistics import median

import torch

from .gpu_host import Host
from .gpu_models import Loaded


class Clock:
    """Times evaluations, keeps their outputs if asked, and tells which evaluation is running.

    A step lasts from the beginning of its evaluation to the beginning of the next one.
    """

    def __init__(self, host: Host, keep: bool = False, label: bool = False):
        self.host, self.keep, self.label = host, keep, label
        self.at, self.outputs, self.host_ms = -1, [], []
        self._marks: list = []

    def wrapper(self, executor, x, timestep, model_options=None, seed=None):
        """A PREDICT_NOISE wrapper of ComfyUI."""
        self.at += 1
        self._mark()
        began = time.perf_counter()
        scope = torch.profiler.record_function(f"EVAL {self.at}") if self.label else contextlib.nullcontext()
        with scope:
            out = executor(x, timestep, {} if model_options is None else model_options, seed)
        self.host_ms.append(round((time.perf_counter() - began) * 1e3, 3))
        if self.keep:
            self.outputs.append(out.detach().clone())
        return out

    def _mark(self) -> None:
        if self.host.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def stop(self) -> list[float]:
        """Milliseconds of every step; waits for the device."""
        self._mark()
        self.host.synchronize()
        pairs = zip(self._marks, self._marks[1:])
        if self.host.cuda:
            return [round(a.elapsed_time(b), 3) for a, b in pairs]
        return [round((b - a) * 1e3, 3) for a, b in pairs]


def cached(model: Loaded, preset: str | None = None, kinds=None, ratio=0.1, memory=0.0, **changes):
    """A clone of the model's patcher under a preset or under settings; memory: GB for caches, 0 for auto."""
    host = model.host
    plan = None if kinds is None else host.part("cache_core.schedule.plan").explicit(kinds, ratio)
    if preset:
        settings = host.part("cache_core.recipes").from_preset(preset, plan, **changes)
    else:
        settings = host.part("cache_core.config").CacheConfig(schedule=plan, **changes)
    patching = host.patching
    return patching.patch(model.patcher, patching.KEY, patching.CacheRequest(settings, None, memory=memory))


def predictor(host: Host, **named):
    return host.part("cache_core.predictors.build").forecast(named)


def run(
    model: Loaded,
    patcher=None,
    steps: int = 0,
    sigmas=None,
    cfg: float = 1.0,
    keep=False,
    label=False,
    clock=None,
):
    """Samples once with Euler; gives the latents, the clock and the figures.

    patcher: from `cached`, None for plain sampling. The clone that samples is kept in `host.notes`, since
    ComfyUI releases the pinned weights of a model when any clone of it is deleted.
    """
    import comfy.sample
    from comfy.patcher_extension import WrappersMP

    host, clock = model.host, clock or Clock(model.host, keep, label)
    m = (patcher or model.patcher).clone()
    host.notes.setdefault("clones", []).append(m)
    _put_first(m, WrappersMP.PREDICT_NOISE, clock.wrapper)
    latent = torch.zeros(1, *model.spec["latent"])
    noise = comfy.sample.prepare_noise(latent, 0)
    positive, negative = model.conditions(1, 1), model.conditions(1, 2)
    before = 0
    if host.cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    began = time.perf_counter()
    with torch.inference_mode():  # as ComfyUI runs a node
        out = comfy.sample.sample(
            m,
            noise,
            steps or len(sigmas) - 1,
            cfg,
            "euler",
            "simple",
            positive,
            negative,
            latent,
            disable_pbar=True,
            seed=0,
            sigmas=None if sigmas is None else torch.tensor(sigmas),
        )
    step_ms = clock.stop()
    figures = {"wall_s": round(time.perf_counter() - began, 4), "step_ms": step_ms, "host_ms": clock.host_ms}
    if host.dynamic:
        _end_of_node()
    if host.cuda:
        figures.update(
            peak_mb=torch.cuda.max_memory_allocated() >> 20,
            peak_over_start_mb=(torch.cuda.max_memory_allocated() - before) >> 20,
            finite=bool(torch.isfinite(out).all()),
        )
    request = host.part("nodes.comfy.requests").request_of(m)
    report = request.box.report if request is not None else None
    if report is not None:
        figures.update(_of_report(report, step_ms))
    return out, clock, figures


def warm_up(model: Loaded, patcher=None, cfg: float = 1.0) -> None:
    """Runs every kind of step that a plan uses, so that no later figure holds the first use of a kernel."""
    for _ in range(1 if model.host.tiny else 2):
        run(model, patcher, steps=5, cfg=cfg)


def _put_first(patcher, kind, wrapper) -> None:
    """Adds a wrapper outside those of the pack, so that it times their work too."""
    patcher.add_wrapper_with_key(kind, "dual_cache_clock", wrapper)
    chain = getattr(patcher, "wrappers", {}).get(kind, {})
    others = {key: value for key, value in chain.items() if key != "dual_cache_clock"}
    mine = chain["dual_cache_clock"]
    chain.clear()
    chain.update({"dual_cache_clock": mine, **others})


def _end_of_node() -> None:
    """What ComfyUI does behind every node with DynamicVRAM."""
    import comfy.model_management

    comfy.model_management.reset_cast_buffers()
    importlib.import_module("comfy.model_prefetch").cleanup_prefetch_queues()
    importlib.import_module("comfy_aimdo.model_vbar").vbars_reset_watermark_limits()


def _of_report(report, step_ms: list[float]) -> dict:
    kinds = "".join(r.actual for r in report.records)
    by = defaultdict(list)
    for i, (kind, ms) in enumerate(zip(kinds, step_ms)):
        if i:  # the first step also holds what happens once per run
            by[kind].append(ms)
    return {
        "kinds": kinds,
        "messages": report.messages,
        "estimate_mb": report.estimated_bytes >> 20,
        "cached_mb": report.peak_bytes >> 20,
        "ms": {kind: round(median(values), 3) for kind, values in by.items()},
    }


def ideal(kinds: str) -> float:
    """The speed-up if only full steps took time."""
    return round(len(kinds) / max(kinds.count("F"), 1), 3)
