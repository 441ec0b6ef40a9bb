"""A real ComfyUI server with the pack in custom_nodes: graphs go in over HTTP, pictures, reports and events
come back."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
from PIL import Image, ImageChops

ROOT = Path(__file__).resolve().parents[1]
COMFYUI = Path(os.environ["COMFYUI_UNDER_TEST"]).resolve()
FOLDER = "dual cache 缓存"  # in custom_nodes; a name that addresses have to quote
PATIENCE = 240


def node(name, **inputs):
    return {"class_type": name, "inputs": inputs}


class NotStarting(RuntimeError):
    """This ComfyUI lacks a module of its own."""


class Server:
    """A running ComfyUI; `queue` runs one graph in API format to its end."""

    def __init__(self, base: Path):
        for folder in ("custom_nodes", "models/diffusion_models", "models/vae", "input", "output"):
            (base / folder).mkdir(parents=True)
        (base / "custom_nodes" / FOLDER).symlink_to(ROOT, target_is_directory=True)
        for name, folder in (("dual_cache_demo", "diffusion_models"), ("dual_cache_demo_vae", "vae")):
            shutil.copy(ROOT / "demo" / "weights" / f"{name}.safetensors", base / "models" / folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = base / "server.log"
        command = [
            sys.executable,
            "main.py",
            "--cpu",
            "--base-directory",
            str(base),
            "--port",
            str(self.port),
            "--listen",
            "127.0.0.1",
            "--disable-auto-launch",
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=COMFYUI, stdout=log, stderr=subprocess.STDOUT)
        self.url = f"http://127.0.0.1:{self.port}"

    def ready(self):
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(aiohttp.ClientError):
                return self.get("/system_stats")
            time.sleep(0.3)
        log = self.log.read_text()
        # Packs are imported late and their errors are survived: a module that is missing here is one of
        # ComfyUI's own.
        if missing := re.findall(r"^ModuleNotFoundError: (No module named .*)$", log, re.MULTILINE):
            raise NotStarting(f"this ComfyUI does not start: {missing[-1]}")
        raise AssertionError(f"The server did not start:\n{log[-3000:]}")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def get(self, path, **params):
        async def run():
            async with (
                aiohttp.ClientSession() as session,
                session.get(self.url + path, params=params) as response,
            ):
                assert response.status == 200, f"{path}: {response.status}"
                return await (response.json() if "json" in response.content_type else response.read())

        return asyncio.run(run())

    def queue(self, graph, interrupt_at=None, extra=None):
        """Runs a graph; gives the websocket's messages as (type, data) and the history's outputs by node.

        interrupt_at: a type of message at which the run is interrupted. extra: what the front end sends for
            the metadata of pictures."""

        async def run():
            client, messages, asked = uuid.uuid4().hex, [], False
            more = {} if extra is None else {"extra_data": {"extra_pnginfo": extra}}
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"{self.url}/ws?clientId={client}") as ws,
            ):
                async with session.post(
                    f"{self.url}/prompt", json={"prompt": graph, "client_id": client, **more}
                ) as response:
                    answer = await response.json()
                    assert response.status == 200, answer
                while True:
                    message = await asyncio.wait_for(ws.receive(), PATIENCE)
                    assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
                    if message.type is aiohttp.WSMsgType.BINARY:  # a preview
                        continue
                    body = json.loads(message.data)
                    messages.append((body["type"], body["data"]))
                    if body["type"] == interrupt_at and not asked:
                        asked = True
                        async with session.post(f"{self.url}/interrupt", json={}) as response:
                            assert response.status == 200
                    if body["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                        break
                # The history is written after the last message.
                for _ in range(100):
                    async with session.get(f"{self.url}/history/{answer['prompt_id']}") as response:
                        history = await response.json()
                    if history:
                        return messages, history[answer["prompt_id"]]["outputs"]
                    await asyncio.sleep(0.1)
                raise AssertionError("The run is missing in the history.")

        return asyncio.run(run())

    def picture(self, outputs, node):
        return self.file(outputs, node).convert("RGB")

    def file(self, outputs, node):
        """The picture as it was saved, with its metadata in `info`."""
        (entry,) = outputs[node]["images"]
        return Image.open(io.BytesIO(self.get("/view", **entry)))


@contextmanager
def serving() -> Iterator[Server]:
    """A server with folders of its own."""
    with tempfile.TemporaryDirectory(prefix="dual-cache-server-") as folder:
        server = Server(Path(folder) / "base folder")
        try:
            server.ready()
            yield server
        finally:
            server.stop()


def pictures(server: Server, outputs: dict) -> list:
    return [server.picture({"7": {"images": [entry]}}, "7") for entry in outputs["7"]["images"]]


def same(one: list, other: list) -> bool:
    return len(one) == len(other) and all(
        a.size == b.size and ImageChops.difference(a, b).getbbox() is None for a, b in zip(one, other)
    )
