"""Cache Compare in ComfyUI's own front end: what a user sees, drags, presses and hears, in both renderers."""

from __future__ import annotations

import json

from tests.browser.front_end import (
    load,
    node,
    open_workflow,
    press_run,
    set_widget,
    template,
    undo_a_change,
    wait,
)

PANEL, STAGE = ".dual-cache-compare", ".dual-cache-stage"
STEPS, RUN = 12, 120_000
STATE = "() => document.querySelector('.dual-cache-compare')?.__dualCacheCompare"


def state(page):
    return page.evaluate(STATE)


def test_the_template_runs_and_compares(page, screens):
    load(page, template(page, "compare_cached_uncached"))
    wait(page, f"() => document.querySelector('{PANEL}')?.getClientRects().length")
    assert "after a run" in page.locator(PANEL).inner_text() and state(page) is None
    set_widget(page, "steps", STEPS, "CacheCompare")
    set_widget(page, "fewer_from", "equal calls", "CacheCompare")
    press_run(page)
    wait(page, f"() => ({STATE})()?.ways?.length === 3", timeout=RUN)
    wait(
        page,
        f"() => [...document.querySelectorAll('{STAGE} img')].every((image) => image.naturalWidth === 256)",
    )
    assert page.locator(f"{PANEL} tbody tr").count() == 3
    cells = page.locator(f"{PANEL} tbody tr").nth(2).locator("td").all_inner_texts()
    assert cells[:3] == ["6", "6", "6"] and 10 < float(cells[4]) < 80
    assert "uncached: 12 steps" in page.locator(f"{PANEL} [aria-live]").inner_text()
    centre(page)
    page.screenshot(path=screens / f"compare-{page.renderer}.png")
    drag(page)
    keys(page)
    buttons(page, screens)
    undo_a_change(page, "CacheCompare")
    wait(page, f"() => ({STATE})()?.ways?.length === 3")
    page.evaluate(
        "() => window.app.graph.remove(window.app.graph._nodes.find((node) => node.type === 'CacheCompare'))"
    )
    wait(page, f"() => !document.querySelector('{PANEL}')")
    assert page.errors == []


def centre(page):
    """Brings the node into the middle of the view, at its own size."""
    page.evaluate("""() => {
      const { app } = window, node = app.graph._nodes.find((n) => n.type === "CacheCompare"), { canvas } = app.canvas;
      const scale = 0.8 * canvas.clientHeight / node.size[1];
      app.canvas.ds.scale = scale;
      const [x, y] = node.pos;
      app.canvas.ds.offset = [canvas.clientWidth / scale / 2 - x - node.size[0] / 2, 0.1 * canvas.clientHeight / scale - y];
      app.canvas.setDirty(true, true);
    }""")
    page.wait_for_timeout(300)


def drag(page):
    """The boundary follows the pointer, and the node stays where it is."""
    box, place = page.locator(STAGE).bounding_box(), node(page, "[...node.pos]", "CacheCompare")
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.5 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.25 * box["width"], y, steps=3)
    page.mouse.up()
    assert abs(state(page)["split"] - 25) < 1.5
    page.mouse.move(box["x"] + 0.75 * box["width"], y)  # not pressed
    assert abs(state(page)["split"] - 25) < 1.5
    assert node(page, "[...node.pos]", "CacheCompare") == place
    assert (
        page.locator(f"{STAGE} img")
        .first.evaluate("image => getComputedStyle(image).clipPath")
        .startswith("inset(0")
    )


def keys(page):
    stage, nodes = page.locator(STAGE), "app.graph._nodes.length"
    stage.focus()
    before = node(page, nodes, "CacheCompare")
    for key, place in (
        ("Home", 0),
        ("ArrowRight", 2),
        ("PageUp", 12),
        ("ArrowLeft", 10),
        ("End", 100),
        ("ArrowRight", 100),
    ):
        page.keyboard.press(key)
        assert state(page)["split"] == place, key
    assert stage.get_attribute("role") == "slider" and stage.get_attribute("aria-valuenow") == "100"
    assert (
        stage.get_attribute("aria-valuetext")
        == "100 per cent uncached on the left, 0 per cent cached on the right"
    )
    page.keyboard.press("Home")
    assert node(page, nodes, "CacheCompare") == before


def buttons(page, screens):
    before = page.locator(f"{STAGE} img").nth(1).get_attribute("src")
    page.get_by_role("button", name="fewer steps", exact=True).click()
    assert state(page)["way"] == 2 and page.locator(f"{STAGE} img").nth(1).get_attribute("src") != before
    page.get_by_role("button", name="difference", exact=True).click()
    assert (
        state(page)["difference"]
        and page.get_by_role("button", name="difference", exact=True).get_attribute("aria-pressed") == "true"
    )
    page.screenshot(path=screens / f"compare-{page.renderer}-difference.png")
    page.get_by_role("button", name="cached", exact=True).click()
    assert state(page)["way"] == 1 and state(page)["difference"]


def test_frames_touch_and_a_light_palette(page, screens):
    """What the node would get from a video whose pictures the server no longer has, and then from one that it
    has."""
    open_workflow(page, ["CacheReport"])
    page.evaluate("""() => {
      const { app, LiteGraph } = window, node = LiteGraph.createNode("CacheCompare");
      node.pos = [600, 0];
      app.graph.add(node);
    }""")
    number = node(page, "node.id", "CacheCompare")
    way = {"steps": 6, "calls": 6, "full_calls": 6, "seconds": [1], "median_seconds": 1.0}
    near = {"psnr": 31.5, "psnr_worst": 22.0, "ssim": 0.9, "worst": 3, "count": 9}
    lost = [{"filename": f"gone_{i}.png", "subfolder": "", "type": "temp"} for i in range(3)]
    data = {
        "video": True,
        "notes": ["A note."],
        "table": [["", "steps"], ["uncached", "6"], ["cached", "6"]],
        "ways": [
            {**way, "name": "uncached", "closeness": None},
            {**way, "name": "cached", "closeness": near},
        ],
        "shown": {
            "frames": [0, 3, 8],
            "count": 9,
            "first": 1,
            "scale": 0.25,
            "pictures": [lost, lost],
            "maps": [lost],
        },
    }
    page.evaluate(
        """([id, data]) => window.comfyAPI.api.api.dispatchEvent(new CustomEvent("executed", {
      detail: { node: String(id), display_node: String(id), output: { dual_cache_compare: [data] } } }))""",
        [number, json.dumps(data)],
    )
    wait(
        page, f"() => document.querySelector('{PANEL}').textContent.includes('no longer holds the pictures')"
    )
    errors = [error for error in page.errors if "gone_" not in error]
    page.errors.clear()
    assert errors == [] and state(page)["frame"] == 1
    slider = page.locator(f"{PANEL} input[type=range]")
    assert slider.get_attribute("aria-valuetext") == "frame 4 of 9"
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert state(page)["frame"] == 2 and slider.get_attribute("aria-valuetext") == "frame 9 of 9"
    assert page.locator(STAGE).evaluate("stage => getComputedStyle(stage).touchAction") == "none"
    page.evaluate(
        "async () => { await window.app.extensionManager.setting.set('Comfy.ColorPalette', 'light'); }"
    )
    try:
        wait(
            page,
            f"""() => {{
          const style = getComputedStyle(document.querySelector('{PANEL}'));
          const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).every((n) => n > 150);
          return light(style.backgroundColor) && !light(style.color);
        }}""",
        )
        page.screenshot(path=screens / f"compare-{page.renderer}-light.png")
    finally:
        page.evaluate(
            "async () => { await window.app.extensionManager.setting.set('Comfy.ColorPalette', 'dark'); }"
        )
    page.errors.clear()
