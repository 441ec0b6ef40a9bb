"""Every workflow against the node definitions of the running ComfyUI; those that need no download are run."""

from __future__ import annotations

import asyncio
import json
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import execution
import folder_paths
import numpy as np
import pytest
from PIL import Image

import nodes as core_nodes
from tools.api_form import FRONT_END_NODES, to_api
from tools.graphs import BLUEPRINT, WORKFLOWS, blueprint
from tools.litegraph import DYNAMIC, INPUT_END, OUTPUT_END, Graph, inputs_of, is_widget, widget_slots
from tools.workflows import kinds_of

ROOT = Path(__file__).resolve().parents[2]
FILES = {path.stem: path for path in sorted((ROOT / "workflows").glob("*.json"))}
FILES[BLUEPRINT] = ROOT / "subgraphs" / f"{BLUEPRINT}.json"
OURS = "custom_nodes.dual_cache"
PACKS = {OURS: ("dual-cache", ""), "nodes": ("comfy-core", ""), "comfy_extras": ("comfy-core", "")}
LOADERS = ("unet_name", "clip_name", "clip_name1", "clip_name2", "vae_name")
RUNNABLE = ("embedded", "compare_cached_uncached", "planned", "inpainting")
EXAMPLE_PICTURE = "example.png"  # every ComfyUI has it in its input folder


def read(name: str) -> dict:
    """A workflow file; of a blueprint its inner graph, with its links in the form of a workflow's."""
    data = json.loads(FILES[name].read_text(encoding="utf-8"))
    if "definitions" in data:
        data = data["definitions"]["subgraphs"][0]
        data["links"] = [list(link.values()) for link in data["links"]]
    return data


def used(data: dict) -> list[dict]:
    return [node for node in data["nodes"] if node["type"] not in FRONT_END_NODES]


def describe_node(kind: str, cls) -> dict:
    """A node's definition as /object_info gives it."""
    if hasattr(cls, "GET_NODE_INFO_V1"):
        return cls.GET_NODE_INFO_V1()
    names = getattr(cls, "RETURN_NAMES", cls.RETURN_TYPES)
    return {
        "name": kind,
        "input": cls.INPUT_TYPES(),
        "output": list(cls.RETURN_TYPES),
        "output_name": list(names),
        "output_node": bool(getattr(cls, "OUTPUT_NODE", False)),
        "python_module": getattr(cls, "RELATIVE_PYTHON_MODULE", "nodes"),
    }


@pytest.fixture(scope="module")
def definitions(part) -> dict[str, dict]:
    """Definitions of all nodes that the workflows use and this ComfyUI has; loads the files of comfy_extras
    that mention them."""
    for node in part("nodes").NODES:
        core_nodes.NODE_CLASS_MAPPINGS[node.GET_SCHEMA().node_id] = node
        node.RELATIVE_PYTHON_MODULE = OURS
    kinds = {node["type"] for name in FILES for node in used(read(name))}
    extras = Path(core_nodes.__file__).parent / "comfy_extras"
    for path in sorted(extras.glob("nodes_*.py")):
        source = path.read_text(encoding="utf-8")
        if any(f'"{kind}"' in source for kind in kinds - set(core_nodes.NODE_CLASS_MAPPINGS)):
            asyncio.run(core_nodes.load_custom_node(str(path), module_parent="comfy_extras"))
    there = kinds & set(core_nodes.NODE_CLASS_MAPPINGS)
    return {kind: describe_node(kind, core_nodes.NODE_CLASS_MAPPINGS[kind]) for kind in sorted(there)}


def test_all_described_workflows_are_there():
    assert set(FILES) - {BLUEPRINT} == {describe.__name__ for describe in WORKFLOWS}


def test_every_node_exists_in_this_comfyui(definitions):
    missing = [
        f"{kind:30} {name}"
        for name in FILES
        for kind in sorted({n["type"] for n in used(read(name))} - set(definitions))
    ]
    assert not missing, "Nodes that this ComfyUI lacks, and the workflows that use them:\n" + "\n".join(
        missing
    )


def test_only_core_nodes_and_ours(definitions):
    foreign = {
        kind: info["python_module"]
        for kind, info in definitions.items()
        if info["python_module"] != OURS
        and info["python_module"].split(".")[0] not in ("nodes", "comfy_extras")
    }
    assert not foreign


@pytest.mark.parametrize("name", FILES)
def test_links_fit(name, definitions):
    data = read(name)
    nodes = {node["id"]: node for node in data["nodes"]}
    ends = {INPUT_END: data.get("inputs", []), OUTPUT_END: data.get("outputs", [])}
    assert len(nodes) == len(data["nodes"]) and len({link[0] for link in data["links"]}) == len(data["links"])
    for link, source, out, target, into, kind in data["links"]:
        row = ends[OUTPUT_END][into] if target == OUTPUT_END else nodes[target]["inputs"][into]
        assert link in row["linkIds"] if target == OUTPUT_END else row["link"] == link
        if source == INPUT_END:
            assert link in ends[INPUT_END][out]["linkIds"]
            given = ends[INPUT_END][out]["type"]
        else:
            assert link in nodes[source]["outputs"][out]["links"]
            given = definitions[nodes[source]["type"]]["output"][out]
        wanted = (
            row["type"]
            if target == OUTPUT_END
            else inputs_of(definitions[nodes[target]["type"]])[row["name"]][0]
        )
        where = f"{name}, link {link} of type {kind}: {row['name']} takes {wanted}, the origin gives {given}"
        assert given == kind and wanted in (kind, "*"), where


@pytest.mark.parametrize("name", FILES)
def test_inputs_fit(name, definitions):
    """Every input the file names exists, and everything a node requires is linked."""
    for node in used(read(name)):
        inputs = inputs_of(definitions[node["type"]])
        linked = {row["name"] for row in node["inputs"] if row["link"] is not None}
        assert {row["name"] for row in node["inputs"]} <= set(inputs), node["type"]
        needed = {
            key
            for key, (kind, options) in inputs.items()
            if not options["optional"] and not is_widget(kind, options)
        }
        assert needed <= linked, f"{node['type']} lacks {needed - linked}"


@pytest.mark.parametrize("name", FILES)
def test_widget_values_fit(name, definitions):
    """As many values as widgets, but for optional ones left at their default, and each of them valid."""
    for node in used(read(name)):
        slots, values = widget_slots(definitions[node["type"]]), node["widgets_values"]
        where = f"{name}, {node['type']} {node['id']}"
        assert len(values) <= len(slots), f"{where}: {len(values)} values for {[s[0] for s in slots]}"
        assert all(spec and spec[1]["optional"] for _, spec in slots[len(values) :]), (
            f"{where}: values are missing"
        )
        for (key, spec), value in zip(slots, values):
            assert problem(node, key, spec, value) is None, (
                f"{where}: {key} {problem(node, key, spec, value)}"
            )


def problem(node: dict, key: str, spec, value) -> str | None:
    if spec is None:
        return (
            None
            if value in ("fixed", "randomize", "increment", "decrement", "image")
            else "is no choice of the front end"
        )
    kind, options = spec
    if key in LOADERS:
        files = [model["name"] for model in node["properties"].get("models", ())]
        return None if value in files else f"names {value}, which is not among the node's models {files}"
    if kind == DYNAMIC:
        return None if value in [o["key"] for o in options["options"]] else f"has no option {value}"
    if kind == "COMBO":
        return (
            None
            if value in (options["options"] if key != "image" else [EXAMPLE_PICTURE])
            else f"has no option {value}"
        )
    if kind in ("INT", "FLOAT"):
        number = isinstance(value, int if kind == "INT" else (int, float)) and not isinstance(value, bool)
        return (
            None
            if number and options.get("min", value) <= value <= options.get("max", value)
            else f"cannot be {value}"
        )
    return None if isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind]) else f"cannot be {value!r}"


@pytest.mark.parametrize("name", [name for name in FILES if name != BLUEPRINT])
def test_note_models_and_thumbnail(name):
    data = read(name)
    notes = [node["widgets_values"][0] for node in data["nodes"] if node["type"] in FRONT_END_NODES]
    assert len(notes) == 1 and notes[0].startswith("## ")
    models = [model for node in data["nodes"] for model in node["properties"].get("models", ())]
    assert bool(models) == (name not in RUNNABLE)
    for model in models:
        assert set(model) == {"name", "url", "directory"}
        assert model["url"].startswith("https://") and model["url"].endswith("/" + model["name"])
        assert model["directory"] in folder_paths.folder_names_and_paths and model["url"] in notes[0]
    with Image.open(FILES[name].with_suffix(".jpg")) as picture:
        assert picture.size == (512, 512)


@pytest.mark.parametrize("name", FILES)
def test_layout_is_tidy(name):
    """Nodes do not cover one another, and each lies in one group."""
    data = read(name)
    boxes = [(*node["pos"], *node["size"]) for node in data["nodes"]]

    def apart(a, b, title=30):
        return (
            a[0] + a[2] <= b[0]
            or b[0] + b[2] <= a[0]
            or a[1] + a[3] <= b[1] - title
            or b[1] + b[3] <= a[1] - title
        )

    assert all(apart(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    for x, y, width, height in boxes:
        around = [
            g
            for g in (group["bounding"] for group in data["groups"])
            if g[0] <= x and g[1] <= y - 30 and x + width <= g[0] + g[2] and y + height <= g[1] + g[3]
        ]
        assert len(around) == 1


@pytest.mark.parametrize("describe", WORKFLOWS, ids=lambda f: f.__name__)
def test_file_is_what_its_description_builds(describe, definitions):
    graph = Graph(definitions, PACKS)
    describe(graph)
    built = json.loads(json.dumps(graph.workflow(describe.__name__)))
    there = read(describe.__name__)
    for data in (built, there):
        for node in data["nodes"]:
            node["properties"].pop("ver", None)
            if any(
                kind == DYNAMIC
                for kind, _ in inputs_of(definitions.get(node["type"], {"input": {}})).values()
            ):
                # Newer ComfyUI versions have other widgets here; ours follows the oldest one.
                del node["inputs"], node["widgets_values"]
    assert built == there, "run python -m tools.regenerate workflows ADDRESS"


def test_blueprint_is_what_its_description_builds(definitions):
    built = json.loads(json.dumps(blueprint(Graph(definitions, PACKS))))
    there = json.loads(FILES[BLUEPRINT].read_text(encoding="utf-8"))
    for data in (built, there):
        assert (
            len(data["nodes"]) == 1 and data["nodes"][0]["type"] == data["definitions"]["subgraphs"][0]["id"]
        )  # as the front end asks
        for node in data["definitions"]["subgraphs"][0]["nodes"]:
            node["properties"].pop("ver", None)
    assert built == there, "run python -m tools.regenerate workflows ADDRESS"


def run(prompt: dict) -> dict:
    """Runs a prompt through ComfyUI's own validation and executor; returns what its output nodes showed."""
    valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("test", prompt, None))
    assert valid, (error, node_errors)
    server = SimpleNamespace(
        client_id=None, last_node_id=None, last_prompt_id=None, send_sync=lambda *_: None
    )
    sizes = {"cache_args": {"lru": 0, "ram": 0, "ram_inactive": 0}}  # newer versions ask for them
    known = signature(execution.PromptExecutor).parameters
    executor = execution.PromptExecutor(
        server, **{key: value for key, value in sizes.items() if key in known}
    )
    executor.execute(prompt, "test", {}, outputs)
    assert executor.success, executor.status_messages
    return executor.history_result["outputs"]


def pictures(shown: dict) -> list[np.ndarray]:
    """The pictures of all output nodes in the order of the nodes, 0 to 255."""
    files = [file for node in sorted(shown, key=int) for file in shown[node].get("images", ())]
    folders = [folder_paths.get_directory_by_type(file["type"]) for file in files]
    return [
        np.asarray(Image.open(Path(folder, file["subfolder"], file["filename"])), np.float32)
        for folder, file in zip(folders, files)
    ]


@pytest.mark.parametrize("name", RUNNABLE)
def test_runs(name, definitions):
    """The embedded and the planned workflow as they stand, the others in fewer steps to save time."""
    prompt = to_api(read(name), definitions)
    steps = 30 if name in ("embedded", "planned") else 12
    for node in prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = steps
    shown = run(prompt)
    report = next(
        json.loads(node["dual_cache_report"][0]) for node in shown.values() if "dual_cache_report" in node
    )
    kinds = kinds_of("planned" if name == "planned" else "balanced", steps)
    assert report["family"] and (report["totals"]["full"], report["totals"]["skipped"]) == (
        kinds.count("F"),
        kinds.count("A"),
    )
    images = pictures(shown)
    if name == "compare_cached_uncached":
        (sheet,), (drawn,) = (
            images,
            [
                json.loads(node["dual_cache_compare"][0])
                for node in shown.values()
                if "dual_cache_compare" in node
            ],
        )
        assert sheet.std() > 20 and [way["calls"] for way in drawn["ways"][:2]] == [steps, steps]
        assert 20 < drawn["ways"][1]["closeness"]["psnr"] < 70  # close, and not the same
        return
    assert all(image.shape == (256, 256, 3) and image.std() > 5 for image in images)
    if name == "embedded":
        assert len(images) == 1
    elif name == "planned":
        uncached, planned, fast = images
        spread = np.abs(uncached - uncached.mean((0, 1))).mean()
        assert (
            0 < np.abs(planned - uncached).mean() < spread / 4
            and 0 < np.abs(fast - uncached).mean() < spread / 4
        )
    else:
        before, after = images
        assert (
            np.abs(after - before)[:, :112].mean() < 2 < 5 < np.abs(after - before)[:, 144:].mean()
        )  # the right half alone is new
