"""The schedule plot on a page of its own, without ComfyUI."""

from __future__ import annotations

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FRAME = "#{} .dual-cache-frame"
EDGE = 8  # pixels beside the bars


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(ROOT)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/tests/browser/page.html"
    server.shutdown()


@pytest.fixture(scope="module")
def open_page(chromium, address):
    """Opens the page with the given settings of a browser context; an error that a page logged fails the last
    test."""
    contexts, errors = [], []

    def opened(**settings):
        context = chromium.new_context(
            **{"viewport": {"width": 1180, "height": 1000}, "reduced_motion": "reduce", **settings}
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("body[data-ready]", state="attached")
        settle(page)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture(scope="module")
def shared(open_page):
    return open_page()


@pytest.fixture
def page(shared):
    """The page with its plots made anew."""
    shared.mouse.move(0, 0)
    shared.evaluate("() => window.rebuild()")
    settle(shared)
    return shared


def settle(page):
    """Waits until what was asked for is drawn."""
    page.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => "
        "requestAnimationFrame(done))))"
    )


def state(page, name):
    return page.evaluate(
        "name => JSON.parse(JSON.stringify(window.plots[name].panel.element.__dualCache))", name
    )


def pixels(page, name):
    return page.evaluate("name => window.plots[name].panel.canvas.toDataURL()", name)


def change(page, name, **values):
    page.evaluate("([name, values]) => window.plots[name].set(values)", [name, values])
    settle(page)


def bar(page, name, index):
    """The middle of a bar in page coordinates."""
    box = page.locator(FRAME.format(name)).bounding_box()
    steps = len(state(page, name)["bars"])
    scale = box["width"] / page.evaluate("name => window.plots[name].panel.frame.clientWidth", name)
    return box["x"] + scale * EDGE + (box["width"] - 2 * scale * EDGE) * (index + 0.5) / steps, box[
        "y"
    ] + box["height"] / 2


def test_it_redraws_as_values_change(page):
    before, seen = state(page, "builder"), pixels(page, "builder")
    change(page, "builder", interval=3)
    after = state(page, "builder")
    assert after["plan"]["kinds"] != before["plan"]["kinds"]
    assert after["speedup"] != before["speedup"]
    assert pixels(page, "builder") != seen
    change(page, "builder", interval=5)
    assert pixels(page, "builder") == seen


def test_a_click_changes_a_step_and_makes_the_list_explicit(page):
    kinds = state(page, "builder")["plan"]["kinds"]
    page.mouse.click(*bar(page, "builder", 5))
    settle(page)
    now = state(page, "builder")
    assert (kinds[5], now["plan"]["kinds"][5]) == ("C", "A")
    assert now["listed"] and now["plan"]["kinds"] == page.evaluate(
        "() => window.plots.builder.context.values.explicit"
    )
    page.get_by_role("button", name="Clear list").first.click()
    assert state(page, "builder")["plan"]["kinds"] == kinds


def test_a_drag_over_the_bars_changes_nothing(page):
    x, y = bar(page, "builder", 5)
    page.mouse.move(x - 3, y - 9)
    page.mouse.down()
    page.mouse.move(x, y)
    page.mouse.up()
    assert page.evaluate("() => window.plots.builder.edits") == []
    page.mouse.move(x, y + 2)
    page.mouse.down()
    page.mouse.move(x, y)
    page.mouse.up()
    assert len(page.evaluate("() => window.plots.builder.edits")) == 1


def test_touch_is_left_to_the_page(page):
    assert (
        page.locator(FRAME.format("builder")).evaluate("element => getComputedStyle(element).touchAction")
        == "auto"
    )


def test_the_legend_draws_what_the_plot_draws(page):
    """The mark of a step that did not run as planned stands on its base."""
    shape = page.evaluate(
        "() => getComputedStyle(document.querySelector('#ran .changed'), '::before').clipPath"
    )
    assert shape == "polygon(50% 0px, 100% 100%, 0px 100%)"


def test_the_first_step_stays_full(page):
    page.mouse.click(*bar(page, "builder", 0))
    page.locator(FRAME.format("builder")).focus()
    page.keyboard.press("Home")
    page.keyboard.press("a")
    assert page.evaluate("() => window.plots.builder.edits") == []
    assert "always full" in state(page, "builder")["detail"]


def test_the_keyboard_reaches_and_changes_every_step(page):
    page.locator(FRAME.format("builder")).focus()
    for key in (
        "ArrowRight",
        "ArrowRight",
        "ArrowRight",
        "Enter",
        "ArrowRight",
        "f",
        "End",
        " ",
        "ArrowLeft",
        "c",
    ):
        page.keyboard.press(key)
    now = state(page, "builder")
    assert page.evaluate("() => window.plots.builder.edits") == [
        [3, "A"],
        [4, "F"],
        [29, "C"],
    ]  # step 29 was conservative before
    assert (now["selected"], now["plan"]["kinds"][28]) == (28, "C")
    assert page.locator("#builder [aria-live]").inner_text() == now["detail"]


def test_keys_with_modifiers_are_left_to_the_page(page):
    page.locator(FRAME.format("builder")).focus()
    for key in ("Control+z", "Control+c", "Alt+a", "Tab"):
        page.keyboard.press(key)
    assert page.evaluate("() => window.plots.builder.edits") == []


def test_what_cannot_be_edited_only_describes(page):
    page.mouse.click(*bar(page, "planned", 4))
    page.keyboard.press("a")
    now = state(page, "planned")
    assert (
        now["selected"] == 4 and not now["listed"] and page.evaluate("() => window.plots.planned.edits") == []
    )
    assert now["detail"].startswith("Step 5 of 30, aggressive")


def test_pointing_explains_a_step(page):
    idle = state(page, "ran")["detail"]
    page.mouse.move(*bar(page, "ran", 10))
    settle(page)
    assert state(page, "ran")["detail"].startswith("Step 11 of 30, full in place of")
    assert page.locator("#ran .dual-cache-detail").inner_text() == state(page, "ran")["detail"]
    page.mouse.move(0, 0)
    settle(page)
    assert state(page, "ran")["detail"] == idle


def test_runs_are_shown(page):
    running, ran = state(page, "running"), state(page, "ran")
    assert (running["mode"], running["done"], ran["mode"], ran["done"]) == ("running", 13, "ran", 30)
    assert [i for i, b in enumerate(ran["bars"]) if b["changed"]] == [10]
    legend = page.locator("#ran .dual-cache-legend").inner_text()
    assert all(word in legend for word in ("not as planned", "forecast error", "time"))
    assert "forecast error" not in page.locator("#planned .dual-cache-legend").inner_text()


def test_settings_without_a_plan_say_so(page):
    assert "make no plan: letter 1 of explicit must be F" in page.locator("#wrong").inner_text()
    change(page, "wrong", explicit="")
    assert "make no plan" not in page.locator("#wrong").inner_text()


def test_it_speaks_to_screen_readers(page):
    frame = page.locator(FRAME.format("builder"))
    assert frame.get_attribute("role") == "application" and frame.get_attribute("aria-label").startswith(
        "Cache schedule. 30 steps"
    )
    assert page.locator("#builder canvas").get_attribute("role") == "img"
    text = page.locator(f"[id='{frame.get_attribute('aria-describedby')}']").inner_text()
    assert "Steps 1 to 3 full, 4 conservative, 5 aggressive" in text and "Enter changes the kind" in text


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_themes(page, screens, theme):
    page.evaluate(
        "theme => { document.body.className = theme; Object.values(window.plots).forEach((p) => "
        "p.panel.request()); }",
        theme,
    )
    settle(page)
    assert page.evaluate("() => window.plots.builder.panel.element.hasAttribute('data-light')") is (
        theme == "light"
    )
    text = page.evaluate("() => getComputedStyle(window.plots.builder.panel.element).color")
    assert text == {"dark": "rgb(221, 221, 221)", "light": "rgb(34, 34, 34)"}[theme]
    page.screenshot(path=screens / f"page-{theme}.png")


def test_the_theme_changes_what_is_drawn(page):
    seen = pixels(page, "builder")
    page.evaluate("() => { document.body.className = 'light'; window.plots.builder.panel.request(); }")
    settle(page)
    assert pixels(page, "builder") != seen


def test_it_is_sharp_at_any_zoom(page, open_page):
    for shown, density, zoom, scale in ((page, 1, 2, 2), (open_page(device_scale_factor=2), 2, 1, 2)):
        shown.evaluate(
            "zoom => { document.querySelector('#builder').style.transform = `scale(${zoom})`; }", zoom
        )
        shown.evaluate("() => window.plots.builder.panel.request()")
        settle(shown)
        width, drawn = shown.evaluate(
            "() => [window.plots.builder.panel.frame.clientWidth, window.plots.builder.panel.canvas.width]"
        )
        assert drawn == pytest.approx(scale * width, abs=1), (density, zoom)


def test_bars_are_hit_where_they_are_seen_when_zoomed(page):
    style = {"transform": "scale(2)", "transformOrigin": "0 0", "zIndex": 1}
    page.evaluate("style => { Object.assign(document.querySelector('#builder').style, style); }", style)
    page.mouse.click(*bar(page, "builder", 12))
    assert [index for index, _ in page.evaluate("() => window.plots.builder.edits")] == [12]


def test_many_changes_are_drawn_once(page):
    before = state(page, "builder")["draws"]
    page.evaluate("() => { for (let n = 1; n < 50; n++) window.plots.builder.set({ interval: n }); }")
    settle(page)
    assert (
        state(page, "builder")["draws"] - before <= 2
    )  # the second when the text has taken room from the canvas


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_motion(page, motion):
    page.emulate_media(reduced_motion=motion)
    before = state(page, "builder")["draws"]
    change(page, "builder", interval=2)
    page.wait_for_function("() => { const p = window.plots.builder.panel; return !p.frameRequest; }")
    draws = state(page, "builder")["draws"] - before
    page.emulate_media(reduced_motion="reduce")
    assert draws <= 2 if motion == "reduce" else draws > 4


def test_text_never_makes_it_taller(page):
    """So that nothing it says changes the size of a node, and with it the workflow."""
    page.evaluate(
        "() => { document.querySelector('#ran > div').style.flex = 'none'; "
        "window.plots.ran.panel.element.style.height = ''; }"
    )
    height = page.evaluate("() => window.plots.ran.panel.element.offsetHeight")
    page.evaluate(
        "() => { window.plots.ran.context.run.report.messages = Array(20).fill('A sentence of some "
        "length about this run.'); }"
    )
    change(page, "ran")
    assert page.evaluate("() => window.plots.ran.panel.element.offsetHeight") == height
    assert page.evaluate("() => window.plots.ran.panel.frame.clientHeight") >= 64


def test_nothing_is_left_after_disconnect(page):
    page.evaluate("() => window.plots.builder.panel.disconnect()")
    before = state(page, "builder")
    page.mouse.click(*bar(page, "builder", 5))
    page.evaluate(
        "() => { window.plots.builder.panel.request(); document.querySelector('#builder').style.width = "
        "'500px'; }"
    )
    page.wait_for_timeout(100)
    assert state(page, "builder") == before
    page.evaluate("() => window.plots.builder.panel.connect()")
    settle(page)
    page.mouse.click(*bar(page, "builder", 5))
    assert page.evaluate("() => window.plots.builder.edits.length") == 1
