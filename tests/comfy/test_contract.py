"""The nodes as ComfyUI shows them: ids, inputs in order, types, defaults and outputs, on which saved
workflows rely.

tests/fixtures/nodes.json is the committed snapshot. New inputs may be added behind the old ones; changing or
moving one breaks workflows."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from tools.litegraph import inputs_of
from tools.node_snapshot import NODES as SNAPSHOT
from tools.node_snapshot import contract

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def infos(part) -> dict[str, dict]:
    found = [node.GET_NODE_INFO_V1() for node in part("nodes").NODES]
    return {info["name"]: info for info in found}


def test_node_ids(infos):
    assert list(infos) == list(json.loads(SNAPSHOT.read_text(encoding="utf-8")))


def test_nodes_keep_their_contract(infos):
    snapshot = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    changed = {name: contract(info) for name, info in infos.items() if contract(info) != snapshot.get(name)}
    assert not changed, (
        "If old workflows still load and this is meant, run `python -m tools.regenerate snapshots FOLDER`: "
        f"{json.dumps(changed, indent=1)}"
    )


def test_nodes_are_found_by_what_people_look_for(infos):
    """Where ComfyUI's search knows aliases."""
    from comfy_api.latest import io

    known = hasattr(io.Schema(node_id="x"), "search_aliases")
    for name, info in infos.items():
        assert not known or {"dual cache", "cache", "speed up", "teacache"} <= set(info["search_aliases"]), (
            name
        )


def test_english_locale_repeats_the_schema(infos):
    locale = json.loads((ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
    wrong = []
    for name, info in infos.items():
        wanted = {("display_name",): info["display_name"], ("description",): info["description"]}
        for key, (_, options) in inputs_of(info).items():
            wanted["inputs", key, "name"] = options.get("display_name", key)
            wanted["inputs", key, "tooltip"] = options["tooltip"]
        for i, (key, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"])):
            wanted["outputs", str(i), "name"] = key
            if tooltip:
                wanted["outputs", str(i), "tooltip"] = tooltip
        for path, text in wanted.items():
            there = locale.get(name, {})
            for step in path:
                there = there.get(step, {})
            if there != text:
                wrong.append(f"{name}.{'.'.join(path)}: {there or 'missing'!r} should be {text!r}")
    assert not wrong, "\n".join(wrong)


ESSENTIAL = {
    "CacheScheduleBuilder": [],
    "DualCache": ["model"],
    "FeatureForecast": ["model"],
    "VCacheAttentionPatch": ["model"],
    "DualCacheSampler": ["model", "positive", "negative", "latent_image"],
    "CacheReport": [],
    "CacheCompare": [],
    "DualCacheProfileModel": ["model"],
    "DualCacheProfilePrompts": ["model", "clip", "latent_image"],
    "LoadCacheProfile": ["name"],
    "PlanCache": ["profile"],
    "ERTACachePlan": ["profile"],
    "DualCacheDemoModel": [],
    "DualCacheDemoCaption": ["caption"],
    "DualCacheDemoClip": [],
    "DualCacheRecord": ["model"],
    "DualCacheFitPlan": ["model"],
    "DualCacheUseLearnedPlan": ["model"],
    "DualCacheLearnedSampler": [],
}


def test_only_what_a_node_cannot_do_without_is_required(infos):
    """Callers of the API may leave everything else out."""
    assert {name: list(info["input"].get("required", {})) for name, info in infos.items()} == ESSENTIAL


def test_what_is_left_out_has_the_default_of_its_widget(infos, part):
    for node in part("nodes").NODES:
        name = node.GET_SCHEMA().node_id
        known = inspect.signature(node.execute).parameters
        for key, (_, options) in inputs_of(infos[name]).items():
            if options["optional"]:
                assert known[key].default == options.get("default"), f"{key} of {name}"
