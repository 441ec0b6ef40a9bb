"""The runs of Cache Compare: uncached, cached, and fewer steps in the cached run's time."""

from __future__ import annotations

import time

from ..cache_core.base.wording import counted
from ..cache_core.recipes import from_preset
from ..cache_core.report.comparison import Comparison, Way, far_apart, steps_in
from ..cache_core.report.run_report import Report
from .comfy import compiled, patching, requests, samplers
from .comfy.report_box import nothing_sampled

SECONDS, CALLS, NONE = "equal seconds", "equal calls", "none"
MEASURES = {SECONDS: "measured seconds", CALLS: "counted full model calls"}
UNCACHED, CACHED, FEWER = "uncached", "cached", "fewer steps"
TIMED = (
    "Seconds are those of the whole sampler: noise, conditioning and all steps, until the device has "
    "finished. An uncounted call of "
    "one step ran before, of a compiled model an uncounted run too, so neither loading nor compiling is "
    "in them; encoding the prompt "
    "and decoding are not either."
)
NAMED = ("seed", "cfg", "sampler_name", "scheduler", "denoise")
"""The config of the sampler that the comparison repeats."""


def sampled(model, steps: int, repeats: int, fewer_from: str, options: dict) -> tuple[Comparison, dict]:
    """Samples all ways in turn; what they took, and their LATENTs by name.

    model: a MODEL with a request of Dual Cache. options: what `samplers.sample` takes beside model and
    steps."""
    request = requests.request_of(model)
    plain = requests.CacheRequest(from_preset("off"))  # counts calls and changes nothing
    uncached = patching.patch(model, requests.KEY, plain)
    samplers.sample(uncached, steps=steps, last_step=1, **options)
    if compiled.is_compiled(model):  # its blocks are compiled by themselves
        samplers.sample(model, steps=steps, **options)
    ways, results = [Way(UNCACHED, steps), Way(CACHED, steps)], {}
    for _ in range(repeats):
        results[UNCACHED], _ = _timed(ways[0], uncached, plain, options)
        results[CACHED], report = _timed(ways[1], model, request, options)
    notes = [TIMED] + ([f"Each is the median of {repeats} runs."] if repeats > 1 else [])
    rival = _rival(steps, fewer_from, *ways)
    if rival is not None and rival.steps == steps:
        notes.append(
            f"By the {MEASURES[fewer_from]} the cached run took as long as all {steps} steps: there is "
            "no rival of fewer steps."
        )
    elif rival is not None:

        def run(way: Way) -> None:
            for _ in range(repeats):
                results[FEWER], _ = _timed(way, uncached, plain, options)

        run(rival)
        if fewer_from == SECONDS and (again := _corrected(rival, ways[1], steps)) is not None:
            rival = again
            run(rival)
        ways.append(rival)
        notes += _about_rival(rival, ways[1], fewer_from)
    notes += [m for m in dict.fromkeys((report.why_nothing(), *report.messages)) if m]
    settings = {
        "steps": steps,
        **{key: options[key] for key in NAMED},
        "fewer_from": fewer_from,
        "repeats": repeats,
    }
    return Comparison(ways, notes=notes, settings=settings, report=report), results


def _timed(way: Way, patched, request, options: dict) -> tuple[dict, Report]:
    """One run of a way: its LATENT and its report; seconds and calls are added to the way."""
    before = request.box.report  # of an earlier prompt, and still the last one where this run has no step
    samplers.settle()
    began = time.perf_counter()
    latent = samplers.sample(patched, steps=way.steps, **options)
    samplers.settle()
    way.seconds.append(time.perf_counter() - began)
    report = request.box.report
    if report is None or report is before:
        report = nothing_sampled(request.settings)
    totals = report.totals()
    way.calls, way.full_calls = totals["calls"], totals["full_calls"]
    return latent, report


def _rival(steps: int, fewer_from: str, uncached: Way, cached: Way) -> Way | None:
    """The way with as many steps as the cached run pays for."""
    if fewer_from == NONE:
        return None
    if fewer_from == SECONDS:
        return Way(FEWER, steps_in(_seconds(cached) / max(_seconds(uncached), 1e-9), steps))
    assert cached.full_calls is not None and uncached.calls is not None  # `_timed` has counted them
    return Way(FEWER, steps_in(cached.full_calls / max(uncached.calls, 1), steps))


def _seconds(way: Way) -> float:
    """Median seconds of a way that was sampled."""
    seconds = way.usual_seconds
    assert seconds is not None  # `_timed` has measured them
    return seconds


def _about_rival(rival: Way, cached: Way, fewer_from: str) -> list[str]:
    """What is said of the rival."""
    assert rival.steps is not None  # as of every way that was sampled
    notes = [
        f"The rival has {counted(rival.steps, 'step')} because of the cached run's "
        f"{MEASURES[fewer_from]}; sampler and scheduler are the same."
    ]
    if fewer_from == SECONDS and _far(rival, cached):
        notes.append(
            "Its seconds are far from those of the cached run: times scatter on this machine, or few "
            "steps leave no choice. More repeats help, or equal calls."
        )
    return notes


def _far(rival: Way, cached: Way) -> bool:
    return far_apart(_seconds(rival), _seconds(cached))


def _corrected(rival: Way, cached: Way, steps: int) -> Way | None:
    """The rival with another number of steps where its own seconds say that the first number was wrong."""
    assert rival.steps is not None  # as of every way that was sampled
    share = _seconds(cached) / max(_seconds(rival), 1e-9) * rival.steps / steps
    wanted = min(steps - 1, steps_in(share, steps))
    return Way(FEWER, wanted) if _far(rival, cached) and wanted != rival.steps else None
