"""Dual Cache: feature caching for diffusion transformers in ComfyUI."""

import sys

WEB_DIRECTORY = "./web"

if "comfy" in sys.modules:
    from . import web_files
    from .nodes import DualCacheExtension

    web_files.serve()

    async def comfy_entrypoint():
        return DualCacheExtension()
