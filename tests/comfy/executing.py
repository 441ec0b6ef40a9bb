"""Graphs in ComfyUI's own executor inside this process, with nodes of others that make lists and further
nodes while they run."""

from __future__ import annotations

import inspect
import json
import uuid
from pathlib import Path

import torch
from PIL import Image

CAPTIONS = ("a large red heart center", "a small blue star left", "a large green circle right")


def node(name, **inputs) -> dict:
    return {"class_type": name, "inputs": inputs}


class Captions:
    """Gives a list of captions, one per line."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_IS_LIST = "test", "run", ("STRING",), (True,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"multiline": True})}}

    def run(self, text):
        return (text.split("\n"),)


class Reverse:
    """Turns a list of pictures round."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("IMAGE",)
    INPUT_IS_LIST, OUTPUT_IS_LIST = True, (True,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}}

    def run(self, images):
        return (images[::-1],)


class Decode:
    """A picture of a latent [B,16,H,W], without an autoencoder."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",)}}

    def run(self, samples):
        return (samples["samples"][:, :3].movedim(1, -1).sigmoid(),)


class Expands:
    """A node that becomes Dual Cache and KSampler while it runs."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "seed": ("INT", {"default": 0}),
                "passes": ("INT", {"default": 1}),
            },
        }

    def run(self, model, positive, negative, latent_image, seed, passes):
        from comfy_execution.graph_utils import GraphBuilder

        graph = GraphBuilder()
        cached, latent = graph.node("DualCache", model=model), latent_image
        for i in range(passes):
            latent = graph.node(
                "KSampler",
                **{**SAMPLER, "seed": seed + i, "model": cached.out(0), "latent_image": latent},
                positive=positive,
                negative=negative,
            ).out(0)
        return {"result": (latent,), "expand": graph.finalize()}


SAMPLER = {"seed": 11, "steps": 8, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
FOREIGN = {f"Test{c.__name__}": c for c in (Captions, Reverse, Decode, Expands)}


def graph(*captions: str, **sampler) -> dict:
    """The embedded model, Dual Cache, KSampler, a saved picture and the report, of a list of captions."""
    return {
        "1": node("DualCacheDemoModel"),
        "20": node("TestCaptions", text="\n".join(captions or CAPTIONS)),
        "2": node("DualCacheDemoCaption", caption=["20", 0]),
        "3": node("DualCacheDemoCaption", caption=""),
        "4": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "10": node("DualCache", model=["1", 0]),
        "5": node(
            "KSampler",
            **{**SAMPLER, **sampler},
            model=["10", 0],
            positive=["2", 0],
            negative=["3", 0],
            latent_image=["4", 0],
        ),
        "6": node("TestDecode", samples=["5", 0]),
        "7": node("SaveImage", images=["6", 0], filename_prefix=f"run/{uuid.uuid4().hex}"),
        "8": node("CacheReport", model=["10", 0], latent=["5", 0]),
    }


class Server:
    """Stands where ComfyUI's server is and keeps what is sent to the browser."""

    client_id = last_node_id = last_prompt_id = "browser"

    def __init__(self):
        self.sent: list[tuple[str, dict]] = []
        self.shown: list[tuple[str, str]] = []

    def send_sync(self, event, data, sid=None):
        self.sent.append((event, data))

    def send_progress_text(self, text, node_id, sid=None):
        self.shown.append((node_id, text))


class Executor:
    """ComfyUI's executor. errors: those of the last graph; server: what it was sent."""

    def __init__(self, part):
        import execution

        self.part, self.server = part, Server()
        options = {"cache_type": execution.CacheType.CLASSIC}
        if "cache_args" in inspect.signature(execution.PromptExecutor).parameters:
            options["cache_args"] = {"lru": 0, "ram": 0, "ram_inactive": 0}
        self.executor = execution.PromptExecutor(self.server, **options)

    def __call__(self, prompt: dict, extra: dict | None = None) -> dict:
        """Runs a graph to its end; the outputs by node."""
        import nodes as comfyui

        self.server.sent.clear()
        self.server.shown.clear()
        data = {"prompt": prompt, "extra_data": {} if extra is None else {"extra_pnginfo": extra}}
        data = self.part("nodes.comfy.metadata")._on_prompt(data)
        outputs = [
            key
            for key, made in prompt.items()
            if getattr(comfyui.NODE_CLASS_MAPPINGS[made["class_type"]], "OUTPUT_NODE", False)
        ]
        with torch.inference_mode():
            self.executor.execute(data["prompt"], uuid.uuid4().hex, data["extra_data"], outputs)
        self.errors = [d for event, d in self.executor.status_messages if event == "execution_error"]
        return self.executor.history_result["outputs"] if self.executor.history_result else {}

    def events(self, kind: str) -> list[dict]:
        """Events of ours that the browser was sent."""
        return [data for event, data in self.server.sent if event == kind]


def reports(outputs: dict, number: str = "8") -> list[dict]:
    """Reports that a Cache Report shows, one per item of a list."""
    return [json.loads(text) for text in outputs[number]["dual_cache_report"]]


def carried(outputs: dict, number: str = "7") -> list[dict]:
    """The runs that the pictures of a Save Image carry, by the node that sampled."""
    import folder_paths

    made = []
    for entry in outputs[number]["images"]:
        path = Path(folder_paths.get_output_directory()) / entry["subfolder"] / entry["filename"]
        info = Image.open(path).info
        workflow = json.loads(info.get("workflow", "{}"))
        kept = workflow.get("extra", {}).get("dual_cache") or json.loads(info.get("dual_cache", "null"))
        made.append(kept["runs"] if kept else {})
    return made
