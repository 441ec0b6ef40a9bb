"""What the tests in ComfyUI's front end share: opening graphs, reading plots, pressing what a user
presses."""

from __future__ import annotations

import json

FOLDER = "dual_cache_under_test"  # in custom_nodes; part of the addresses of our scripts
OURS = ("CacheScheduleBuilder", "DualCacheSampler", "DualCache")
EDGE = 8  # pixels beside the bars
PATIENCE = 20_000  # milliseconds

# The state of the plot that shows a node of some kind.
PLOT_OF = """window.plotOf = (kind) => [...document.querySelectorAll(".dual-cache")].filter((element) => element.getClientRects().length)
  .map((element) => element.__dualCache).find((state) => state?.node === kind);"""

# What a front end without a run would receive over the socket.
SEND = """([id, kinds, count, done, prompt_id]) => {
  const records = [...kinds].map((planned, step) => {
    const actual = step === 4 ? "F" : planned;
    return {
      step, phase: 0, sigma: 10 * (1 - step / kinds.length) ** 2, planned, actual, reason: actual === planned ? "planned" : "no_snapshot",
      calls: 1, full_calls: Number(actual === "F"), milliseconds: actual === "F" ? 100 : 5, ratio: 0.1, cached_bytes: 1024,
      forecast_error: done && actual === "F" && step > 3 ? 0.01 * step : null,
    };
  });
  const { api } = window.comfyAPI.api, send = (type, detail) => api.dispatchEvent(new CustomEvent(type, { detail }));
  for (const record of records.slice(0, count)) send("dual_cache.step", { node: String(id), prompt_id, steps: kinds.length, record });
  if (done === "stopped") records.splice(count);
  const report = { steps: kinds.length, records, wall_seconds: 2.5, totals: { peak_bytes: 1024 }, messages: ["A sentence of the report."] };
  if (done) send("dual_cache.report", { node: String(id), prompt_id, report, text: "" });
}"""

# What a front end without a run would receive of Cache Report.
REPORTED = """([id, text, prompt_id]) => window.comfyAPI.api.api.dispatchEvent(new CustomEvent("executed", {
  detail: { node: String(id), display_node: String(id), prompt_id, output: { text: [text], dual_cache_report: ["{}"] } },
}))"""


def load(page, workflow, name=None):
    """Opens a workflow as from a file, without the questions about missing files, and shows its outermost
    graph."""
    page.evaluate(
        """async ([workflow, name]) => {
      const { app } = window, frame = () => new Promise((done) => requestAnimationFrame(done));
      // Left open, a subgraph stands in the page's address, by which the front end would go back to its workflow.
      app.canvas.setGraph(app.rootGraph ?? app.graph);
      for (let i = 0; i < 10; i++) await frame();
      await app.loadGraphData({ ...workflow, id: crypto.randomUUID() }, true, true, name);
      app.canvas.setGraph(app.rootGraph ?? app.graph);
    }""",
        [workflow, name],
    )
    dialogs = page.get_by_role("dialog").filter(visible=True)
    while dialogs.count():
        page.keyboard.press("Escape")
        dialogs.last.wait_for(state="hidden")


def open_workflow(page, types):
    """Opens a workflow that holds one node of each type."""
    load(
        page,
        page.evaluate(
            """types => {
      const { app, LiteGraph } = window;
      app.graph.clear();
      types.reduce((x, type) => {
        const node = LiteGraph.createNode(type);
        node.pos = [x, 0];
        app.graph.add(node);
        return x + node.size[0] + 40;
      }, 0);
      return JSON.parse(JSON.stringify(app.graph.serialize()));
    }""",
            list(types),
        ),
    )
    page.evaluate("""() => {
      const { canvas } = window.app;
      Object.assign(canvas.ds, { scale: 1, offset: [120, 120] });
      canvas.setDirty(true, true);
    }""")
    for kind in set(types) - {"CacheReport"}:
        wait(page, "kind => window.plotOf(kind)?.draws > 0", kind)


def template(page, name):
    """One of workflows/*.json, as the template browser fetches it."""
    return page.evaluate(
        """async ([folder, name]) =>
      (await fetch(`/api/workflow_templates/${encodeURIComponent(folder)}/${name}.json`)).json()""",
        [FOLDER, name],
    )


def press_run(page):
    page.get_by_role("button", name="Run", exact=True).first.click()


def queue(page, prompt):
    """Presses Run; the server is left out, and the front end is told that the prompt has this id."""
    answer = {"prompt_id": prompt, "number": 1, "node_errors": {}}
    page.route(
        "**/api/prompt",
        lambda route: route.fulfill(json=answer) if route.request.method == "POST" else route.fallback(),
    )
    with page.expect_response("**/api/prompt"):
        press_run(page)
    page.unroute("**/api/prompt")


def undo_a_change(page, kind):
    """Gives a node another title and takes that back, which makes all nodes anew."""
    page.evaluate(
        """async kind => {
      const { app } = window, { changeTracker } = app.extensionManager.workflow.activeWorkflow;
      const capture = () => (changeTracker.captureCanvasState ?? changeTracker.checkState).call(changeTracker);
      const find = () => app.canvas.graph._nodes.find((node) => node.type === kind);
      capture();
      const before = find();
      before.title = "Another";
      capture();
      await changeTracker.undo();
      if (find() === before || find().title === "Another") throw new Error("nothing was undone");
    }""",
        kind,
    )


def wait(page, condition, argument=None, timeout=PATIENCE):
    page.wait_for_function(condition, arg=argument, timeout=timeout)


def state(page, kind=OURS[0]):
    return page.evaluate("kind => JSON.parse(JSON.stringify(window.plotOf(kind)))", kind)


def node(page, expression, kind=OURS[0]):
    """The value of a JavaScript expression about `node`, `widget(name)` and `app`, in the graph that is
    shown."""
    return page.evaluate(
        f"""kind => {{
      const {{ app }} = window, node = app.canvas.graph._nodes.find((n) => n.type === kind);
      const widget = (name) => node.widgets.find((w) => w.name === name);
      return {expression};
    }}""",
        kind,
    )


def set_widget(page, name, value, kind=OURS[0]):
    """Sets a widget of a node in the graph that is shown, and tells those who listen."""
    node(
        page,
        f"(widget('{name}').value = {json.dumps(value)}, "
        f"widget('{name}').callback(widget('{name}').value, app.canvas, node), null)",
        kind,
    )


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
    frame = page.locator(".dual-cache-frame").nth(
        page.evaluate(
            "kind => [...document.querySelectorAll('.dual-cache')].findIndex((e) => e.__dualCache.node "
            "=== kind)",
            kind,
        )
    )
    box, inner = frame.bounding_box(), frame.evaluate("element => element.clientWidth")
    side, steps = EDGE * box["width"] / inner, len(state(page, kind)["bars"])
    return box["x"] + side + (box["width"] - 2 * side) * (index + 0.5) / steps, box["y"] + box["height"] / 2
