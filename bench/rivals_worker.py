"""The part of the rivals bench that runs inside a ComfyUI: `PYTHON_OF_COMFYUI -m bench.rivals_worker JOB.json
OUT.jsonl`.

It loads the pack, ComfyUI's own caches and the packs of others through ComfyUI's loader, as a user's ComfyUI
does, calls their nodes, and samples each row with ComfyUI's sampler. The job comes as JSON, results go out as
one JSON value per line; `bench.rivals` does the rest."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cache_core.report.metrics import psnr, ssim

ROOT = Path(__file__).resolve().parents[1]
PLAIN, EXACT = REFERENCES = ("plain", "exact")
"""Groups of the rows that others are compared with; they come first among the rows."""
WARM = (4, 10)
"""Most steps of the run that is discarded; more for the packs of others, some of which break where their
first steps are too few."""
MARGIN = 300
"""Most letters of an error that are kept."""


def start(job: dict):
    """ComfyUI in this process, on the CPU, its folders temporary; its module `nodes`."""
    sys.path.insert(
        0, job["comfyui"]
    )  # before the repository, whose folder `nodes` would hide ComfyUI's module of that name
    from comfy.cli_args import args

    args.cpu = True
    args.base_directory = tempfile.mkdtemp(prefix="dual-cache-rivals-")
    args.fp32_vae = True  # the pictures are compared, so decoding must not add errors of its own
    args.bf16_unet = job["dtype"] == "bfloat16"
    import comfy.model_management

    import nodes

    if args.bf16_unet:
        # On a CPU ComfyUI keeps bf16 weights but computes in fp32; on a GPU it computes in bf16, which is
        # what is asked for.
        comfy.model_management.should_use_bf16 = lambda *_, **__: True
    logging.getLogger().setLevel(logging.ERROR)
    return nodes


def load(nodes, job: dict) -> dict[str, str]:
    """Loads all node packs; why one could not be, by name."""
    failed = {}

    class Notes(logging.Handler):
        def emit(self, record):
            text = record.getMessage()
            if text.startswith("Cannot import"):
                failed[name] = text.split("custom nodes: ", 1)[-1].replace(f"{Path(job['comfyui'])}/", "")[
                    :MARGIN
                ]

    root, notes = logging.getLogger(), Notes(logging.WARNING)
    root.addHandler(notes)
    root.setLevel(logging.WARNING)
    extras = Path(job["comfyui"]) / "comfy_extras" / "nodes_easycache.py"
    for name, path, parent in [
        ("dual-cache", ROOT, "custom_nodes"),
        ("comfy_extras", extras, "comfy_extras"),
        *((p.name, p, "custom_nodes") for p in map(Path, job["packs"])),
    ]:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            loaded = asyncio.run(nodes.load_custom_node(str(path), module_parent=parent))
        if not loaded:
            failed.setdefault(name, "ComfyUI could not load it")
    root.removeHandler(notes)
    root.setLevel(logging.ERROR)
    return failed


def run_node(nodes, name: str, inputs: dict) -> tuple:
    """Runs a node of either dialect as the executor does; its outputs."""
    node = nodes.NODE_CLASS_MAPPINGS.get(name)
    if node is None:
        raise RuntimeError(f"the node {name} is not there")
    target = (
        node.PREPARE_CLASS_CLONE({"hidden_inputs": {}}) if hasattr(node, "PREPARE_CLASS_CLONE") else node()
    )
    out = getattr(target, target.FUNCTION)(**inputs)
    return out.result if hasattr(out, "result") else out


def build(nodes, chain: list, model):
    """The model behind a row's chain of (node, inputs), each of which patches the model of the one before."""
    for name, inputs in chain:
        model = run_node(nodes, name, {"model": model, **inputs})[0]
    return model


def protected(model):
    """A clone whose transformer is given a copy of the input: ComfyUI's EasyCache adds into the tensor that
    it is handed."""
    from comfy.patcher_extension import WrappersMP

    model = model.clone()
    model.add_wrapper_with_key(
        WrappersMP.DIFFUSION_MODEL,
        "protect",
        lambda executor, x, *args, **kwargs: executor(x.clone(), *args, **kwargs),
    )
    return model


class Calls:
    """Counts the evaluations that ran all blocks in full, by the last block's last linear layer and the
    tokens it was given."""

    def __init__(self, net):
        self.seen: list[int] = []
        net.single_blocks[-1].linear2.register_forward_pre_hook(
            lambda _, args: self.seen.append(args[0].shape[1])
        )

    def count(self, tokens: int | None = None) -> int:
        """Full evaluations since the last time; `tokens` is what a full one has."""
        seen, self.seen[:] = list(self.seen), []
        return sum(n == tokens for n in seen) if tokens else len(seen)


class Bench:
    """One ComfyUI, one dtype, one guidance: samples rows and compares their pictures."""

    def __init__(self, job: dict, tell: Callable[[dict], None]):
        self.job, self.tell, self.began = job, tell, time.perf_counter()
        self.nodes = start(job)
        import comfy.sample

        self.sampler = comfy.sample
        self.failed = load(self.nodes, job)
        self.model, self.vae = run_node(self.nodes, "DualCacheDemoModel", {})
        self.calls = Calls(self.model.model.diffusion_model)
        self.rows: list[dict] = job["rows"]
        self.models: dict[int, object] = {}
        self.texts = [
            run_node(self.nodes, "DualCacheDemoCaption", {"caption": c})[0] for c in job["captions"]
        ]
        self.empty = run_node(self.nodes, "DualCacheDemoCaption", {"caption": ""})[0]
        self.tokens = job["size"] ** 2 // 256 + self.empty[0][0].shape[1]

    def versions(self) -> dict:
        import comfyui_version

        return {
            "comfyui": comfyui_version.__version__,
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "dtype": str(self.model.model.get_dtype()).removeprefix("torch."),
            "cast": str(self.model.model.manual_cast_dtype or "").removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "not_loaded": self.failed,
        }

    def prepare(self) -> None:
        """Builds every row's model and runs it once, discarded; a row that cannot run is told with its error
        and left out."""
        for i, row in enumerate(self.rows):
            try:
                if row.get("pack") in self.failed:
                    raise RuntimeError(self.failed[row["pack"]])
                base = protected(self.model) if row.get("protect") else self.model
                self.models[i] = build(self.nodes, row["nodes"], base)
                self.sample(i, 0, warm=True)
            except Exception as error:  # noqa: PERF203 - whatever a pack raises is its result
                self.models.pop(i, None)
                self.tell({"row": i, "error": f"{type(error).__name__}: {error}".splitlines()[0][:MARGIN]})

    def sample(self, i: int, caption: int, warm: bool = False) -> tuple[torch.Tensor, dict]:
        """A latent of a row, and what it took: process seconds of the CPU and wall seconds of sampling,
        evaluations in full."""
        row, job = self.rows[i], self.job
        latent = torch.zeros(1, 16, job["size"] // 8, job["size"] // 8)
        noise = self.sampler.prepare_noise(latent, caption)
        steps = min(row["steps"], WARM[bool(row.get("pack"))]) if warm else row["steps"]
        self.calls.count()
        with contextlib.redirect_stdout(io.StringIO()):
            wall, cpu = time.perf_counter(), time.process_time()
            out = self.sampler.sample(
                self.models[i],
                noise,
                steps,
                job["guidance"],
                row["sampler"],
                "simple",
                self.texts[caption],
                self.empty,
                latent,
                disable_pbar=True,
                seed=caption,
            )
            took = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        return out, {**took, "full_calls": self.calls.count(self.tokens)}

    def picture(self, latent: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latent).movedim(-1, 1).float().clamp(0, 1)

    def late(self) -> bool:
        return time.perf_counter() - self.began > 60 * self.job["minutes"]

    def run(self) -> None:
        """Captions are the outer loop, the rows within one are in random order; the references, which come
        first, excepted."""
        for caption in self.job["todo"]:
            if self.late():
                return
            order, known = [i for i in self.models if self.rows[i]["group"] not in REFERENCES], {}
            random.Random(caption).shuffle(order)
            for i in [*(i for i in self.models if i not in order), *order]:
                latent, took = self.sample(i, caption)
                picture, group = self.picture(latent), self.rows[i]["group"]
                against = {}
                if group in REFERENCES:
                    known[group] = picture
                if group != PLAIN:
                    against = {"psnr": psnr(picture, known[PLAIN])[0], "ssim": ssim(picture, known[PLAIN])[0]}
                if EXACT in known and group != EXACT:
                    against["exact"] = psnr(picture, known[EXACT])[0]
                self.tell({"row": i, "caption": caption, **took, **against})
            self.tell({"caption": caption, "done": True})


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    with open(sys.argv[2], "w", encoding="utf-8") as out:

        def tell(value: dict) -> None:
            out.write(json.dumps(value) + "\n")
            out.flush()

        with torch.inference_mode():  # as ComfyUI runs its nodes
            bench = Bench(job, tell)
            tell({"versions": bench.versions(), "load_before": os.getloadavg()})
            bench.prepare()
            bench.run()
        tell({"load_after": os.getloadavg()})


if __name__ == "__main__":
    main()
