"""The committed snapshots of what a ComfyUI shows: tests/fixtures/nodes.json, the contract of the nodes, and
tests/fixtures/families.json, what the rows of the registry can have in each version of ComfyUI.

    python -m tools.regenerate snapshots FOLDER

runs this file with the Python of that ComfyUI. Without a ComfyUI, `with_options` brings the option lists that
come from a registry up to date, so that a new preset or forecast needs no hand edit of the snapshot."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path

from cache_core.base.names import LEVELS
from cache_core.predictors.build import NAMES
from cache_core.recipes import PRESETS
from tools.litegraph import inputs_of

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
NODES, FAMILIES = FIXTURES / "nodes.json", FIXTURES / "families.json"
COMFYUI_LISTS = ("sampler_name", "scheduler", "name")
"""Inputs whose options are ComfyUI's, or the files there are."""
REGISTRIES = {"preset": tuple(PRESETS), "forecast": NAMES, "level": LEVELS}
"""Inputs that offer every name of a registry, behind options of their own such as "from recipe"."""


def contract(info: dict) -> dict:
    """Inputs in their order, with type, default and options, and outputs, of a node's /object_info."""
    inputs = []
    for name, (kind, options) in inputs_of(info).items():
        row = {"name": name, "type": kind}
        if options["optional"]:
            row["optional"] = True
        row |= {key: options[key] for key in ("default", "options") if key in options}
        if name in COMFYUI_LISTS:
            row.pop("options", None)
        inputs.append(row)
    return {
        "inputs": inputs,
        "outputs": [{"name": n, "type": t} for n, t in zip(info["output_name"], info["output"], strict=True)],
    }


def with_options(nodes: dict) -> dict:
    """The snapshot with the names that the registries have now.

    ValueError where a name is gone, since saved workflows may hold it."""
    return {
        node: {**spec, "inputs": [_with_registry(node, row) for row in spec["inputs"]]}
        for node, spec in nodes.items()
    }


def _with_registry(node: str, row: dict) -> dict:
    names = REGISTRIES.get(row["name"], ())
    shared = [option for option in row.get("options", ()) if option in names]
    if len(shared) < 3:  # no list of the registry, such as the short list of forecasts of Dual Cache
        return row
    first = row["options"].index(shared[0])
    gone = [option for option in row["options"][first:] if option not in names]
    if gone:
        raise ValueError(
            f"Saved workflows may hold {row['name']} {', '.join(gone)} of {node}: keep these names, or take "
            f"them out of {NODES.name} by hand."
        )
    return {**row, "options": [*row["options"][:first], *names]}


def render_nodes(nodes: Mapping[str, dict]) -> str:
    """nodes.json, one input or output per line."""

    def rows(items: list[dict]) -> str:
        return ",\n".join(f"   {json.dumps(item, ensure_ascii=False)}" for item in items)

    parts = []
    for node, spec in nodes.items():
        lists = [
            f'  "{key}": [\n{rows(spec[key])}\n  ]' if spec[key] else f'  "{key}": []'
            for key in ("inputs", "outputs")
        ]
        parts.append(f' "{node}": {{\n' + ",\n".join(lists) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def render_families(pages: Mapping[str, Mapping[str, list[str]]]) -> str:
    """families.json, one family per line; versions from old to new."""
    parts = []
    for version in sorted(pages, key=lambda text: [int(part) for part in text.split(".")]):
        rows = ",\n".join(
            f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in pages[version].items()
        )
        parts.append(f' "{version}": {{\n{rows}\n }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    """Writes both files from the ComfyUI that COMFYUI_UNDER_TEST names."""
    import tests  # noqa: F401  (ours, before a ComfyUI's folder of that name can be found)
    from stress import comfy_start  # before all of ComfyUI
    from tests.comfy import tiny_families as tiny
    from tests.comfy.conftest import fill_

    infos = [node.GET_NODE_INFO_V1() for node in comfy_start.part("nodes").NODES]
    NODES.write_text(render_nodes({info["name"]: contract(info) for info in infos}), encoding="utf-8")

    families = comfy_start.part("cache_core.models.families")
    abilities = comfy_start.part("cache_core.models.capabilities").abilities
    rows = [families.find_family(tiny.build(name, fill_).model.diffusion_model) for name in tiny.present()]
    rows += [row for row in families.FAMILIES if row.refusal and has_class(row.module, row.model)]
    pages = json.loads(FAMILIES.read_text(encoding="utf-8"))
    pages[comfy_start.comfyui_version()] = {
        row.name: abilities(row) for row in sorted(rows, key=lambda row: row.name.lower())
    }
    FAMILIES.write_text(render_families(pages), encoding="utf-8")


def has_class(module: str, name: str) -> bool:
    """Whether this ComfyUI has a class of that name."""
    try:
        return hasattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    main()
