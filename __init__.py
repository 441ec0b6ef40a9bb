"""Dual Cache: feature caching for diffusion transformers in ComfyUI."""

import sys

WEB_DIRECTORY = "./web"

if "comfy" in sys.modules:
    from . import web_files
    from .nodes import DualCacheExtension
    from .nodes.comfy.metadata import listen

    web_files.serve()
    listen()

    async def comfy_entrypoint():
        return DualCacheExtension()
