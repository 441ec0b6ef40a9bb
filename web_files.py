"""Serves web files and templates out of a folder whose name an address has to quote, such as one with a
space.

ComfyUI serves them by static routes, whose quoted name aiohttp has compared with the unquoted request since
its version 3.10, so that the two never match. A pattern in a route is compared as it is."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).parent  # as ComfyUI names it, which a link may change
SERVED = {"/extensions": "web", "/workflow_templates": "workflows"}


def running_server():
    """ComfyUI's running server, or None."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def serve() -> None:
    """Adds the routes to the running server, if there is one and the folder's name needs them."""
    server = running_server()
    if server is None or quote(ROOT.name) == ROOT.name:
        return
    from aiohttp import web

    def sender(files: dict[str, Path]):
        async def send(request: web.Request) -> web.FileResponse:
            path = files.get(request.match_info["path"])
            if path is None:
                raise web.HTTPNotFound
            return web.FileResponse(path)

        return send

    name = re.sub(r"[^\w-]", "[^/]", ROOT.name)  # a route's pattern can hold no brace
    for address, folder in SERVED.items():
        files = {
            path.relative_to(ROOT / folder).as_posix(): path
            for path in (ROOT / folder).rglob("*")
            if path.is_file()
        }
        server.routes.get(f"{address}/{{pack:{name}}}/{{path:.+}}")(sender(files))
