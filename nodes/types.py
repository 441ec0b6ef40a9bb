"""The types that travel between our nodes, and inputs that several of them have."""

from __future__ import annotations

from dataclasses import fields, replace

from comfy_api.latest import io

from .comfy import samplers

Schedule = io.Custom("CACHE_SCHEDULE")
CacheProfile = io.Custom("CACHE_PROFILE")
Report = io.Custom("CACHE_REPORT")

CATEGORY = "model/dual cache"
ALIASES = [
    "dual cache",
    "cache",
    "feature caching",
    "speed up",
    "faster",
    "teacache",
    "first block cache",
    "easycache",
    "taylorseer",
]


def advanced(entry: io.Input) -> io.Input:
    """The input, marked as advanced in a way that every supported ComfyUI understands."""
    entry.extra_dict = {**entry.extra_dict, "advanced": True}
    return entry


def optional(*entries: io.Input) -> list[io.Input]:
    """The inputs, marked as optional: callers of the API may leave them out, and the node then uses the
    default of its `execute`, which is the widget's."""
    for entry in entries:
        entry.optional = True
    return list(entries)


def schedule_input(part: str) -> io.Input:
    """The optional plan of a node whose `part` (its preset, its recipe) brings one of its own."""
    tooltip = (
        f"A plan from Cache Schedule Builder or Plan Cache; it replaces the {part}'s own. "
        "A plan from Plan Cache includes its forecast, unless you choose one here."
    )
    return Schedule.Input("schedule", optional=True, tooltip=tooltip)


def sampler_inputs(steps: str) -> list[io.Input]:
    """What a node that samples by itself takes after the model, as KSampler has it; `steps` is the tooltip of
    its steps."""
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Seed of the noise.",
        ),
        io.Int.Input("steps", default=30, min=1, max=10000, tooltip=steps),
        io.Float.Input(
            "cfg",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Classifier-free guidance; 1 runs the positive prompt alone.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=samplers.SAMPLERS,
            default="euler",
            tooltip="The algorithm that follows the noise levels.",
        ),
        io.Combo.Input(
            "scheduler",
            options=samplers.SCHEDULERS,
            default="simple",
            tooltip="How the noise levels are spaced.",
        ),
    ]


def findable(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, found by what people call such nodes, where ComfyUI's search knows aliases."""
    if "search_aliases" in {field.name for field in fields(io.Schema)}:
        define = node.define_schema
        node.define_schema = classmethod(lambda cls: replace(define(), search_aliases=ALIASES))
    return node
