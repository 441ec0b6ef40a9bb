"""ERTACache Plan: which steps reuse the model's residual, and the noise levels that go with them, from a
profile."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..cache_core.base.wording import counted
from ..cache_core.calibration.ertacache import ErtaPlan, erta_plan, reuse_ratios, reuse_set, threshold_for
from ..cache_core.calibration.profile import Profile
from .profiles import SPEEDUP, adapted, told_adapted
from .types import CATEGORY, CacheProfile, Schedule, advanced, optional

THRESHOLD = "threshold"


def _inputs() -> list[io.Input]:
    return [
        CacheProfile.Input("profile", tooltip="A profile of the model."),
        *optional(
            io.Combo.Input(
                "target",
                options=[SPEEDUP, THRESHOLD],
                default=SPEEDUP,
                tooltip="What decides which steps are skipped: a speed-up, or the paper's threshold.",
            ),
            io.Float.Input(
                "speedup",
                default=2.0,
                min=1.0,
                max=10.0,
                step=0.1,
                tooltip="Steps over full steps. For the target speed-up.",
            ),
            io.Float.Input(
                "threshold",
                default=0.1,
                min=0.001,
                max=2.0,
                step=0.001,
                round=0.001,
                tooltip="A step is skipped where the relative error of the reused values is below this. "
                "For the target threshold.",
            ),
            io.Boolean.Input(
                "step_lengths",
                default=True,
                tooltip="Makes skipped steps shorter and the others longer. The sampler must then "
                "take the noise levels "
                "from this node.",
            ),
            io.Boolean.Input(
                "rectifier",
                default=True,
                tooltip="Corrects the expected error of the reused values.",
            ),
            io.Sigmas.Input(
                "sigmas",
                optional=True,
                tooltip="Noise levels of the run, if they differ from the profile's; the node adapts the "
                "profile to them.",
            ),
        ),
        *optional(*_advanced_inputs()),
    ]


def _advanced_inputs() -> list[io.Input]:
    return [
        advanced(io.Int.Input("warmup", default=1, min=1, max=100, tooltip="Full steps at the beginning.")),
    ]


class ERTACachePlan(io.ComfyNode):
    """Makes ERTACache's offline plan from a profile."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ERTACachePlan",
            display_name="ERTACache Plan",
            category=CATEGORY,
            description="Finds which steps reuse what the model added to its input, the length of each "
            "step, and a correction of the reused values, as ERTACache does, from a profile "
            "of the model.",
            inputs=_inputs(),
            outputs=[
                Schedule.Output(
                    display_name="schedule", tooltip="The plan with its forecast, for Dual Cache."
                ),
                io.Sigmas.Output(
                    display_name="sigmas", tooltip="The noise levels that go with it, for SamplerCustom."
                ),
                io.String.Output(display_name="text", tooltip="Sentences on the plan."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        profile,
        target=SPEEDUP,
        speedup=2.0,
        threshold=0.1,
        step_lengths=True,
        rectifier=True,
        sigmas=None,
        warmup=1,
    ) -> io.NodeOutput:
        known = adapted(profile, sigmas)
        ratios, warmup = reuse_ratios(known), min(warmup, known.steps)
        limit = (
            threshold
            if target == THRESHOLD
            else threshold_for(ratios, max(round(known.steps / speedup), warmup), warmup)
        )
        made = erta_plan(known, reuse_set(ratios, limit, warmup), step_lengths, rectifier)
        text = "\n".join(describe(known, made, limit, warmup))
        return io.NodeOutput(made.schedule, torch.tensor(made.sigmas), text, ui={"text": [text]})


def describe(profile: Profile, made: ErtaPlan, limit: float, warmup: int) -> list[str]:
    """The plan in words."""
    kinds, full = made.schedule.kinds, len(made.schedule.full_steps)
    gone = profile.steps - len(kinds)
    lines = [
        f"{full} full of {profile.steps} steps, {profile.steps / full:.2g} times fewer calls: {kinds}",
        f"Threshold {limit:.3g}; the worst reused step is off by {made.threshold:.2g} of what is reused.",
    ]
    if gone:
        lines.append(
            f"{counted(gone, 'step')} shrank to no length and went, so {len(kinds)} remain at other "
            "noise levels; connect "
            "sigmas to the sampler."
        )
    elif made.sigmas != profile.sigmas:
        lines.append("Steps have other lengths; connect sigmas to the sampler.")
    if full <= warmup < profile.steps:
        lines.append("Only the warm-up runs in full; expect another picture.")
    if "A" not in kinds:
        lines.append("Nothing is left to reuse: this is sampling with fewer steps.")
    return [*lines, *told_adapted(profile)]
