"""Every sampler with every scheduler: does caching stay finite and counted, and how far is it from plain
sampling?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import partial

from . import embedded  # before all of ComfyUI

import comfy.samplers  # isort: skip
import torch  # isort: skip

from .rows import Deadline, Row, tried  # isort: skip

STEPS = 12
OK = "ok"


class Calls:
    """Counts the calls of the embedded transformer by itself, beside the report's own count: all, and those
    that ran the blocks."""

    def __init__(self, model):
        net, self.all, self.full = model.model.diffusion_model, 0, 0
        self._handles = [
            net.register_forward_pre_hook(partial(self._add, "all")),
            net.single_blocks[-1].linear1.register_forward_pre_hook(partial(self._add, "full")),
        ]

    def _add(self, name, *_):
        setattr(self, name, getattr(self, name) + 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self._handles:
            handle.remove()


def try_one(sampler: str, scheduler: str) -> Row:
    """One sampler with one scheduler at guidance 1, where CFG++ has its place too."""
    torch.manual_seed(0)
    options = {"steps": STEPS, "sampler": sampler, "scheduler": scheduler, "cfg": 1.0}
    base = embedded.model()
    patched, plain = embedded.cached(base), embedded.sample(base, **options)
    with Calls(base) as calls:
        out = embedded.sample(patched, **options)
    run = embedded.Pair(plain, out, embedded.report_of(patched))
    report, totals = run.report, run.report.totals()
    wrong = run.wrong
    if bool(plain.isfinite().all()) is False:
        wrong = "" if wrong == "not finite" else wrong  # nor is plain sampling
    if (calls.all, calls.full) != (totals["calls"], totals["full_calls"]):
        wrong = (
            wrong
            or f"{calls.all} calls, {calls.full} in full, the report says {totals['calls']} and "
            f"{totals['full_calls']}"
        )
    stages = max(r.phase for r in report.records) + 1
    reasons = Counter(r.reason for r in report.records if r.actual != r.planned or r.reason != "planned")
    said = wrong or ", ".join(f"{k} {v}" for k, v in reasons.items()) or OK
    return Row(
        f"{sampler} / {scheduler}",
        not wrong,
        said,
        {
            "evaluations": totals["evaluations"],
            "full": totals["full"],
            "skipped": totals["skipped"],
            "planned": report.schedule["kinds"].count("A") * stages,
            "psnr": run.psnr if math.isfinite(run.psnr) else str(run.psnr),
        },
    )


def cases(samplers=None, schedulers=None) -> list:
    samplers = samplers or comfy.samplers.KSampler.SAMPLERS
    schedulers = schedulers or comfy.samplers.KSampler.SCHEDULERS
    return [
        (f"{s} / {c}", partial(try_one, s, c)) for c in schedulers for s in samplers
    ]  # every sampler once before the second scheduler


def rows(deadline: Deadline, **which) -> Iterator[Row]:
    """One row per sampler and scheduler."""
    yield from tried(cases(**which), deadline)
