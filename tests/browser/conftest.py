"""Fixtures of the browser tests: a Chromium, a ComfyUI server of their own, and its front end in each of its
renderers.

CHROMIUM_UNDER_TEST names the browser and COMFYUI_UNDER_TEST the ComfyUI folder. Pictures of what was seen go
into out/screens."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.browser.front_end import FOLDER, PLOT_OF

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_UNDER_TEST", ""))
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START, LOAD = 180, 120  # seconds to wait at most
DOM_WIDGETS_IN_NODES2 = (1, 30)
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.Persist": False,
    "Comfy.ColorPalette": "dark",
    "Comfy.Locale": "en",
}


@pytest.fixture(scope="session")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM_UNDER_TEST", "/usr/bin/chromium"), args=ARGUMENTS
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def screens():
    """The folder for screenshots, which git ignores."""
    folder = ROOT / "out" / "screens"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _python() -> str:
    found = (
        COMFYUI / folder / binary
        for folder in (".venv", "venv")
        for binary in ("bin/python", "Scripts/python.exe")
    )
    return os.environ.get("COMFYUI_PYTHON") or str(
        next((path for path in found if path.exists()), sys.executable)
    )


def _renderers() -> list[str]:
    """Those of this ComfyUI that can show a pack's widgets: the early Nodes 2.0 knew no DOM widgets of any
    pack."""
    ask = "import importlib.metadata; print(importlib.metadata.version('comfyui-frontend-package'))"
    version = subprocess.run([_python(), "-c", ask], capture_output=True, text=True, check=False).stdout
    known = tuple(int(part) for part in version.strip().split(".")[:2] if part.isdigit())
    return ["classic"] if known and known < DOM_WIDGETS_IN_NODES2 else ["classic", "nodes2"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Address of a ComfyUI server of its own, with nothing installed but this pack."""
    if not (COMFYUI / "main.py").is_file():
        pytest.fail("COMFYUI_UNDER_TEST must name a ComfyUI folder; scripts/test.sh finds one.")
    base = tmp_path_factory.mktemp("comfyui")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / FOLDER).symlink_to(ROOT, target_is_directory=True)
    address, log = f"http://127.0.0.1:{(port := _free_port())}", base / "server.log"
    command = [
        _python(),
        "main.py",
        "--cpu",
        "--listen",
        "127.0.0.1",
        "--port",
        str(port),
        "--base-directory",
        str(base),
        "--database-url",
        "sqlite:///:memory:",
        "--disable-auto-launch",
        "--disable-api-nodes",
    ]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=COMFYUI, stdout=output, stderr=subprocess.STDOUT)
    try:
        for _ in range(2 * START):
            try:
                urllib.request.urlopen(f"{address}/system_stats", timeout=10).close()
                break
            except OSError:
                assert process.poll() is None, f"ComfyUI ended:\n{log.read_text()[-3000:]}"
                time.sleep(0.5)
        else:
            pytest.fail(f"ComfyUI did not answer within {START} s:\n{log.read_text()[-3000:]}")
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="session")
def open_front_end(chromium, server):
    """`open_front_end("nodes2", **settings)`: the front end in a browser context of its own; close that in
    the end.

    `page.errors` collects the errors that our scripts caused. Nothing outside the server is reached: the
    front end asks for updates and model files."""

    def opened(renderer, **settings):
        context = chromium.new_context(viewport={"width": 1500, "height": 1000})
        context.route(lambda url: not url.startswith(server), lambda route: route.abort())
        context.add_init_script(PLOT_OF)
        page = context.new_page()
        page.errors, page.renderer = [], renderer
        ours = page.errors.append
        page.on(
            "console",
            lambda m: (
                ours(m.text) if m.type == "error" and FOLDER in m.text + m.location.get("url", "") else None
            ),
        )
        page.on(
            "pageerror",
            lambda error: ours(f"{error}\n{error.stack}") if FOLDER in f"{error} {error.stack}" else None,
        )
        for name, value in {**SETTINGS, "Comfy.VueNodes.Enabled": renderer == "nodes2", **settings}.items():
            context.request.post(f"{server}/api/settings/{name}", data=json.dumps(value))
        page.goto(server, wait_until="commit")
        page.wait_for_function(
            "() => window.app?.extensionManager && window.app.graph && "
            "!document.querySelector('#splash-loader') "
            "&& window.LiteGraph?.registered_node_types?.CacheScheduleBuilder != null",
            timeout=1000 * LOAD,
        )
        loaded = page.evaluate("() => window.app.extensions.map((extension) => extension.name)")
        assert {"dual_cache.schedule_plot", "dual_cache.report"} <= set(loaded), "our scripts were not loaded"
        return page

    return opened


@pytest.fixture(scope="module", params=_renderers())
def page(request, open_front_end, screens):
    """The front end in one renderer. Errors that our scripts caused fail the renderer's last test."""
    page = open_front_end(request.param)
    yield page
    page.screenshot(path=screens / f"comfy-{request.param}-last.png")
    page.context.close()
    assert page.errors == []
