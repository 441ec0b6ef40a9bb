"""The schedule plot in ComfyUI's own front end, in both of its renderers: COMFYUI_UNDER_TEST names the ComfyUI folder."""

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

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_UNDER_TEST", ""))
FOLDER = "dual_cache_under_test"
OURS = ("CacheScheduleBuilder", "DualCacheSampler", "DualCache")
START, LOAD = 180, 120  # seconds to wait at most
BALANCED = "FFF" + "AAF" * 9
EDGE = 8  # pixels beside the bars
DOM_WIDGETS_IN_NODES2 = (1, 30)
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.Persist": False, "Comfy.ColorPalette": "dark"}

# What a front end without a run would receive over the socket.
SEND = """([id, kinds, count, done]) => {
  const records = [...kinds].map((planned, step) => {
    const actual = step === 4 ? "F" : planned;
    return {
      step, phase: 0, sigma: 10 * (1 - step / kinds.length) ** 2, planned, actual, reason: actual === planned ? "planned" : "no_snapshot",
      calls: 1, full_calls: Number(actual === "F"), milliseconds: actual === "F" ? 100 : 5, ratio: 0.1, cached_bytes: 1024,
      forecast_error: done && actual === "F" && step > 3 ? 0.01 * step : null,
    };
  });
  const { api } = window.comfyAPI.api, send = (type, detail) => api.dispatchEvent(new CustomEvent(type, { detail }));
  for (const record of records.slice(0, count)) send("dual_cache.step", { node: String(id), steps: kinds.length, record });
  const report = { steps: kinds.length, records, wall_seconds: 2.5, totals: { peak_bytes: 1024 }, messages: ["A sentence of the report."] };
  if (done) send("dual_cache.report", { node: String(id), report, text: "" });
}"""


def _python() -> str:
    found = (COMFYUI / folder / binary for folder in (".venv", "venv") for binary in ("bin/python", "Scripts/python.exe"))
    return os.environ.get("COMFYUI_PYTHON") or str(next((path for path in found if path.exists()), sys.executable))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a ComfyUI server of its own, with nothing installed but this pack."""
    if not (COMFYUI / "main.py").is_file():
        pytest.fail("COMFYUI_UNDER_TEST must name a ComfyUI folder; scripts/test.sh finds one.")
    base = tmp_path_factory.mktemp("comfyui")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / FOLDER).symlink_to(ROOT, target_is_directory=True)
    address, log = f"http://127.0.0.1:{(port := _free_port())}", base / "server.log"
    command = [_python(), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base),
               "--database-url", "sqlite:///:memory:", "--disable-auto-launch", "--disable-api-nodes"]
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


@pytest.fixture(scope="module", params=["classic", "nodes2"])
def page(request, chromium, server, screens):
    """The front end in one renderer. Errors that our scripts caused fail the renderer's last test."""
    context = chromium.new_context(viewport={"width": 1500, "height": 1000})
    page = context.new_page()
    errors = []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" and FOLDER in m.text + m.location.get("url", "") else None)
    page.on("pageerror", lambda error: errors.append(f"{error}\n{error.stack}") if FOLDER in f"{error} {error.stack}" else None)
    for name, value in {**SETTINGS, "Comfy.VueNodes.Enabled": request.param == "nodes2"}.items():
        context.request.post(f"{server}/api/settings/{name}", data=json.dumps(value))
    page.goto(server, wait_until="commit")
    page.wait_for_function("() => window.app?.extensionManager && window.LiteGraph?.registered_node_types?.CacheScheduleBuilder != null "
                           "&& window.app.graph && !document.querySelector('#splash-loader')", timeout=1000 * LOAD)
    version = page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__")
    if request.param == "nodes2" and tuple(map(int, version.split(".")[:2])) < DOM_WIDGETS_IN_NODES2:
        context.close()
        pytest.skip(f"the early Nodes 2.0 of front end {version} shows no DOM widgets of any pack")
    page.renderer = request.param
    yield page
    page.screenshot(path=screens / f"comfy-{request.param}-last.png")
    context.close()
    assert errors == []


@pytest.fixture
def graph(page):
    """A new workflow with a Cache Schedule Builder; returns the page."""
    open_workflow(page, OURS[:1])
    return page


def open_workflow(page, types):
    """Opens a workflow that holds one node of each type, as from a file, so that it has an id and an undo history."""
    page.evaluate("""async types => {
      const { app, LiteGraph } = window;
      app.graph.clear();
      types.reduce((x, type) => {
        const node = LiteGraph.createNode(type);
        node.pos = [x, 0];
        app.graph.add(node);
        return x + node.size[0] + 40;
      }, 0);
      const workflow = JSON.parse(JSON.stringify(app.graph.serialize()));
      workflow.id = crypto.randomUUID();
      await app.loadGraphData(workflow);
      Object.assign(app.canvas.ds, { scale: 1, offset: [120, 120] });
      app.canvas.setDirty(true, true);
    }""", list(types))
    for kind in types:
        wait(page, "kind => window.plotOf?.(kind)?.draws > 0 || (window.plotOf = kind => [...document.querySelectorAll('.dual-cache')]"
                   ".map((element) => element.__dualCache).find((state) => state?.node === kind), false)", kind)


def wait(page, condition, argument=None):
    page.wait_for_function(condition, arg=argument, timeout=20_000)


def state(page, kind=OURS[0]):
    return page.evaluate("kind => JSON.parse(JSON.stringify(window.plotOf(kind)))", kind)


def node(page, expression, kind=OURS[0]):
    """The value of a JavaScript expression about `node`, `widget(name)` and `app`."""
    return page.evaluate(f"""kind => {{
      const {{ app }} = window, node = app.graph._nodes.find((n) => n.type === kind);
      const widget = (name) => node.widgets.find((w) => w.name === name);
      return {expression};
    }}""", kind)


def kinds_are(page, kinds, kind=OURS[0]):
    wait(page, "([kind, kinds]) => window.plotOf(kind)?.plan?.kinds === kinds", [kind, kinds])


def press_more(page, name):
    """Clicks on the arrow or plus that raises a number widget of the first node."""
    if page.renderer == "classic":
        x, y = node(page, f"[node.pos[0] + node.size[0] - 24, node.pos[1] + widget('{name}').last_y + 10]")
        scale, (left, top) = node(page, "[app.canvas.ds.scale, app.canvas.ds.offset]")
        box = page.locator("#graph-canvas").bounding_box()
        page.mouse.click(box["x"] + (x + left) * scale, box["y"] + (y + top) * scale)
    else:
        row = page.locator("[data-testid='node-widget']").filter(has=page.get_by_text(name, exact=True))
        row.get_by_test_id("increment").first.click()


def bar(page, index, kind=OURS[0]):
    """The middle of a bar in page coordinates."""
    frame = page.locator(".dual-cache-frame").nth(page.evaluate(
        "kind => [...document.querySelectorAll('.dual-cache')].findIndex((e) => e.__dualCache.node === kind)", kind))
    box, inner = frame.bounding_box(), frame.evaluate("element => element.clientWidth")
    side, steps = EDGE * box["width"] / inner, len(state(page, kind)["bars"])
    return box["x"] + side + (box["width"] - 2 * side) * (index + 0.5) / steps, box["y"] + box["height"] / 2


def history(page):
    return page.evaluate("() => window.app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length")


def test_nodes_are_found_and_scripts_are_served(page, server):
    with urllib.request.urlopen(f"{server}/object_info", timeout=60) as answer:
        assert set(OURS) < set(json.load(answer))
    with urllib.request.urlopen(f"{server}/extensions", timeout=60) as answer:
        assert f"/extensions/{FOLDER}/widget.js" in json.load(answer)


def test_a_new_builder_shows_its_plan(graph, screens):
    now = state(graph)
    assert now["plan"]["kinds"] == BALANCED and now["editable"] and now["sigmas"] == "planned"
    box, view = graph.locator(".dual-cache").bounding_box(), graph.viewport_size
    assert box["width"] > 250 and box["height"] >= 200 and box["y"] + box["height"] < view["height"]
    painted = graph.evaluate("""() => {
      const canvas = document.querySelector(".dual-cache canvas");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return data.filter((value, i) => i % 4 === 3 && value > 200).length / (data.length / 4);
    }""")
    assert 0.15 < painted < 0.95
    graph.screenshot(path=screens / f"comfy-{graph.renderer}-builder.png")


def test_a_click_on_a_widget_changes_the_plot(graph):
    press_more(graph, "steps")
    wait(graph, "() => window.plotOf('CacheScheduleBuilder').bars.length === 31")


def test_advanced_widgets_change_the_plot(graph):
    if graph.renderer == "nodes2":
        graph.get_by_text("Show advanced inputs").first.click()
    graph.evaluate("""() => {
      const node = window.app.graph._nodes[0], preset = node.widgets.find((w) => w.name === "preset");
      preset.value = "custom";
      preset.callback("custom", window.app.canvas, node);
    }""")
    wait(graph, "() => window.plotOf('CacheScheduleBuilder').plan.kinds.startsWith('FFFCACAF')")
    press_more(graph, "interval")
    wait(graph, "() => window.plotOf('CacheScheduleBuilder').plan.kinds.startsWith('FFFCACACF')")
    assert node(graph, "widget('interval').value") == 6


def test_a_click_on_a_bar_is_one_undoable_change(graph):
    before, changed = history(graph), BALANCED[:4] + "F" + BALANCED[5:]
    graph.mouse.click(*bar(graph, 4))
    kinds_are(graph, changed)
    assert node(graph, "widget('explicit').value") == changed
    graph.mouse.click(*bar(graph, 0))  # the first step stays full
    assert history(graph) == before + 1
    graph.keyboard.press("Control+z")
    kinds_are(graph, BALANCED)
    assert node(graph, "widget('explicit').value") == ""
    graph.keyboard.press("Control+y")
    kinds_are(graph, changed)


def test_keys_change_steps_and_survive_an_undo(graph):
    graph.locator(".dual-cache-frame").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "c"):
        graph.keyboard.press(key)
    kinds_are(graph, BALANCED[:3] + "C" + BALANCED[4:])
    graph.keyboard.press("Control+z")
    kinds_are(graph, BALANCED)
    wait(graph, "() => document.activeElement?.className === 'dual-cache-frame'")
    graph.keyboard.press("f")
    kinds_are(graph, BALANCED[:3] + "F" + BALANCED[4:])


def test_saving_and_reloading_keeps_the_list(graph):
    graph.mouse.click(*bar(graph, 4))
    changed = BALANCED[:4] + "F" + BALANCED[5:]
    kinds_are(graph, changed)
    saved = graph.evaluate("() => JSON.parse(JSON.stringify(window.app.graph.serialize()))")
    assert saved["nodes"][0]["widgets_values"] == ["balanced", 30, 5, "conservative, aggressive", 0.1, 3, 1, 0, 1, changed]
    empty = {"version": 0.4, "last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "groups": [], "config": {}, "extra": {}}
    graph.evaluate("async workflow => { await window.app.loadGraphData(workflow); }", empty)
    wait(graph, "() => !document.querySelector('.dual-cache')")
    graph.evaluate("async workflow => { await window.app.loadGraphData(workflow); }", saved)
    wait(graph, "() => window.plotOf('CacheScheduleBuilder')?.listed")
    kinds_are(graph, changed)
    inputs = graph.evaluate("async () => Object.values((await window.app.graphToPrompt()).output)[0].inputs")
    assert inputs["explicit"] == changed and "schedule_plot" not in inputs


def test_samplers_follow_a_connected_builder(page, screens):
    open_workflow(page, OURS)
    assert len(state(page, "DualCache")["bars"]) == 30 and not state(page, "DualCache")["editable"]
    page.evaluate("""() => {
      const [builder, sampler, patch] = window.app.graph._nodes;
      for (const node of [sampler, patch]) builder.connect(0, node, node.inputs.findIndex((input) => input.name === "schedule"));
      const steps = builder.widgets.find((w) => w.name === "steps");
      steps.value = 12;
      steps.callback(12, window.app.canvas, builder);
    }""")
    wait(page, "() => window.plotOf('DualCache').bars.length === 12")
    assert len(state(page, "DualCacheSampler")["bars"]) == 30
    page.mouse.click(*bar(page, 4))
    wait(page, "() => window.plotOf('DualCache').plan.kinds[4] === 'F' && window.plotOf('DualCacheSampler').plan.generator === null")
    values = "JSON.stringify(app.graph.serialize().nodes.map((n) => n.widgets_values).sort())"  # a click brings a node to the front
    before = node(page, values)
    page.mouse.click(*bar(page, 3, "DualCacheSampler"))  # describes only
    assert state(page, "DualCacheSampler")["selected"] == 3
    assert node(page, values) == before
    page.screenshot(path=screens / f"comfy-{page.renderer}-connected.png")


def test_a_run_fills_in_and_outlives_an_undo(page, screens):
    open_workflow(page, ["DualCacheSampler"])
    number = node(page, "node.id", "DualCacheSampler")
    page.evaluate(SEND, [number, BALANCED, 11, False])
    wait(page, "() => window.plotOf('DualCacheSampler').mode === 'running'")
    now = state(page, "DualCacheSampler")
    assert now["done"] == 11 and now["sigmas"] == "measured" and now["bars"][4]["changed"]
    page.screenshot(path=screens / f"comfy-{page.renderer}-running.png")
    page.evaluate(SEND, [number, BALANCED, 0, True])
    wait(page, "() => window.plotOf('DualCacheSampler').mode === 'ran'")
    page.mouse.move(*bar(page, 4, "DualCacheSampler"))
    wait(page, "() => window.plotOf('DualCacheSampler').detail.startsWith('Step 5 of 30, full in place of aggressive')")
    assert "A sentence of the report." in page.locator(".dual-cache-warnings").inner_text()
    page.screenshot(path=screens / f"comfy-{page.renderer}-ran.png")
    press_more(page, "steps") if page.renderer == "nodes2" else _set_steps(page, 31)
    wait(page, "() => window.plotOf('DualCacheSampler').mode === 'plan'")
    page.locator(".dual-cache-frame").focus()
    page.keyboard.press("Control+z")
    wait(page, "() => window.plotOf('DualCacheSampler')?.mode === 'ran'")


def _set_steps(page, value):
    page.evaluate("""value => {
      const { app } = window, node = app.graph._nodes[0], steps = node.widgets.find((w) => w.name === "steps");
      app.canvas.emitBeforeChange();
      steps.setValue(value, { e: {}, node, canvas: app.canvas });
      app.canvas.emitAfterChange();
    }""", value)


def test_wheel_and_middle_button_move_the_graph(graph):
    scale = node(graph, "app.canvas.ds.scale")
    graph.mouse.move(*bar(graph, 10))
    graph.mouse.wheel(0, -240)
    wait(graph, "scale => window.app.canvas.ds.scale > scale", scale)
    wait(graph, """() => {
      const canvas = document.querySelector(".dual-cache canvas");
      return canvas.width >= canvas.getBoundingClientRect().width - 2;
    }""")
    left = node(graph, "app.canvas.ds.offset[0]")
    x, y = bar(graph, 10)
    graph.mouse.move(x, y)
    graph.mouse.down(button="middle")
    graph.mouse.move(x + 60, y + 40, steps=4)
    graph.mouse.up(button="middle")
    wait(graph, "left => window.app.canvas.ds.offset[0] > left + 20", left)
    graph.mouse.click(*bar(graph, 4))  # a zoomed bar is hit where it is seen
    kinds_are(graph, BALANCED[:4] + "F" + BALANCED[5:])


def test_a_light_palette_makes_a_light_plot(graph, screens):
    graph.evaluate("async () => { await window.app.extensionManager.setting.set('Comfy.ColorPalette', 'light'); }")
    try:
        wait(graph, "() => document.querySelector('.dual-cache').hasAttribute('data-light')")
        graph.screenshot(path=screens / f"comfy-{graph.renderer}-light.png")
    finally:
        graph.evaluate("async () => { await window.app.extensionManager.setting.set('Comfy.ColorPalette', 'dark'); }")
    wait(graph, "() => !document.querySelector('.dual-cache').hasAttribute('data-light')")


def test_a_removed_node_leaves_nothing(graph):
    number = node(graph, "node.id")
    graph.evaluate("() => window.app.graph.remove(window.app.graph._nodes[0])")
    wait(graph, "() => !document.querySelector('.dual-cache')")
    graph.evaluate(SEND, [number, BALANCED, 3, True])  # reports to a node that is gone are dropped
