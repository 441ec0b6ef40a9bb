/** The extension that shows the schedule plot on our nodes: reads their widgets, writes the explicit list, listens to the events of a run. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { afterCall, onAppearanceChange, passThrough, whenVisible } from "./dom.js";
import { holderOf, scheduleOf, valuesOf } from "./graph.js";
import { BUILDER, FORECAST, PATCH, PLANNER, SAMPLER } from "./node_ids.js";
import { MIN_HEIGHT, SchedulePanel } from "./panel.js";
import { isReachable, keyOf, tabOf, trackPrompts } from "./prompts.js";
import { edited, planOf, viewOf } from "./view.js";

/**
 * @typedef {import("./view.js").Context} Context
 * @typedef {import("./view.js").Run} Run
 * @typedef {import("./view.js").Solved} Solved
 * @typedef {any} GraphNode a litegraph node, which has no types here
 */

const NODES = [BUILDER, SAMPLER, PATCH, FORECAST, PLANNER];
const MARGIN = 8, WIDTH = 360;
const RUNS_KEPT = 64;
const REMEMBERED = 2000; // milliseconds
const READ_ONLY_MODES = [2, 4]; // muted, bypassed

/** Panels of the nodes in the graph. @type {Map<GraphNode, SchedulePanel>} */
const panels = new Map();
/**
 * Last runs by node, so that they survive an undo, which makes all nodes anew. A Cache Schedule Builder shares the run of the node that it
 * feeds.
 * @type {Map<string, {run: Run, asked: string, number: number}>}
 */
const runs = new Map();
let started = 0;
/** Last solutions of Plan Cache nodes, with the settings they were solved for. @type {Map<string, {plan: Omit<Solved, "stale">, asked: string}>} */
const solved = new Map();

/**
 * What is known of a node when its prompt is queued; its settings and even the open workflow may change before it runs.
 * @typedef {object} Queued
 * @property {{key: string, context: Context}[]} owners of its run: the node and a builder that feeds it
 * @property {string} planner key of the Plan Cache node that solves the plan in the run, or empty
 * @property {string} key of the node
 * @property {string} asked its settings
 */

/** @param {GraphNode} node @returns {Queued | null} */
function queuedOf(node) {
  if (!NODES.includes(node.comfyClass)) return null;
  const feeding = scheduleOf(node), key = keyOf(app, node);
  const planner = feeding?.comfyClass === PLANNER && !READ_ONLY_MODES.includes(feeding.mode) ? keyOf(app, feeding) : "";
  const built = feeding?.comfyClass === BUILDER && !READ_ONLY_MODES.includes(feeding.mode);
  const owners = (built ? [node, feeding] : [node]).map((owner) => ({ key: keyOf(app, owner), context: { ...contextOf(owner), run: null } }));
  return { key, owners, planner, asked: JSON.stringify(valuesOf(node).values) };
}

/** @typedef {import("./prompts.js").Sender} Sender */
/** @type {(sender: Sender, then: (queued: Queued) => void) => void} */
let noted = () => {};

/** @param {GraphNode} node @returns {Solved | null} */
function solvedBy(node) {
  const found = solved.get(keyOf(app, node));
  return found ? { ...found.plan, stale: found.asked !== JSON.stringify(valuesOf(node).values) } : null;
}

/** @param {GraphNode} node @returns {Context} */
function contextOf(node) {
  const { values, foreign } = valuesOf(node);
  const origin = scheduleOf(node);
  let builder = null, plan = node.comfyClass === PLANNER ? solvedBy(node) : null;
  if (origin?.comfyClass === PLANNER) plan = READ_ONLY_MODES.includes(origin.mode) ? null : solvedBy(origin);
  if (plan) {
    // The plan is known; no other setting matters.
  } else if (origin?.comfyClass === BUILDER) {
    if (!READ_ONLY_MODES.includes(origin.mode)) {
      const upstream = valuesOf(origin);
      builder = upstream.values;
      foreign.push(...upstream.foreign);
    }
  } else if (origin !== undefined) {
    foreign.push("schedule");
  }
  const kept = runs.get(keyOf(app, node));
  return { node: node.comfyClass, values, builder, foreign, run: kept ? { ...kept.run, asked: kept.asked } : null, solved: plan };
}

/** The state that each panel shows, as JSON. @type {WeakMap<SchedulePanel, string>} */
const shown = new WeakMap();

/** @param {GraphNode} node @param {SchedulePanel} panel */
function refresh(node, panel) {
  const context = contextOf(node), kept = runs.get(keyOf(app, node));
  // Records are only added to a run, so their number is enough to compare.
  const made = JSON.stringify([{ ...context, run: kept && [kept.number, kept.asked, kept.run.records.length, !kept.run.report] }]);
  if (shown.get(panel) === made) return;
  shown.set(panel, made);
  panel.update(viewOf(context));
}

function refreshAll() {
  for (const [node, panel] of panels) {
    if (isReachable(app, node)) {
      refresh(node, panel);
    } else { // clearing a graph calls onRemoved of its own nodes, but not of the nodes in its subgraphs
      panels.delete(node);
      panel.disconnect();
    }
  }
}

/**
 * Sets a widget as a user would, as one step of the graph's undo history.
 * @param {GraphNode} node @param {string} name @param {any} value
 */
function setWidget(node, name, value) {
  const { owner, widget } = holderOf(node, name);
  if (!widget || widget.value === value) return;
  const before = widget.value;
  app.canvas?.emitBeforeChange?.();
  owner.graph?.beforeChange?.(owner);
  try {
    widget.value = value;
    widget.callback?.(value, app.canvas, owner);
    owner.onWidgetChanged?.(widget.name, value, before, widget);
  } finally {
    owner.graph?.afterChange?.(owner);
    owner.graph?.change?.();
    node.setDirtyCanvas?.(true, true);
    app.canvas?.emitAfterChange?.();
  }
  refreshAll();
}

/** The focused plot that an undo has removed. @type {{key: string, selected: number, time: number} | null} */
let lostFocus = null;
/** Keys of the plots in the page; a graph that is being cleared no longer knows its own id. @type {WeakMap<SchedulePanel, string>} */
const placed = new WeakMap();

/** Restores the keyboard focus after an undo. @param {GraphNode} node @param {SchedulePanel} panel */
function restoreFocus(node, panel) {
  const key = keyOf(app, node);
  placed.set(panel, key);
  if (lostFocus?.key === key && performance.now() - lostFocus.time < REMEMBERED) {
    panel.selected = lostFocus.selected;
    panel.frame.focus({ preventScroll: true });
    lostFocus = null;
  }
}

/** @param {GraphNode} node */
function addPlot(node) {
  const panel = new SchedulePanel({
    edit: (index, kind) => {
      const { plan } = panel.view ?? {};
      if (plan) setWidget(node, "explicit", edited(plan, index, kind, holderOf(node, "ratio").widget?.value));
    },
    reset: () => setWidget(node, "explicit", ""),
  });
  // Templates open zoomed out; the bars are readable there too.
  const options = { serialize: false, hideOnZoom: false, margin: MARGIN, getMinHeight: () => MIN_HEIGHT + 2 * MARGIN };
  const widget = node.addDOMWidget("schedule_plot", "dual_cache_plot", panel.element, options);
  widget.serialize = false; // of the workflow; the option above is for the prompt
  let forwarding = new AbortController();
  const attach = () => {
    panels.set(node, panel);
    panel.connect();
    forwarding.abort();
    forwarding = new AbortController();
    passThrough(panel.element, forwarding.signal);
    refresh(node, panel);
    whenVisible(node, panel.element, () => panels.get(node) === panel, () => restoreFocus(node, panel));
  };
  afterCall(node, "onAdded", attach);
  afterCall(node, "onRemoved", () => {
    // The classic renderer removes the element from the page, which loses the focus, before it removes the node.
    const time = performance.now(), taken = document.activeElement === document.body && time - panel.focusedAt < REMEMBERED;
    if (panel.focused || taken) lostFocus = { key: placed.get(panel) ?? "", selected: panel.selected, time };
    panels.delete(node);
    panel.disconnect();
    forwarding.abort();
  });
  // Nodes 2.0 only calls the callbacks of widgets; the classic renderer also calls onWidgetChanged of the node.
  for (const other of node.widgets) if (other !== widget) afterCall(other, "callback", refreshAll);
  afterCall(node, "onWidgetChanged", refreshAll);
  afterCall(node, "onConfigure", refreshAll);
  afterCall(node, "onConnectionsChange", () => queueMicrotask(refreshAll));
  if (node.graph) attach();
  else refresh(node, panel);
  const [width, height] = node.computeSize();
  node.setSize?.([Math.max(WIDTH, width, node.size[0]), Math.max(height, node.size[1])]);
}

/** Keeps only the latest entries. @param {Map<string, unknown>} map */
function trim(map) {
  for (const oldest of [...map.keys()].slice(0, Math.max(0, map.size - RUNS_KEPT))) map.delete(oldest);
}

/** @param {CustomEvent} event of a node that has run */
function onExecuted({ detail }) {
  const text = detail?.output?.dual_cache_plan?.[0]; // the plan that it has solved, as JSON
  if (!text) return;
  noted({ node: detail.display_node ?? detail.node, prompt_id: detail.prompt_id }, ({ key, asked }) => {
    solved.delete(key); // so that it comes last
    solved.set(key, { plan: JSON.parse(text), asked });
    trim(solved);
    refreshAll();
  });
}

/** @param {Queued} queued @param {Run} run */
function begin({ owners, planner }, run) {
  const number = ++started, plan = solved.get(planner)?.plan;
  for (const { key, context } of owners) {
    const { plan: made } = planOf(plan ? { ...context, solved: { ...plan, stale: false } } : context);
    runs.delete(key); // so that it comes last
    runs.set(key, { run, asked: made?.kinds ?? "", number });
  }
  trim(runs);
}

/** The expected memory of a run's caches, sent before it samples. @param {CustomEvent} event {node, prompt_id, steps, text} */
function onExpect({ detail }) {
  noted(detail, (queued) => {
    begin(queued, { steps: detail.steps, records: [], report: null, text: "", expected: String(detail.text) });
    refreshAll();
  });
}

/** @param {CustomEvent} event {node, prompt_id, steps, record} */
function onStep({ detail }) {
  noted(detail, (queued) => {
    const { steps, record } = detail, before = runs.get(queued.key)?.run;
    const starts = !before || before.report || (record.step === 0 && record.phase === 0 && before.records.length > 0);
    /** @type {Run} */
    const run = starts ? { steps, records: [], report: null, text: "" } : before;
    if (starts) begin(queued, run);
    run.records.push(record);
    refreshAll();
  });
}

/** @param {CustomEvent} event {node, prompt_id, report, text} */
function onReport({ detail }) {
  noted(detail, (queued) => {
    const { report, text } = detail, before = runs.get(queued.key)?.run;
    const run = before && !before.report ? before : { steps: report.steps, records: [], report: null, text: "" };
    if (run !== before) begin(queued, run);
    Object.assign(run, { records: report.records, report, text });
    refreshAll();
  });
}

/** Shows a run from the metadata of a picture. @param {GraphNode} node @param {Run} run */
export function restoreRun(node, run) {
  const queued = queuedOf(node);
  if (!queued) return;
  begin(queued, run);
  refreshAll();
}

const EXTENSION = {
  name: "dual_cache.schedule_plot",
  setup() {
    noted = trackPrompts(app, api, queuedOf);
    api.addEventListener("executed", onExecuted);
    api.addEventListener("dual_cache.expect", onExpect);
    api.addEventListener("dual_cache.step", onStep);
    api.addEventListener("dual_cache.report", onReport);
    api.addEventListener("graphChanged", refreshAll);
    app.canvas.canvas.addEventListener("litegraph:set-graph", refreshAll); // a subgraph is opened or left
    let tab = 0;
    afterCall(app.canvas, "onDrawForeground", () => {
      if (tabOf(app) === tab) return;
      tab = tabOf(app);
      refreshAll();
      for (const [node, panel] of panels) if (placed.has(panel)) placed.set(panel, keyOf(app, node));
    });
    onAppearanceChange(() => panels.forEach((panel) => panel.request()));
  },
  /** @param {GraphNode} node */
  nodeCreated(node) {
    if (NODES.includes(node.comfyClass)) addPlot(node);
  },
  afterConfigureGraph: refreshAll,
};

// ComfyUI may serve the folder under two names, its own and the one of pyproject.toml, and then loads this file twice.
const registered = Symbol.for(EXTENSION.name);
if (!app[registered]) {
  app[registered] = true;
  app.registerExtension(EXTENSION);
}
