"""Writes workflows/*.json with their thumbnails, the subgraph blueprint, and web/docs/demo.jpg.

    python -m tools.regenerate workflows http://127.0.0.1:8188

The address is that of a running ComfyUI, the oldest supported one, with this pack installed. It gives the
node definitions, and runs the workflows that need no download, whose pictures go on their thumbnails."""

from __future__ import annotations

import argparse
import io
import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from cache_core.calibration.planner import plan_for_speedup
from cache_core.calibration.profile import Profile
from cache_core.recipes import from_preset
from demo.sampler import schedule_sigmas
from demo.weights import PROFILE, WEIGHTS

from .api_form import to_api
from .graphs import BLUEPRINT, PLANNED_SPEEDUP, WORKFLOWS, blueprint, embedded
from .litegraph import Graph
from .pictures import draw_thumbnail

ROOT = Path(__file__).resolve().parents[1]


class ComfyUI:
    """A running ComfyUI."""

    def __init__(self, address: str):
        self.address = address.rstrip("/")

    def get(self, path: str, data: dict | None = None) -> bytes:
        body = None if data is None else json.dumps(data).encode()
        with urllib.request.urlopen(
            urllib.request.Request(self.address + path, body, {"Content-Type": "application/json"})
        ) as answer:
            return answer.read()

    def definitions(self) -> dict:
        return json.loads(self.get("/object_info"))

    def run(self, prompt: dict) -> list[Image.Image]:
        """Queues a prompt in API form, waits for it and returns its pictures, in the order of their nodes:
        those under the slider of a comparison where there is one. RuntimeError if it fails."""
        number = json.loads(self.get("/prompt", {"prompt": prompt}))["prompt_id"]
        while not (done := json.loads(self.get(f"/history/{number}")).get(number)):
            time.sleep(0.5)
        if not done["status"]["completed"]:
            raise RuntimeError(f"ComfyUI could not run the workflow: {done['status']['messages'][-1]}")
        shown = [done["outputs"][node] for node in sorted(done["outputs"], key=int)]
        compared = [
            json.loads(text)["shown"] for node in shown for text in node.get("dual_cache_compare", ())
        ]
        files = [row[one["first"]] for one in compared for row in one["pictures"]] or [
            i for node in shown for i in node.get("images", ())
        ]
        return [Image.open(io.BytesIO(self.get("/view?" + urllib.parse.urlencode(file)))) for file in files]


def packs(definitions: dict) -> dict[str, tuple[str, str]]:
    """Which modules the nodes may come from, and under which name and version the workflows record them."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    name, version, comfyui = (
        re.search(rf'^{k} = "[>=]*(.+)"', project, re.MULTILINE)[1]
        for k in ("name", "version", "requires-comfyui")
    )
    core = ("comfy-core", comfyui)
    return {
        definitions["DualCacheSampler"]["python_module"]: (name, version),
        "nodes": core,
        "comfy_extras": core,
    }


def kinds_of(preset: str, steps: int) -> str:
    """The steps that a preset plans; from the embedded model's profile where it plans from profiles."""
    settings = from_preset(preset)
    if settings.speedup is None:
        return settings.schedule_for(steps).kinds
    return plan_for_speedup(
        Profile.load(WEIGHTS / PROFILE), schedule_sigmas(steps), PLANNED_SPEEDUP
    ).schedule.kinds


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("address", help="a running ComfyUI, such as http://127.0.0.1:8188")
    comfyui = ComfyUI(parser.parse_args(arguments).address)
    definitions = comfyui.definitions()

    def write(path: Path, content: dict) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    for describe, (title, preset, steps) in WORKFLOWS.items():
        name = describe.__name__
        graph = Graph(definitions, packs(definitions))
        describe(graph)
        workflow = graph.workflow(name)
        write(ROOT / "workflows" / f"{name}.json", workflow)
        needs_files = any("models" in node["properties"] for node in workflow["nodes"])
        pictures = [] if needs_files else comfyui.run(to_api(workflow, definitions))
        draw_thumbnail(ROOT / "workflows" / f"{name}.jpg", title, kinds_of(preset, steps), pictures)
        if describe is embedded:
            pictures[0].convert("RGB").save(ROOT / "web/docs/demo.jpg", quality=90, optimize=True)
    write(ROOT / "subgraphs" / f"{BLUEPRINT}.json", blueprint(Graph(definitions, packs(definitions))))


if __name__ == "__main__":
    main()
