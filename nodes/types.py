"""The types that travel between our nodes."""

from __future__ import annotations

from dataclasses import fields, replace

from comfy_api.latest import io

Schedule = io.Custom("CACHE_SCHEDULE")
CacheProfile = io.Custom("CACHE_PROFILE")
Report = io.Custom("CACHE_REPORT")

CATEGORY = "model/dual cache"
ALIASES = ["dual cache", "cache", "feature caching", "speed up", "faster", "teacache", "first block cache", "easycache", "taylorseer"]


def advanced(entry: io.Input) -> io.Input:
    """The input, marked as advanced in a way that every supported ComfyUI understands."""
    entry.extra_dict = {**entry.extra_dict, "advanced": True}
    return entry


def schedule_input(part: str) -> io.Input:
    """The optional plan of a node whose `part` (its preset, its recipe) brings one of its own."""
    tooltip = (f"A plan from Cache Schedule Builder or Plan Cache; it replaces the {part}'s own. "
               "Plan Cache brings its forecast along, unless one is chosen here.")
    return Schedule.Input("schedule", optional=True, tooltip=tooltip)


def findable(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, found by what people call such nodes, where ComfyUI's search knows aliases."""
    if "search_aliases" in {field.name for field in fields(io.Schema)}:
        define = node.define_schema
        node.define_schema = classmethod(lambda cls: replace(define(), search_aliases=ALIASES))
    return node
