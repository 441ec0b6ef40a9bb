"""The schedule plot in ComfyUI's own front end, in both of its renderers: COMFYUI_UNDER_TEST names the
ComfyUI folder."""

from __future__ import annotations

import json
import urllib.request

import pytest

from tests.browser.front_end import (
    FOLDER,
    OURS,
    SEND,
    bar,
    kinds_are,
    node,
    open_workflow,
    press_more,
    state,
    wait,
)

BALANCED = "FFF" + "AAF" * 9


@pytest.fixture
def graph(page):
    """A new workflow with a Cache Schedule Builder; returns the page."""
    open_workflow(page, OURS[:1])
    return page


def history(page):
    return page.evaluate(
        "() => window.app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
    )


def test_nodes_are_found_and_scripts_are_served(page, server):
    with urllib.request.urlopen(f"{server}/object_info", timeout=60) as answer:
        assert set(OURS) < set(json.load(answer))
    with urllib.request.urlopen(f"{server}/extensions", timeout=60) as answer:
        assert f"/extensions/{FOLDER}/widget.js" in json.load(answer)


def test_scripts_that_are_served_twice_act_once(page):
    """ComfyUI may serve the folder under two names."""
    page.evaluate(
        """async folder => {
      for (const name of ["widget", "report", "compare", "restore"]) await import(`/extensions/${folder}/${name}.js?again`);
    }""",
        FOLDER,
    )
    names = page.evaluate("() => window.app.extensions.map((extension) => extension.name)")
    ours = sorted(name for name in names if name.startswith("dual_cache."))
    assert ours == [
        "dual_cache.compare",
        "dual_cache.report",
        "dual_cache.restore",
        "dual_cache.schedule_plot",
    ]


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
    assert saved["nodes"][0]["widgets_values"] == [
        "balanced",
        30,
        5,
        "conservative, aggressive",
        0.1,
        3,
        1,
        0,
        1,
        changed,
    ]
    empty = {
        "version": 0.4,
        "last_node_id": 0,
        "last_link_id": 0,
        "nodes": [],
        "links": [],
        "groups": [],
        "config": {},
        "extra": {},
    }
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
    wait(
        page,
        "() => window.plotOf('DualCache').plan.kinds[4] === 'F' && "
        "window.plotOf('DualCacheSampler').plan.generator === null",
    )
    # a click brings a node to the front
    values = "JSON.stringify(app.graph.serialize().nodes.map((n) => n.widgets_values).sort())"
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
    wait(
        page,
        "() => window.plotOf('DualCacheSampler').detail.startsWith('Step 5 of 30, full in place of "
        "aggressive')",
    )
    assert "A sentence of the report." in page.locator(".dual-cache-warnings").inner_text()
    page.screenshot(path=screens / f"comfy-{page.renderer}-ran.png")
    press_more(page, "steps") if page.renderer == "nodes2" else _set_steps(page, 31)
    wait(page, "() => window.plotOf('DualCacheSampler').mode === 'plan'")
    page.locator(".dual-cache-frame").focus()
    page.keyboard.press("Control+z")
    wait(page, "() => window.plotOf('DualCacheSampler')?.mode === 'ran'")


def test_a_builder_shows_the_run_that_it_planned_and_can_still_be_edited(page, screens):
    open_workflow(page, OURS[:2])
    page.evaluate("""() => {
      const [builder, sampler] = window.app.graph._nodes;
      builder.connect(0, sampler, sampler.inputs.findIndex((input) => input.name === "schedule"));
    }""")
    page.evaluate(SEND, [node(page, "node.id", "DualCacheSampler"), BALANCED, 30, True])
    wait(page, "() => window.plotOf('CacheScheduleBuilder').mode === 'ran'")
    now = state(page)
    assert (
        now["editable"] and now["bars"][4]["changed"] and all(bar["milliseconds"] > 0 for bar in now["bars"])
    )
    page.screenshot(path=screens / f"comfy-{page.renderer}-builder-ran.png")
    page.mouse.click(*bar(page, 6))
    kinds_are(page, BALANCED[:6] + "F" + BALANCED[7:])
    assert state(page)["mode"] == "plan"
    wait(page, "() => window.plotOf('DualCacheSampler').warnings.includes('The last run used another plan.')")


def _set_steps(page, value):
    page.evaluate(
        """value => {
      const { app } = window, node = app.graph._nodes[0], steps = node.widgets.find((w) => w.name === "steps");
      app.canvas.emitBeforeChange();
      steps.setValue(value, { e: {}, node, canvas: app.canvas });
      app.canvas.emitAfterChange();
    }""",
        value,
    )


def test_wheel_and_middle_button_move_the_graph(graph):
    scale = node(graph, "app.canvas.ds.scale")
    graph.mouse.move(*bar(graph, 10))
    graph.mouse.wheel(0, -240)
    wait(graph, "scale => window.app.canvas.ds.scale > scale", scale)
    wait(
        graph,
        """() => {
      const canvas = document.querySelector(".dual-cache canvas");
      return canvas.width >= canvas.getBoundingClientRect().width - 2;
    }""",
    )
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
    graph.evaluate(
        "async () => { await window.app.extensionManager.setting.set('Comfy.ColorPalette', 'light'); }"
    )
    try:
        wait(graph, "() => document.querySelector('.dual-cache').hasAttribute('data-light')")
        graph.screenshot(path=screens / f"comfy-{graph.renderer}-light.png")
    finally:
        graph.evaluate(
            "async () => { await window.app.extensionManager.setting.set('Comfy.ColorPalette', 'dark'); }"
        )
    wait(graph, "() => !document.querySelector('.dual-cache').hasAttribute('data-light')")


def test_a_removed_node_leaves_nothing(graph):
    number = node(graph, "node.id")
    graph.evaluate("() => window.app.graph.remove(window.app.graph._nodes[0])")
    wait(graph, "() => !document.querySelector('.dual-cache')")
    graph.evaluate(SEND, [number, BALANCED, 3, True])  # reports to a node that is gone are dropped


@pytest.mark.parametrize(("language", "heading"), [("zh", "何时使用"), ("fr", "When to use it")])
def test_help_is_in_the_language_of_the_front_end(open_front_end, screens, language, heading):
    """In English where there is no page in that language; with its pictures."""
    page = open_front_end("classic", **{"Comfy.Locale": language})
    open_workflow(page, OURS[:1])
    node(
        page, "(app.canvas.ds.offset[1] = 250, app.canvas.setDirty(true, true))"
    )  # room for the toolbox above the node
    left, top = node(page, "[node.pos[0] + app.canvas.ds.offset[0], node.pos[1] + app.canvas.ds.offset[1]]")
    box = page.locator("#graph-canvas").bounding_box()
    page.mouse.click(box["x"] + left + 100, box["y"] + top - 15)  # its title
    page.get_by_test_id("info-button").click()
    text = page.locator(".node-help-content")
    text.get_by_role("heading", name=heading).wait_for()
    wait(
        page,
        "() => [...document.querySelectorAll('.node-help-content img')].some((image) => "
        "image.naturalWidth > 0)",
    )
    page.screenshot(path=screens / f"comfy-help-{language}.png")
    page.context.close()
    assert page.errors == [] or language == "fr"  # where the front end has looked in vain
