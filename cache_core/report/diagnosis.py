"""Why evaluations did not run as planned, why a run skipped nothing, and what helps."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ..base.wording import counted

if TYPE_CHECKING:
    from .run_report import Report

LOW_STEPS = 10
"""Below this many steps caching has little to skip."""
PROFILE = "profile"
"""Method of a run that is recorded and cached nowhere."""

REASONS: dict[str, tuple[str, str]] = {
    "no_snapshot": (
        "nothing was cached for this conditioning, size and batch",
        "Keep prompt, size and batch the same during a run, and plan a full step before the first cached "
        "one.",
    ),
    "plain": (
        "this model or this way of sampling it cannot be cached",
        "Look at the messages of this report for the cause.",
    ),
    "guard": (
        "the model was given something else than at the step before",
        "Take out the node that moves tiles or windows, or Dual Cache.",
    ),
    "control": (
        "what a control network adds has changed in strength",
        "Keep its strength the same over the steps that are to be skipped.",
    ),
    "stale": (
        "what was cached of a conditioning was older than the plan allows",
        "Choose a plan whose full steps fall on the steps on which that conditioning is evaluated.",
    ),
    "rising": (
        "the sampler went back to a higher noise level, where cached features are out of date",
        "Choose a sampler that only goes down, such as euler or dpmpp_2m.",
    ),
    "beyond": (
        "the sampler evaluated the model more often than its steps say",
        "Choose a sampler with a fixed number of evaluations per step, such as euler or dpmpp_2m.",
    ),
    "mismatch": (
        "what was cached did not fit the running model call",
        "Look at the messages of this report for the cause.",
    ),
    "refused": (
        "the model could not refresh single tokens here",
        "Use a schedule without conservative steps, or look at the messages.",
    ),
    "memory": (
        "the cache would not have fitted into memory",
        "Lower the resolution or the batch, or use aggressive steps only.",
    ),
}
"""Why an evaluation did not run as planned, and what helps. A reason outside this table is shown as it is
written."""

_REMEDIES = (
    ("is on this model too", "Take either that node or Dual Cache out."),
    ("until the picture breaks", "Choose another sampler, such as euler, euler_cfg_pp or dpmpp_2m."),
    ("split over several GPUs", "Take out the node that splits it, or Dual Cache."),
)
"""What helps against a reason in free text, by a part of it."""
_TOLD = {"plain": " is sampled plainly: ", "refused": " ran in full: ", "mismatch": "this call runs in full"}
"""Part of the message that says more of a reason."""
_TOLD_REMEDIES = {
    "plain": "Take Dual Cache out here, or choose another model or sampler.",
    "refused": "Use a preset without conservative steps, such as balanced.",
    "mismatch": "Take out the node that changes the model's blocks from step to step, or choose a plan "
    "with more full steps.",
}


def cause(report: Report) -> str:
    """Reason and remedy, in one or two sentences, of a report none of whose evaluations was cheaper than a
    full one."""
    if report.steps == 0 and not report.records:
        return "the sampler had no step to run. Raise steps or denoise."
    if not report.records:
        return "the model was not evaluated in this run. Connect the patched model to the sampler that runs."
    if report.method == PROFILE:
        return "this run was recorded for a profile. Take Profile Model out to sample with the cache."
    wanted = [r for r in report.records if r.planned != "F"]
    if not wanted:
        return _no_plan(report)
    if not any(r.calls for r in report.records):
        return (
            "the sampler did not run the model through ComfyUI's own call, so Dual Cache saw none. "
            "Take out the node that runs the model by itself, or Dual Cache."
        )
    reason, count = Counter(r.reason for r in wanted).most_common(1)[0]
    helps = next(
        (remedy for mark, remedy in _REMEDIES if mark in reason),
        "Look at the messages of this report, or choose a milder preset.",
    )
    if reason == "memory" and not any(r.planned == "C" for r in wanted):
        what, remedy = REASONS[reason][0], "Lower the resolution or the batch, or set memory to more GB."
        return f"in {count} of the {len(wanted)} evaluations planned to be cheaper, {what}. {remedy}"
    what, remedy = REASONS.get(reason, (reason.rstrip("."), helps))
    told = next((m for m in report.messages if _TOLD.get(reason, "\0") in m), None)
    if told is not None:
        what, remedy = f"{what}: {told.rstrip('.')}", _TOLD_REMEDIES[reason]
    return f"in {count} of the {len(wanted)} evaluations planned to be cheaper, {what}. {remedy}"


def _no_plan(report: Report) -> str:
    """Why no evaluation that ran was planned to be cheaper."""
    if set(report.schedule.get("kinds", "")) - {"F"}:
        return (
            f"the run ended after {counted(len(report.records), 'evaluation')}, before the first one "
            "that was planned to be cheaper. "
            "Let it run on, or use a sampler that takes all of its steps."
        )
    if report.method == "off":
        return "the preset off runs every step in full. Choose another preset."
    if 0 < report.steps < LOW_STEPS:
        return f"with {counted(report.steps, 'step')} the plan has full steps only. Use fewer steps instead."
    return (
        "the schedule plans full steps only. "
        "Choose an interval of 2 or more, fewer warm-up and tail steps, or a wider range from start to end."
    )
