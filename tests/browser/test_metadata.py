"""A saved picture dropped into ComfyUI's own front end: the graph is back, with the run on its nodes."""

from __future__ import annotations

import base64
import urllib.request
from itertools import count
from urllib.parse import urlencode

from tests.browser.front_end import load, node, open_workflow, press_run, set_widget, state, template, wait

SAMPLER, REPORT, STEPS, RUN = "DualCacheSampler", "pre[aria-label='Cache report']", 12, 120_000
seeds = count(1001)  # ComfyUI does not run again what it has just run


def run_and_save(page, server):
    """Runs the embedded workflow; gives the saved picture's bytes and the text of the report on the node."""
    load(page, template(page, "embedded"))
    wait(page, "kind => window.plotOf(kind)?.draws > 0", SAMPLER)
    set_widget(page, "seed", next(seeds), SAMPLER)
    set_widget(page, "steps", STEPS, SAMPLER)
    page.evaluate("""() => {
      window.saved = null;
      const { api } = window.comfyAPI.api;
      api.addEventListener("executed", ({ detail }) => { window.saved ??= detail.output?.images?.find((i) => i.type === "output"); });
    }""")
    press_run(page)
    wait(page, "() => window.saved", timeout=RUN)
    wait(
        page,
        "() => document.querySelector(\"pre[aria-label='Cache report']\").textContent.includes('sigma')",
        timeout=RUN,
    )
    with urllib.request.urlopen(
        f"{server}/view?{urlencode(page.evaluate('() => window.saved'))}", timeout=60
    ) as answer:
        return answer.read(), page.locator(REPORT).inner_text()


def drop(page, content, name="picture.png"):
    """Drops a file onto the graph, as from the desktop."""
    page.evaluate(
        """([content, name]) => {
      const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0)), files = new DataTransfer();
      files.items.add(new File([bytes], name, { type: "image/png" }));
      const target = document.querySelector("#graph-canvas");
      for (const type of ["dragenter", "dragover", "drop"]) {
        target.dispatchEvent(new DragEvent(type, { dataTransfer: files, bubbles: true, cancelable: true, clientX: 700, clientY: 500 }));
      }
    }""",
        [base64.b64encode(content).decode(), name],
    )


def test_a_dropped_picture_brings_graph_and_run_back(page, server, screens):
    picture, report = run_and_save(page, server)
    before = state(page, SAMPLER)
    # The plot of the report is the sampler's own, without its settings.
    shown = state(page, "CacheReport")
    assert [bar["milliseconds"] for bar in shown["bars"]] == [
        bar["milliseconds"] for bar in before["bars"]
    ] and not shown["editable"]
    assert any(bar["indicator"] for bar in shown["bars"]) and any(bar["error"] for bar in shown["bars"])
    page.screenshot(path=screens / f"report-{page.renderer}.png")
    open_workflow(page, ["CacheScheduleBuilder"])
    assert page.locator(REPORT).count() == 0
    drop(page, picture)
    wait(page, "kind => window.plotOf(kind)?.mode === 'ran'", SAMPLER)
    wait(
        page,
        "() => document.querySelector(\"pre[aria-label='Cache report']\")?.textContent.startsWith("
        "'Read from the metadata of the picture.')",
    )
    page.wait_for_timeout(2500)  # ComfyUI names the workflow later
    after = state(page, SAMPLER)
    assert (
        after["mode"] == "ran"
        and after["plan"]["kinds"] == before["plan"]["kinds"]
        and len(after["bars"]) == STEPS
    )
    for old, new in zip(before["bars"], after["bars"], strict=True):
        assert (
            old["actual"] == new["actual"]
            and abs(old["milliseconds"] - new["milliseconds"]) <= 1e-3 * old["milliseconds"]
        )
    text = page.locator(REPORT).inner_text()
    assert report.splitlines()[1] in text and state(page, "CacheReport")["mode"] == "ran"
    page.screenshot(path=screens / f"dropped-{page.renderer}.png")
    # What is saved from here on does not hold the run any more.
    assert page.evaluate("() => window.app.graph.serialize().extra?.dual_cache === undefined")
    assert "dual_cache" not in page.evaluate(
        "async () => JSON.stringify((await window.app.graphToPrompt()).workflow.extra ?? {})"
    )
    assert node(page, "widget('steps').value", SAMPLER) == STEPS
    assert page.errors == []
