/** Puts the schedule plot on our nodes in ComfyUI: reads their widgets, writes the explicit list, listens to the events of a run. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { holderOf, scheduleOf, valuesOf } from "./graph.js";
import { MIN_HEIGHT, SchedulePanel } from "./panel.js";
import { BUILDER, FORECAST, PATCH, PLANNER, SAMPLER, edited, planOf, viewOf } from "./view.js";

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

/** Panels of the nodes that stand in a graph. @type {Map<GraphNode, SchedulePanel>} */
const panels = new Map();
/**
 * Last runs by graph and node, so that an undo, which makes all nodes anew, does not lose what they show. A builder shares the run of the
 * node that it feeds.
 * @type {Map<string, {run: Run, asked: string, number: number}>}
 */
const runs = new Map();
let started = 0;
/** What Plan Cache nodes have solved last, and from which settings. @type {Map<string, {plan: Omit<Solved, "stale">, asked: string}>} */
const solved = new Map();

const root = () => app.rootGraph ?? app.graph;
/** @param {GraphNode} node */
const runKey = (node) => `${root()?.id} ${node.graph?.id} ${node.id}`;

/** @param {GraphNode} node @returns {Solved | null} */
function solvedBy(node) {
  const found = solved.get(runKey(node));
  return found ? { ...found.plan, stale: found.asked !== JSON.stringify(valuesOf(node).values) } : null;
}

/** @param {GraphNode} node @returns {Context} */
function contextOf(node) {
  const { values, foreign } = valuesOf(node);
  const origin = scheduleOf(node);
  let builder = null, plan = node.comfyClass === PLANNER ? solvedBy(node) : null;
  if (origin?.comfyClass === PLANNER) plan = READ_ONLY_MODES.includes(origin.mode) ? null : solvedBy(origin);
  if (plan) {
    // The plan is known; nothing else decides.
  } else if (origin?.comfyClass === BUILDER) {
    if (!READ_ONLY_MODES.includes(origin.mode)) {
      const upstream = valuesOf(origin);
      builder = upstream.values;
      foreign.push(...upstream.foreign);
    }
  } else if (origin !== undefined) {
    foreign.push("schedule");
  }
  const kept = runs.get(runKey(node));
  return { node: node.comfyClass, values, builder, foreign, run: kept ? { ...kept.run, asked: kept.asked } : null, solved: plan };
}

/** What each panel was last made of. @type {WeakMap<SchedulePanel, string>} */
const shown = new WeakMap();

/** @param {GraphNode} node @param {SchedulePanel} panel */
function refresh(node, panel) {
  const context = contextOf(node), kept = runs.get(runKey(node));
  // The records of a run only grow, so their number stands for them.
  const made = JSON.stringify([{ ...context, run: kept && [kept.number, kept.asked, kept.run.records.length, !kept.run.report] }]);
  if (shown.get(panel) === made) return;
  shown.set(panel, made);
  panel.update(viewOf(context));
}

function refreshAll() {
  for (const [node, panel] of panels) refresh(node, panel);
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

/**
 * Runs `then` after each call of a method, which need not exist yet.
 * @param {any} object @param {string} name @param {(...given: any[]) => void} then
 */
function follow(object, name, then) {
  const original = object[name];
  object[name] = function (/** @type {any[]} */ ...given) {
    const result = original?.apply(this, given);
    then.apply(this, given);
    return result;
  };
}

/** Whether an element stands in a node that Nodes 2.0 has made of page elements. @param {HTMLElement} element */
const inNodes2 = (element) => element.closest("[data-node-id]") !== null;

/** Gives wheel and middle button back to the graph. @param {HTMLElement} element @param {AbortSignal} signal */
function passThrough(element, signal) {
  /** @param {string} type @param {(event: any) => void} handler @param {boolean} [passive] */
  const on = (type, handler, passive = true) => element.addEventListener(type, handler, { signal, passive });
  on("wheel", (event) => {
    if (inNodes2(element)) return; // the node around it takes the wheel
    event.preventDefault();
    app.canvas.processMouseWheel(event);
  }, false);
  on("pointerdown", (event) => event.button === 1 && app.canvas.processMouseDown(event));
  on("pointermove", (event) => (event.buttons & 4) === 4 && app.canvas.processMouseMove(event));
  on("pointerup", (event) => event.button === 1 && app.canvas.processMouseUp(event));
}

/** Where the keyboard was when an undo took its node away. @type {{key: string, selected: number, time: number} | null} */
let lost = null;
/** Keys of the plots in the page; a graph that is being cleared no longer knows its own id. @type {WeakMap<SchedulePanel, string>} */
const placed = new WeakMap();

/**
 * Follows a plot into the page. Nodes 2.0 keeps the page elements of a node that an undo or a reload makes anew under the same id, with the
 * plot of the old node in them: the new plot takes its place. The keyboard stays where it was.
 * @param {GraphNode} node @param {SchedulePanel} panel @param {number} [frames] how long to wait
 */
function settle(node, panel, frames = 30) {
  requestAnimationFrame(() => {
    const { element } = panel;
    if (panels.get(node) !== panel) return;
    const here = node.graph === app.canvas.graph;
    const old = here && !element.isConnected && document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"] .dual-cache`);
    if (old) old.replaceWith(element);
    if (!element.getClientRects().length) { // not in the page yet, or hidden
      if (frames) settle(node, panel, frames - 1);
      return;
    }
    const key = runKey(node);
    placed.set(panel, key);
    if (lost?.key === key && performance.now() - lost.time < REMEMBERED) {
      panel.selected = lost.selected;
      panel.frame.focus({ preventScroll: true });
      lost = null;
    }
  });
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
  // Templates open zoomed out as far as their width asks for; the bars are readable there too.
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
    settle(node, panel);
  };
  follow(node, "onAdded", attach);
  follow(node, "onRemoved", () => {
    // The classic renderer takes the element out of the page, and the keyboard with it, before it removes the node.
    const time = performance.now(), taken = document.activeElement === document.body && time - panel.focusedAt < REMEMBERED;
    if (panel.focused || taken) lost = { key: placed.get(panel) ?? "", selected: panel.selected, time };
    panels.delete(node);
    panel.disconnect();
    forwarding.abort();
  });
  // Nodes 2.0 calls the widgets' callbacks only, the classic renderer tells the node too.
  for (const other of node.widgets) if (other !== widget) follow(other, "callback", refreshAll);
  follow(node, "onWidgetChanged", refreshAll);
  follow(node, "onConfigure", refreshAll);
  if (node.comfyClass === PLANNER) follow(node, "onExecuted", (output) => keepPlan(node, output?.dual_cache_plan?.[0]));
  follow(node, "onConnectionsChange", () => queueMicrotask(refreshAll));
  if (node.graph) attach();
  else refresh(node, panel);
  const [width, height] = node.computeSize();
  node.setSize?.([Math.max(WIDTH, width, node.size[0]), Math.max(height, node.size[1])]);
}

/** @param {GraphNode} node @param {string | undefined} text JSON of the plan that the node has solved */
function keepPlan(node, text) {
  if (!text) return;
  solved.set(runKey(node), { plan: JSON.parse(text), asked: JSON.stringify(valuesOf(node).values) });
  for (const oldest of [...solved.keys()].slice(0, Math.max(0, solved.size - RUNS_KEPT))) solved.delete(oldest);
  refreshAll();
}

/** The node that an event names: its id, behind those of the subgraphs around it. @param {unknown} id @returns {GraphNode} */
function nodeOf(id) {
  let graph = root(), node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node && NODES.includes(node.comfyClass) ? node : null;
}

/** @param {GraphNode} node @param {Run} run */
function begin(node, run) {
  const number = ++started, feeding = scheduleOf(node);
  for (const owner of feeding?.comfyClass === BUILDER ? [node, feeding] : [node]) {
    const key = runKey(owner);
    runs.delete(key); // so that it comes last
    runs.set(key, { run, asked: planOf(contextOf(owner)).plan?.kinds ?? "", number });
  }
  for (const oldest of [...runs.keys()].slice(0, Math.max(0, runs.size - RUNS_KEPT))) runs.delete(oldest);
}

/** @param {CustomEvent} event {node, steps, record} */
function onStep({ detail: { node: id, steps, record } }) {
  const node = nodeOf(id);
  if (!node) return;
  const before = runs.get(runKey(node))?.run;
  const starts = !before || before.report || (record.step === 0 && record.phase === 0);
  /** @type {Run} */
  const run = starts ? { steps, records: [], report: null, text: "" } : before;
  if (starts) begin(node, run);
  run.records.push(record);
  refreshAll();
}

/** @param {CustomEvent} event {node, report, text} */
function onReport({ detail: { node: id, report, text } }) {
  const node = nodeOf(id);
  if (!node) return;
  const before = runs.get(runKey(node))?.run;
  const run = before && !before.report ? before : { steps: report.steps, records: [], report: null, text: "" };
  if (run !== before) begin(node, run);
  Object.assign(run, { records: report.records, report, text });
  refreshAll();
}

const EXTENSION = {
  name: "dual_cache.schedule_plot",
  setup() {
    api.addEventListener("dual_cache.step", onStep);
    api.addEventListener("dual_cache.report", onReport);
    api.addEventListener("graphChanged", refreshAll);
    app.canvas.canvas.addEventListener("litegraph:set-graph", refreshAll); // a subgraph is opened or left
    let scale = 0;
    follow(app.canvas, "onDrawForeground", () => {
      if (app.canvas.ds.scale === scale) return;
      ({ scale } = app.canvas.ds);
      for (const panel of panels.values()) panel.request();
    });
    // A colour palette is applied as custom properties of the root element, light and dark as a class of the body.
    const themes = new MutationObserver(() => panels.forEach((panel) => panel.request()));
    themes.observe(document.documentElement, { attributes: true, attributeFilter: ["class", "style"] });
    themes.observe(document.body, { attributes: true, attributeFilter: ["class"] });
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
