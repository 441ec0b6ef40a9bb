"""Workflows in ComfyUI's own front end: all of them open, the embedded one runs, and nodes inside a subgraph
show what others show."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

import pytest

from tests.browser.front_end import (
    OURS,
    REPORTED,
    SEND,
    bar,
    kinds_are,
    load,
    node,
    open_workflow,
    press_run,
    queue,
    set_widget,
    state,
    template,
    undo_a_change,
    wait,
)

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "workflows").glob("*.json"))
}
BLUEPRINT = json.loads((ROOT / "subgraphs" / "Text to Image (Dual Cache).json").read_text(encoding="utf-8"))
SAMPLER = "DualCacheSampler"
STEPS, KINDS = 12, "FFFAAFAAFAAF"
RUN = 120_000  # milliseconds to wait at most
REPORT = "pre[aria-label='Cache report']"
seeds = count(1)  # ComfyUI does not run again what it has just run


def run_to_the_end(page):
    """Presses Run and waits for the end and for the sampler's plot to show it; gives the plot's state."""
    page.evaluate("""() => {
      window.ended = "";
      const { api } = window.comfyAPI.api, end = ({ type }) => { window.ended = type; };
      for (const type of ["execution_success", "execution_error"]) api.addEventListener(type, end, { once: true });
    }""")
    press_run(page)
    wait(page, "() => window.ended", timeout=RUN)
    assert page.evaluate("() => window.ended") == "execution_success"
    wait(page, "kind => window.plotOf(kind)?.mode === 'ran'", SAMPLER)
    return state(page, SAMPLER)


def check_run(now, kinds=KINDS):
    """Every bar is measured, and the run went as planned."""
    assert "".join(bar["actual"] for bar in now["bars"]) == kinds and now["done"] == len(kinds)
    assert all(bar["ran"] and not bar["changed"] and bar["milliseconds"] > 0 for bar in now["bars"])
    assert now["sigmas"] == "measured" and now["summary"][0].startswith(f"Ran {len(kinds)} steps")


def set_up_run(page):
    set_widget(page, "seed", next(seeds), SAMPLER)
    set_widget(page, "steps", STEPS, SAMPLER)
    kinds_are(page, KINDS, SAMPLER)
    assert state(page, SAMPLER)["mode"] == "plan"


def enter(page):
    """Opens the subgraph of the graph that is shown, and waits until the view has come to rest there."""
    page.evaluate("""async () => {
      const { canvas } = window.app, around = canvas.graph._nodes.find((node) => node.subgraph);
      const frame = () => new Promise((done) => requestAnimationFrame(done));
      canvas.openSubgraph(around.subgraph, around);
      for (let still = 0, seen = ""; still < 10; still++) {
        await frame();
        const now = `${canvas.ds.scale} ${canvas.ds.offset}`;
        if (now !== seen) [still, seen] = [0, now];
      }
    }""")


def leave(page, inside=SAMPLER):
    page.evaluate("() => { const { app } = window; app.canvas.setGraph(app.rootGraph ?? app.graph); }")
    wait(page, "kind => !window.plotOf(kind)", inside)


def wrap(page, *kinds):
    """Puts the nodes of these types into a subgraph."""
    page.evaluate(
        """kinds => {
      const { graph } = window.app.canvas;
      graph.convertToSubgraph(new Set(graph._nodes.filter((node) => kinds.includes(node.type))));
    }""",
        list(kinds),
    )


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_opens(page, name):
    load(page, template(page, name), name)
    for kind in {row["type"] for row in WORKFLOWS[name]["nodes"]} & set(OURS):
        wait(page, "kind => window.plotOf(kind)?.draws > 0", kind)
        assert state(page, kind)["error"] is None
    assert page.errors == []


def test_the_embedded_workflow_runs(page, screens):
    load(page, template(page, "embedded"))
    wait(page, "kind => window.plotOf(kind)?.draws > 0", SAMPLER)
    assert len(state(page, SAMPLER)["bars"]) == 30
    set_up_run(page)
    report = page.locator(REPORT)
    assert "after a run" in report.inner_text()
    check_run(run_to_the_end(page))
    wait(
        page,
        "selector => document.querySelector(selector).textContent.startsWith('balanced on FLUX: 12 steps')",
        REPORT,
    )
    page.screenshot(path=screens / f"comfy-{page.renderer}-embedded.png")


def report_starts(page, text):
    """The report that can be seen begins so."""
    wait(
        page,
        """([selector, text]) => [...document.querySelectorAll(selector)].some((element) =>
      element.getClientRects().length && element.textContent.startsWith(text))""",
        [REPORT, text],
    )


def test_a_report_outlives_an_undo_and_follows_the_next_run(page):
    load(page, template(page, "embedded"))
    wait(page, "kind => window.plotOf(kind)?.draws > 0", SAMPLER)
    set_up_run(page)
    run_to_the_end(page)
    report_starts(page, f"balanced on FLUX: {STEPS} steps")
    undo_a_change(page, SAMPLER)
    report_starts(page, f"balanced on FLUX: {STEPS} steps")
    wait(page, "kind => window.plotOf(kind)?.mode === 'ran'", SAMPLER)
    set_widget(page, "steps", 4, SAMPLER)
    run_to_the_end(page)
    report_starts(page, "balanced on FLUX: 4 steps")


def test_a_report_of_any_length_keeps_its_node_as_it_is(page):
    open_workflow(page, ["DualCacheSampler", "CacheReport"])
    report_starts(page, "The report appears here after a run.")
    size = (
        "JSON.stringify([[...node.size], document.querySelector(\"pre[aria-label='Cache "
        "report']\").offsetHeight])"
    )
    before = node(page, size, "CacheReport")
    page.evaluate(REPORTED, [node(page, "node.id", "CacheReport"), "\n".join(["A line of the report"] * 200)])
    report_starts(page, "A line of the report")
    page.wait_for_timeout(300)
    assert node(page, size, "CacheReport") == before


def test_the_wheel_over_a_report_moves_the_graph_until_it_is_being_read(page):
    open_workflow(page, ["DualCacheSampler", "CacheReport"])
    page.evaluate(REPORTED, [node(page, "node.id", "CacheReport"), "\n".join(["A line of the report"] * 200)])
    report_starts(page, "A line of the report")
    report, scale = page.locator(REPORT), node(page, "app.canvas.ds.scale", "CacheReport")
    box = report.bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.wheel(0, 120)
    wait(page, "scale => window.app.canvas.ds.scale < scale", scale)
    assert report.evaluate("element => element.scrollTop") == 0
    report.focus()
    scale = node(page, "app.canvas.ds.scale", "CacheReport")
    box = report.bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.wheel(0, 120)
    wait(page, "selector => document.querySelector(selector).scrollTop > 0", REPORT)
    assert node(page, "app.canvas.ds.scale", "CacheReport") == scale


def test_plots_that_are_left_behind_in_subgraphs_are_let_go(page):
    page.evaluate("""() => {
      window.watching = new Set();
      const { prototype } = ResizeObserver, { observe, disconnect } = prototype;
      prototype.observe = function (...given) {
        if (given[0].className === "dual-cache-frame") window.watching.add(this);
        return observe.apply(this, given);
      };
      prototype.disconnect = function () {
        window.watching.delete(this);
        return disconnect.call(this);
      };
    }""")
    load(page, template(page, "embedded"))
    wrap(page, SAMPLER)
    before = page.evaluate("() => window.watching.size")
    for _ in range(3):
        undo_a_change(page, "CacheReport")
    assert page.evaluate("() => window.watching.size") <= before
    enter(page)
    wait(page, "kind => window.plotOf(kind)?.draws > 0", SAMPLER)


def test_a_run_goes_with_the_settings_that_it_was_queued_with(page):
    load(page, template(page, "embedded"))
    wait(page, "kind => window.plotOf(kind)?.draws > 0", SAMPLER)
    kinds, number = state(page, SAMPLER)["plan"]["kinds"], node(page, "node.id", SAMPLER)
    queue(page, "queued before")
    set_widget(page, "preset", "duca", SAMPLER)
    page.evaluate(SEND, [number, kinds, len(kinds), True, "queued before"])
    wait(page, "kind => window.plotOf(kind).warnings.includes('The last run used another plan.')", SAMPLER)
    assert state(page, SAMPLER)["mode"] == "plan"
    set_widget(page, "preset", "balanced", SAMPLER)
    wait(page, "kind => window.plotOf(kind).mode === 'ran'", SAMPLER)


def test_a_run_belongs_to_the_workflow_that_it_was_queued_from(page):
    workflow = template(page, "embedded")
    open_it = "async ([workflow, name]) => { await window.app.loadGraphData(workflow, true, true, name); }"
    page.evaluate(open_it, [workflow, "one"])
    wait(page, "kind => window.plotOf(kind)?.draws > 0", SAMPLER)
    kinds, number = state(page, SAMPLER)["plan"]["kinds"], node(page, "node.id", SAMPLER)
    reporter = node(page, "node.id", "CacheReport")
    name = page.evaluate("() => window.app.extensionManager.workflow.activeWorkflow.filename")
    queue(page, "first tab")
    page.evaluate(SEND, [number, kinds, 3, False, "first tab"])
    wait(page, "kind => window.plotOf(kind).mode === 'running'", SAMPLER)
    page.evaluate(open_it, [workflow, "other"])
    wait(page, "kind => window.plotOf(kind)?.mode === 'plan'", SAMPLER)
    assert page.evaluate("() => window.app.extensionManager.workflow.activeWorkflow.filename") != name
    page.evaluate(SEND, [number, kinds, len(kinds), True, "first tab"])
    page.evaluate(REPORTED, [reporter, "Of the first tab.", "first tab"])
    page.wait_for_timeout(200)
    assert state(page, SAMPLER)["mode"] == "plan" and state(page, SAMPLER)["bars"][0]["ran"] is False
    report_starts(page, "The report appears here after a run.")
    page.locator(".workflow-tabs").get_by_text(name, exact=True).filter(visible=True).first.click()
    page.mouse.move(750, 600)  # away, or the front end shows a preview of the tab
    wait(page, "kind => window.plotOf(kind)?.mode === 'ran'", SAMPLER)
    report_starts(page, "Of the first tab.")
    page.locator(".workflow-popover-fade").first.wait_for(state="hidden")


def test_a_run_that_is_stopped_says_so(page, screens):
    open_workflow(page, [SAMPLER])
    kinds = state(page, SAMPLER)["plan"]["kinds"]
    page.evaluate(SEND, [node(page, "node.id", SAMPLER), kinds, 7, "stopped"])
    wait(page, "kind => window.plotOf(kind).mode === 'ran'", SAMPLER)
    assert state(page, SAMPLER)["summary"][0].startswith("Stopped after 7 of 30 steps.")
    page.screenshot(path=screens / f"comfy-{page.renderer}-stopped.png")


def test_a_run_reaches_nodes_in_a_subgraph(page, screens):
    load(page, template(page, "embedded"))
    wrap(page, SAMPLER, "CacheReport")
    wait(page, "kind => !window.plotOf(kind)", SAMPLER)
    enter(page)
    wait(page, "kind => window.plotOf(kind)?.draws > 0", SAMPLER)
    set_up_run(page)
    check_run(run_to_the_end(page))
    wait(
        page,
        "selector => document.querySelector(selector).textContent.startsWith('balanced on FLUX: 12 steps')",
        REPORT,
    )
    page.screenshot(path=screens / f"comfy-{page.renderer}-subgraph.png")
    leave(page)
    enter(page)
    wait(page, "kind => window.plotOf(kind)?.mode === 'ran'", SAMPLER)


def test_a_plot_in_a_subgraph_follows_what_the_subgraph_is_given(page):
    load(page, BLUEPRINT)
    enter(page)
    wait(page, "kind => window.plotOf(kind)?.draws > 0", SAMPLER)
    warnings = state(page, SAMPLER)["warnings"]
    assert len(state(page, SAMPLER)["bars"]) == 30
    # front ends from 1.49 on do not tell inner nodes what the subgraph is given, and the plot says so
    if warnings:
        assert warnings[0] == "Another node gives the value of steps; the plot may differ from the run."
        return
    leave(page)
    page.evaluate("""() => {
      const { app, LiteGraph } = window, around = app.graph._nodes.find((node) => node.subgraph);
      const steps = around.widgets.find((widget) => widget.name === "steps"), builder = LiteGraph.createNode("CacheScheduleBuilder");
      steps.value = 12;
      steps.callback?.(12, app.canvas, around);
      builder.pos = [-600, 0];
      app.graph.add(builder);
      builder.connect(0, around, around.inputs.findIndex((input) => input.name === "schedule"));
    }""")
    set_widget(page, "explicit", "FFAAFFFFFFFF")
    set_widget(page, "steps", 12)
    enter(page)
    kinds_are(page, "FFAAFFFFFFFF", SAMPLER)
    assert state(page, SAMPLER)["warnings"] == []


def test_a_plan_from_inside_a_subgraph_shows_outside(page, screens):
    open_workflow(page, OURS[:2])
    page.evaluate("""() => {
      const [builder, sampler] = window.app.graph._nodes;
      builder.connect(0, sampler, sampler.inputs.findIndex((input) => input.name === "schedule"));
    }""")
    set_widget(page, "explicit", "FFAF")
    wrap(page, OURS[0])
    wait(page, "kind => window.plotOf(kind)?.plan?.generator === null", SAMPLER)
    before = state(page, SAMPLER)["plan"]["kinds"]
    assert state(page, SAMPLER)["warnings"] == ["The list has 4 letters; it is stretched to 30 steps."]
    enter(page)
    wait(page, "kind => window.plotOf(kind)?.draws > 0", OURS[0])
    page.mouse.click(*bar(page, 1))
    wait(page, "kind => window.plotOf(kind).plan.kinds[1] === 'C'", OURS[0])
    page.screenshot(path=screens / f"comfy-{page.renderer}-builder-inside.png")
    after = node(page, "widget('explicit').value")
    leave(page, OURS[0])
    wait(page, "kind => window.plotOf(kind)?.draws > 0", SAMPLER)
    kinds_are(page, after, SAMPLER)
    assert after != before


def test_a_solved_plan_shows_with_the_error_to_expect(page, screens):
    open_workflow(page, ("PlanCache", "DualCache"))
    assert state(page, "PlanCache")["warnings"] == [
        "The plan is solved when this node runs, and then shows here."
    ]
    page.evaluate("""() => {
      const { app, LiteGraph } = window, [plan, cache] = app.graph._nodes;
      const add = (type) => { const node = LiteGraph.createNode(type); app.graph.add(node); return node; };
      const profile = add("LoadCacheProfile"), show = add("PreviewAny");
      [profile.pos, show.pos] = [[0, -200], [900, -200]];
      profile.connect(0, plan, plan.inputs.findIndex((input) => input.name === "profile"));
      plan.connect(0, cache, cache.inputs.findIndex((input) => input.name === "schedule"));
      plan.connect(1, show, 0);
    }""")
    press_run(page)
    wait(page, "() => window.plotOf('PlanCache')?.plan?.kinds.length === 30", timeout=RUN)
    now = state(page, "PlanCache")
    assert now["plan"]["kinds"].count("F") == 10 and now["summary"][0].startswith(
        "30 steps: 10 full, 20 aggressive"
    )
    assert (
        all((bar["expected"] is None) == (bar["actual"] == "F") for bar in now["bars"])
        and now["sigmas"] == "measured"
    )
    assert (
        state(page, "DualCache")["plan"]["kinds"] == now["plan"]["kinds"]
        and state(page, "DualCache")["warnings"] == []
    )
    page.screenshot(path=screens / f"comfy-{page.renderer}-plan.png")
    set_widget(page, "speedup", 5.0, "PlanCache")
    wait(
        page,
        "() => window.plotOf('PlanCache').warnings.some((line) => line.startsWith('Settings have changed'))",
    )
