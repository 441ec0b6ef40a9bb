"""Models that torch.compile has wrapped, and those that ComfyUI's nodes will wrap."""

from __future__ import annotations

from ...cache_core.hooks import compilation
from ...cache_core.hooks.compilation import Compilation
from .requests import KEY

COMPILED = "torch_compile_kwargs"
"""Where ComfyUI's torch.compile nodes leave what they were asked for."""


def compilation_of(model, asked: dict | None = None) -> Compilation | None:
    """How a compiled diffusion model is compiled, or None where nothing is compiled.

    asked: what ComfyUI's torch.compile nodes were asked for, where they compile the model's blocks."""
    if not compilation.AVAILABLE or (asked is None and not hasattr(model, "_orig_mod")):
        return None
    if asked is None:
        return Compilation(model.dynamo_ctx)
    return Compilation(compilation.compiler(asked, KEY), graphs=compilation.uses_graphs(asked))


def is_compiled(patcher) -> bool:
    """Whether torch.compile is on a MODEL as a whole."""
    return COMPILED in patcher.model_options or hasattr(
        patcher.get_model_object("diffusion_model"), "_orig_mod"
    )


def uncompiled(model):
    """The diffusion model itself, where torch.compile has wrapped it."""
    return getattr(model, "_orig_mod", model)
