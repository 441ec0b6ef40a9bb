"""Other nodes on the same model: does caching compose with them, and is it said where it does not?"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

from . import branches, embedded  # before all of ComfyUI

import comfy.controlnet  # isort: skip
import comfy.sd  # isort: skip
import comfy.utils  # isort: skip
import torch  # isort: skip

from .branches import Case, node  # isort: skip
from .embedded import cached, caption, report_of, sample  # isort: skip
from .rows import Deadline, Row, tried  # isort: skip

PACKS = "DUAL_CACHE_STRESS_PACKS"
"""Names a folder with other packs; see `--packs`."""


# --- changes of the model -------------------------------------------------------------------------


BACKEND = "inductor" if shutil.which("c++") or shutil.which("g++") else "eager"
"""Of torch.compile. Inductor needs a C++ compiler here; the eager backend traces as it does, and compiles
nothing."""


def compiled(model):
    """torch.compile as ComfyUI's node sets it."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = model.clone()
    set_torch_compile_wrapper(model, backend=BACKEND)
    return model


def compiled_last(model, preset="balanced", kinds=None):
    return compiled(cached(model, preset, kinds))


def compiled_in_place(model):
    """The whole model compiled and put in its place when it is loaded, as older nodes do it."""
    model = model.clone()
    model.add_object_patch(
        "diffusion_model", torch.compile(model.get_model_object("diffusion_model"), backend=BACKEND)
    )
    return model


def compiled_blocks(model):
    """Every block compiled by itself and put in its place when the model is loaded, as KJNodes' torch.compile
    nodes do it."""
    model = model.clone()
    for name in ("double_blocks", "single_blocks"):
        for i, block in enumerate(getattr(model.get_model_object("diffusion_model"), name)):
            model.add_object_patch(f"diffusion_model.{name}.{i}", torch.compile(block, backend=BACKEND))
    return model


@cache
def in_float8():
    from demo.weights import MODEL, WEIGHTS

    state = comfy.utils.load_torch_file(str(WEIGHTS / MODEL))
    return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float8_e4m3fn})


class Packed(torch.nn.Linear):
    """A linear layer whose weight is kept in 8 bit with a scale per row and unpacked when it runs, as GGUF
    loaders do."""

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


@cache
def packed():
    model = embedded.load()
    net = model.model.diffusion_model
    for block in [*net.double_blocks, *net.single_blocks]:
        for layer in [m for m in block.modules() if isinstance(m, torch.nn.Linear)]:
            scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
            layer.__class__, layer.scale = Packed, scale
            layer.weight = torch.nn.Parameter(
                (layer.weight / scale).round().to(torch.int8), requires_grad=False
            )
    return model


def with_attention(model):
    """An attention override that computes in bfloat16, as SageAttention's nodes set theirs."""

    def theirs(func, q, k, v, *args, **kwargs):
        return func(q.bfloat16(), k.bfloat16(), v.bfloat16(), *args, **kwargs).to(q.dtype)

    model = model.clone()
    model.model_options.setdefault("transformer_options", {})["optimized_attention_override"] = theirs
    return model


def merged(model):
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    from nodes import NODE_CLASS_MAPPINGS  # noqa: F401  (merging nodes import it)

    other = embedded.load()
    with torch.no_grad():
        other.model.diffusion_model.double_blocks[0].img_mlp[0].weight.mul_(1.05)
    return ModelMergeSimple().merge(model, other, 0.5)[0]


def with_lora(model):
    model = model.clone()
    model.add_patches({k: (0.6 * weight,) for k, (weight,) in branches.second_expert().items()})
    return model


def with_block_patch(model):
    """A block wrapped through `patches_replace`, which adds to its output, as PuLID's nodes do."""

    def theirs(args, extra):
        out = extra["original_block"](args)
        return {**out, "img": out["img"] + 0.02 * out["img"].mean(1, keepdim=True)}

    model = model.clone()
    model.set_model_patch_replace(theirs, "dit", "double_block", 1)
    return model


def with_forward_replaced(model):
    """A wrapper that puts another `forward_orig` in place while the model runs, as packs with copied forwards
    do."""

    def theirs(*args, **kwargs):
        return type(net).forward_orig(net, *args, **kwargs) * 1.01

    def wrapper(apply, kwargs):
        net.forward_orig = theirs
        try:
            return apply(kwargs["input"], kwargs["timestep"], **kwargs["c"])
        finally:
            del net.forward_orig

    net, model = model.model.diffusion_model, model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


class Control(comfy.controlnet.ControlBase):
    """Residuals for some blocks, as a FLUX ControlNet gives them; they depend on what the control sees."""

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        tokens, width = (
            x_noisy.shape[-1] * x_noisy.shape[-2] // 4,
            embedded.model().model.diffusion_model.hidden_size,
        )
        add = 0.05 * torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(8))
        add = add * (1 + x_noisy.mean((1, 2, 3)).view(-1, 1, 1))
        return {"input": [add, 0.5 * add], "output": [-0.3 * add]}

    def copy(self):
        return self

    def get_models(self):
        return []

    def inference_memory_requirements(self, dtype):
        return 0


def controlled(text=None):
    made = {"control": Control(), "control_apply_to_uncond": True}
    return caption("", **made) if text == "" else caption(**made)


FREE_U = node("nodes_freelunch", "FreeU_V2", "patch", b1=1.3, b2=1.4, s1=0.9, s2=0.2)
CASES = {
    "float8 weights": Case(lambda _: in_float8()),
    "8-bit packed weights, as GGUF": Case(lambda _: packed()),
    "attention override, as SageAttention": Case(with_attention),
    "model merge": Case(merged),
    "LoRA": Case(with_lora),
    "FreeU": Case(FREE_U),
    "ControlNet": Case(positive=controlled, negative=partial(controlled, "")),
    "block patch, as PuLID": Case(with_block_patch),
    "forward replaced by another pack": Case(with_forward_replaced),
    f"torch.compile ({BACKEND}) before": Case(compiled, tolerance=1e-4),
    f"torch.compile ({BACKEND}) after": Case(cached=compiled_last, tolerance=1e-4),
    f"torch.compile ({BACKEND}) in place": Case(compiled_in_place, tolerance=1e-4),
    f"torch.compile ({BACKEND}) of every block": Case(compiled_blocks, tolerance=1e-4),
}
SAID = {
    "forward replaced by another pack": "forward_orig",
    **{
        f"torch.compile ({BACKEND}) {order}": "compiled one by one"
        for order in ("before", "after", "in place")
    },
}
"""What the report must tell of a case."""


def compose(name: str) -> Row:
    case = CASES[name]
    row = branches.try_case(name, case)
    if name in SAID and row.ok:
        patched = case.cached(case.model(embedded.model()))
        case(patched, steps=12)
        if not any(SAID[name] in m for m in report_of(patched).messages):
            return Row(name, False, "the report does not tell", row.numbers)
    return row


# --- other caches ---------------------------------------------------------------------------------


def core_cache(name: str):
    return node(
        "nodes_easycache",
        name,
        "apply",
        reuse_threshold=0.5,
        start_percent=0.1,
        end_percent=0.9,
        verbose=False,
    )


def of_pack(folder: str, cls: str, method: str, **inputs):
    """A change of the model by a node of another pack, which lies in the folder that PACKS names."""

    def change(model):
        pack = load_pack(folder)
        return getattr(pack.NODE_CLASS_MAPPINGS[cls](), method)(model, **inputs)[0]

    return change


@cache
def load_pack(folder: str):
    path, name = Path(os.environ[PACKS]) / folder, f"other_pack_{folder.replace('-', '_')}"
    spec = importlib.util.spec_from_file_location(
        name, path / "__init__.py", submodule_search_locations=[str(path)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


CACHES = {
    "EasyCache": core_cache("EasyCacheNode"),
    "LazyCache": core_cache("LazyCacheNode"),
    "TeaCache": of_pack(
        "ComfyUI-TeaCache",
        "TeaCache",
        "apply_teacache",
        model_type="flux",
        rel_l1_thresh=0.4,
        start_percent=0.0,
        end_percent=1.0,
        cache_device="cpu",
    ),
    "WaveSpeed": of_pack(
        "Comfy-WaveSpeed",
        "ApplyFBCacheOnModel",
        "patch",
        object_to_patch="diffusion_model",
        residual_diff_threshold=0.5,
        start=0.0,
        end=1.0,
        max_consecutive_cache_hits=-1,
    ),
    "MagCache": of_pack(
        "ComfyUI-MagCache",
        "MagCache",
        "apply_magcache",
        model_type="flux",
        magcache_thresh=0.24,
        retention_ratio=0.1,
        magcache_K=5,
        start_step=0,
        end_step=-1,
    ),
    "TaylorSeer": of_pack(
        "ComfyUI-TaylorSeer",
        "TaylorSeerLite",
        "apply_taylorseer_lite",
        model_type="flux",
        fresh_threshold=3,
        max_order=1,
        first_enhance=3,
        last_enhance=50,
        block_swap_args={},
    ),
}
FOLDERS = {
    "WaveSpeed": "Comfy-WaveSpeed",
    **{name: f"ComfyUI-{name}" for name in ("TeaCache", "MagCache", "TaylorSeer")},
}
"""Where `--packs` must have them; the others come with ComfyUI."""


def refuse(name: str) -> Row:
    """Another cache on the model, before and after ours: nothing of ours is skipped, and the report says
    why."""
    theirs, wrong, told = CACHES[name], [], ""
    try:
        theirs(embedded.load())
    except ImportError as error:
        return Row(f"with {name}", True, f"its pack does not load in this ComfyUI: {error}"[:110])
    try:
        alone = sample(theirs(embedded.load()), steps=12)
    except Exception as error:  # whatever it is, it is not ours
        alone, told = None, f"it fails alone with this ComfyUI ({type(error).__name__}: {str(error)[:60]}); "
    for order, patched in (
        ("before", cached(theirs(embedded.load()))),
        ("after", theirs(cached(embedded.load()))),
    ):
        try:
            out = sample(patched, steps=12)
            if alone is not None and not torch.equal(out, alone):
                wrong.append(f"{order}: another result than {name} alone")
        except Exception:
            if alone is not None:
                raise
        report = report_of(patched)
        if report.totals()["skipped"]:
            wrong.append(f"{order}: {report.totals()['skipped']} steps skipped on top of it")
        sentences = [m for m in report.messages if name in m]
        if not sentences:
            wrong.append(f"{order}: the report does not name it")
        else:
            said = sentences[0]
    return Row(f"with {name}", not wrong, "; ".join(wrong) or told + said)


def cases(names=None) -> list:
    packs = Path(os.environ.get(PACKS, "/nonexistent"))
    found = [(name, partial(compose, name)) for name in CASES]
    found += [
        (f"with {name}", partial(refuse, name))
        for name in CACHES
        if name not in FOLDERS or (packs / FOLDERS[name]).is_dir()
    ]
    return [case for case in found if names is None or case[0] in names]


def rows(deadline: Deadline, names=None) -> Iterator[Row]:
    """One row per node."""
    yield from tried(cases(names), deadline)
    if not os.environ.get(PACKS):
        yield Row("other packs", True, "not tried: no folder was given with --packs")
