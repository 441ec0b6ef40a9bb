"""Profile Model, Load Cache Profile and Plan Cache: learn a model once, then plan for a target."""

from __future__ import annotations

import json

from comfy_api.latest import io

from ..cache_core.calibration.planner import OBJECTIVES, Plan, plan, segment_costs
from ..cache_core.calibration.profile import MOST_CLUSTERS, Profile
from .comfy import executing, patching, profile_files, requests
from .types import CATEGORY, CacheProfile, Schedule, advanced, optional

SPEEDUP, ERROR = "speed-up", "error"
DEFAULT_NAME = "my model"
TRUSTED = 0.008
"""Expected error above which the measured one ran away on the embedded model (docs/profiles.md)."""


def recording_inputs() -> list[io.Input]:
    """What is recorded beside the final hidden state."""
    return [
        advanced(
            io.Int.Input(
                "module_tokens",
                default=0,
                min=0,
                max=4096,
                tooltip="Also records every module of every block, from so many tokens; 0 records none. "
                "For masks; the file "
                "grows by a matrix per module and picture.",
            )
        ),
        advanced(
            io.Int.Input(
                "clusters",
                default=0,
                min=0,
                max=MOST_CLUSTERS,
                tooltip="Also groups channels by how they change, into so many clusters; 0 does not.",
            )
        ),
    ]


class ProfileModel(io.ComfyNode):
    """Patches a MODEL so that ordinary runs are recorded into a profile."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualCacheProfileModel",
            display_name="Profile Model",
            category=CATEGORY,
            description="Records the runs of a model, uncached, into a small file that Plan Cache makes "
            "plans from. Sample about a dozen "
            "pictures with it, then take it out.",
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model to learn about."),
                *optional(
                    io.String.Input(
                        "name",
                        default=DEFAULT_NAME,
                        tooltip="Name of the profile. Every run is added to it; a run of another kind "
                        "is refused and nothing is overwritten.",
                    ),
                    *recording_inputs(),
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model, patched. Its pictures are those of plain sampling.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, name=DEFAULT_NAME, module_tokens=0, clusters=0) -> io.NodeOutput:
        recording = profile_files.Recording(profile_files.path_of(name, new=True), module_tokens, clusters)
        request = requests.ProfileRequest(recording, executing.display_id(cls.hidden.unique_id))
        return io.NodeOutput(patching.patch_by_node(model, request))


class LoadCacheProfile(io.ComfyNode):
    """Reads a profile."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadCacheProfile",
            display_name="Load Cache Profile",
            category=CATEGORY,
            description="Reads what Profile Model has recorded.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=profile_files.names(),
                    default="embedded-30-steps.profile.safetensors",
                    tooltip="A file of the folder models/cache_profiles, or the pack's own.",
                )
            ],
            outputs=[CacheProfile.Output(display_name="profile")],
        )

    @classmethod
    def fingerprint_inputs(cls, name):
        path = profile_files.path_of(name)
        return path.stat().st_mtime_ns, path.stat().st_size

    @classmethod
    def execute(cls, name) -> io.NodeOutput:
        return io.NodeOutput(profile_files.read(profile_files.path_of(name)))


def _inputs() -> list[io.Input]:
    return [
        CacheProfile.Input("profile", tooltip="A profile of the model."),
        *optional(
            io.Combo.Input(
                "target",
                options=[SPEEDUP, ERROR],
                default=SPEEDUP,
                tooltip="The target: a speed-up with the least error, or an error with the fewest steps.",
            ),
            io.Float.Input(
                "speedup",
                default=3.0,
                min=1.0,
                max=10.0,
                step=0.1,
                tooltip="Steps over full steps. For the target speed-up.",
            ),
            io.Float.Input(
                "error",
                default=0.002,
                min=0.0001,
                max=1.0,
                step=0.0001,
                round=0.0001,
                tooltip="Expected error at the end, relative to the features. For the target error.",
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
        advanced(
            io.Int.Input(
                "window",
                default=3,
                min=1,
                max=8,
                tooltip="Most full steps that a forecast uses.",
            )
        ),
        advanced(
            io.Combo.Input(
                "objective",
                options=list(OBJECTIVES),
                default="power",
                tooltip="What to minimise: the sum of the errors, the sum of their 4th powers, which "
                "avoids peaks, or the largest error.",
            )
        ),
        advanced(
            io.Boolean.Input(
                "by_cluster",
                default=False,
                tooltip="Solves weights for each cluster of channels, if the profile was recorded with "
                "clusters.",
            )
        ),
    ]


class PlanCache(io.ComfyNode):
    """Plans full steps and solves forecast weights from a profile, for a speed-up or an error."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PlanCache",
            display_name="Plan Cache",
            category=CATEGORY,
            description="Finds full steps and the best forecast weights for a speed-up or an error, from "
            "a profile of the model.",
            inputs=_inputs(),
            outputs=[
                Schedule.Output(
                    display_name="schedule",
                    tooltip="The plan with its forecast, for Dual Cache or Dual Cache Sampler.",
                ),
                io.String.Output(display_name="text", tooltip="Sentences on what to expect."),
            ],
            # so that it can be tried alone, and shows its plan again when nothing has changed
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        profile,
        target=SPEEDUP,
        speedup=3.0,
        error=0.002,
        sigmas=None,
        warmup=1,
        window=3,
        objective="power",
        by_cluster=False,
    ) -> io.NodeOutput:
        known = adapted(profile, sigmas)
        made, reached = choose(known, target, speedup, error, warmup, window, objective, by_cluster)
        headline, *more = describe(known, made)
        text = "\n".join([*reached, headline, *more])
        drawn = {
            "kinds": made.schedule.kinds,
            "expected": made.expected,
            "sigmas": known.sigmas,
            "text": [*reached, *more],
        }
        return io.NodeOutput(made.schedule, text, ui={"text": [text], "dual_cache_plan": [json.dumps(drawn)]})


def adapted(profile: Profile, sigmas) -> Profile:
    """The profile at a run's noise levels [steps + 1], where some are given."""
    if sigmas is not None and len(sigmas) < 2:
        raise ValueError("sigmas holds no step to plan: the scheduler's denoise may be 0.")
    return profile if sigmas is None else profile.at(sigmas.tolist())


def told_adapted(profile: Profile) -> list[str]:
    """A sentence where `adapted` changed the step count."""
    return (
        [f"The profile was recorded at {profile.resampled} steps and adapted to {profile.steps}."]
        if profile.resampled
        else []
    )


def choose(
    profile: Profile,
    target: str,
    speedup: float,
    error: float,
    warmup: int,
    window: int,
    objective: str,
    by_cluster: bool = False,
) -> tuple[Plan, list[str]]:
    """The plan for a target, and sentences on what could not be reached."""
    steps, warmup = profile.steps, min(warmup, profile.steps)
    costs = segment_costs(profile, window=window, clusters=by_cluster)

    def at(budget: int) -> Plan:
        return plan(profile, budget, objective, warmup, window, costs=costs, clusters=by_cluster)

    if target == SPEEDUP:
        budget = round(steps / speedup)
        if budget >= warmup:
            return at(min(budget, steps)), []
        return at(warmup), [
            f"A speed-up of {speedup:g} is not reachable with {warmup} full steps at the beginning; "
            "nearest is "
            f"{steps / warmup:.2g}."
        ]
    for budget in range(warmup, steps):  # from the cheapest
        made = at(budget)
        if made.final <= error:
            return made, []
    return at(steps), [f"An error of {error:g} is not reachable by skipping any step; nothing is skipped."]


def describe(profile: Profile, made: Plan) -> list[str]:
    """The plan in words."""
    full, steps = len(made.schedule.full_steps), profile.steps
    lines = [
        f"{full} full of {steps} steps, {steps / full:.2g} times fewer calls: {made.schedule.kinds}",
        f"Expected error at the end {made.final:.2g}, of the worst single forecast "
        f"{max(made.expected):.2g} (step "
        f"{made.expected.index(max(made.expected)) + 1}); learned from {len(profile.grams)} recorded runs.",
    ]
    if made.final > TRUSTED:
        lines.append(
            "Expect more than that: with so few full steps, what forecasts change on the way outweighs "
            "their own errors, with "
            "guidance above all. Compare with fewer steps."
        )
    return [*lines, *told_adapted(profile)]
