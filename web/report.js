/** Shows the text of Cache Report on the node, once it has run. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { follow, passThrough, settle } from "./dom.js";
import { isReachable, keyOf, tabOf, track } from "./prompts.js";

/** @typedef {any} GraphNode a litegraph node, which has no types here */

const HEIGHT = 180;
const TEXTS_KEPT = 64;
const WAITING = "The report appears here after a run.";

/** What the nodes in the graph show it on. @type {Map<GraphNode, HTMLElement>} */
const elements = new Map();
/** Last reports by node, so that an undo, which makes all nodes anew, does not lose them. @type {Map<string, string>} */
const texts = new Map();

function refreshAll() {
  for (const [node, element] of elements) {
    const text = texts.get(keyOf(app, node)) ?? WAITING;
    if (!isReachable(app, node)) elements.delete(node);
    else if (element.textContent !== text) element.textContent = text;
  }
}

/** @param {GraphNode} node */
function addText(node) {
  const text = document.createElement("pre");
  text.className = "dual-cache-report";
  text.tabIndex = 0;
  text.setAttribute("aria-label", "Cache report");
  text.dataset.captureWheel = "true"; // Nodes 2.0: while it has the focus
  // Its size is the node's affair: in Nodes 2.0 the text would make the node grow.
  Object.assign(text.style, {
    margin: "0", padding: "6px", overflow: "auto", boxSizing: "border-box", whiteSpace: "pre", font: "11px monospace", contain: "size",
    minHeight: `${HEIGHT}px`, color: "var(--input-text)", background: "var(--comfy-input-bg)", border: "1px solid var(--border-color)",
    borderRadius: "4px",
  });
  text.textContent = WAITING;
  node.addDOMWidget("report_text", "dual_cache_report", text, {
    serialize: false, hideOnZoom: false, getValue: () => "", setValue: () => {}, getMinHeight: () => HEIGHT,
  });
  let forwarding = new AbortController();
  const attach = () => {
    elements.set(node, text);
    forwarding.abort();
    forwarding = new AbortController();
    passThrough(text, forwarding.signal, () => document.activeElement === text);
    refreshAll();
    settle(node, text, () => elements.get(node) === text, refreshAll);
  };
  follow(node, "onAdded", attach);
  follow(node, "onRemoved", () => {
    elements.delete(node);
    forwarding.abort();
  });
  if (node.graph) attach();
  node.setSize?.([Math.max(node.size[0], 520), Math.max(node.size[1], HEIGHT + 120)]);
}

const EXTENSION = {
  name: "dual_cache.report",
  setup() {
    const noted = track(app, api, (node) => (node.comfyClass === "CacheReport" ? keyOf(app, node) : null));
    api.addEventListener("executed", (/** @type {CustomEvent} */ { detail }) => {
      if (!detail?.output?.dual_cache_report) return;
      noted({ node: detail.display_node ?? detail.node, prompt_id: detail.prompt_id }, (key) => {
        texts.delete(key); // so that it comes last
        texts.set(key, [detail.output.text].flat().join("\n"));
        for (const oldest of [...texts.keys()].slice(0, Math.max(0, texts.size - TEXTS_KEPT))) texts.delete(oldest);
        refreshAll();
      });
    });
    let shown = 0;
    follow(app.canvas, "onDrawForeground", () => {
      if (tabOf(app) === shown) return;
      shown = tabOf(app);
      refreshAll();
    });
  },
  /** @param {GraphNode} node */
  nodeCreated(node) {
    if (node.comfyClass === "CacheReport") addText(node);
  },
  afterConfigureGraph: refreshAll,
};

// ComfyUI may serve the folder under two names, its own and the one of pyproject.toml, and then loads this file twice.
const registered = Symbol.for(EXTENSION.name);
if (!app[registered]) {
  app[registered] = true;
  app.registerExtension(EXTENSION);
}
