"""Dual Cache: feature caching for diffusion transformers in ComfyUI."""

import sys

WEB_DIRECTORY = "./web"

if "comfy" in sys.modules:
    from .nodes import DualCacheExtension

    async def comfy_entrypoint():
        return DualCacheExtension()
