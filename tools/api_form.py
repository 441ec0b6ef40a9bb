"""Turns a workflow file into the form that ComfyUI's /prompt takes, as its front end does on Run."""

from __future__ import annotations

from .litegraph import NOTE, default_of, widget_slots

FRONT_END_NODES = (NOTE, "Note")
"""Nodes that exist in the front end alone."""


def to_api(workflow: dict, definitions: dict[str, dict]) -> dict[str, dict]:
    """Node id to {class_type, inputs}. definitions: by node id, as /object_info gives them.

    Widgets that the file has no value for take their default. Files with subgraphs, bypassed or muted nodes
    are not handled."""
    origins = {link: [str(node), slot] for link, node, slot, *_ in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in FRONT_END_NODES:
            continue
        given = node["widgets_values"]
        inputs = {
            name: given[i] if i < len(given) else default_of(*spec)
            for i, (name, spec) in enumerate(widget_slots(definitions[node["type"]]))
            if spec
        }
        inputs.update(
            {row["name"]: origins[row["link"]] for row in node["inputs"] if row["link"] is not None}
        )
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt
