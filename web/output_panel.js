/** An extension that shows the last output of the nodes of one type on them: by workflow tab, kept through an undo. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { afterCall, onAppearanceChange, passThrough, whenVisible } from "./dom.js";
import { isReachable, keyOf, tabOf, trackPrompts } from "./prompts.js";

/**
 * @typedef {any} GraphNode a litegraph node, which has no types here
 * @typedef {object} Panel what a node shows
 * @property {HTMLElement} element with a class that no other element of the node has
 * @property {(value: any) => void} show null before the first run
 * @property {() => void} [connect]
 * @property {() => void} [disconnect]
 * @property {() => void} [redraw] when the zoom or the colours have changed
 * @property {() => boolean} [keepsWheel] whether it uses the wheel itself
 * @typedef {object} Options
 * @property {string} name of the extension
 * @property {string} type of the nodes
 * @property {string} widget name of the widget
 * @property {number} height least height of the panel
 * @property {(output: Record<string, any>) => any} read the value to show, from a node's output; undefined for other nodes
 * @property {() => Panel} make
 * @property {number} width of a new node
 * @property {number} above height of a new node's other parts
 */

const KEPT = 64;

/** The panels of all nodes of one type, and the values that they show. */
class OutputPanels {
  /** @param {Options} options */
  constructor(options) {
    this.options = options;
    /** Panels of the nodes in the graph. @type {Map<GraphNode, Panel>} */
    this.panels = new Map();
    /** Last values by the key of a node, so that they survive an undo, which makes all nodes anew. @type {Map<string, any>} */
    this.values = new Map();
    /** The value that each panel shows. @type {WeakMap<Panel, any>} */
    this.shown = new WeakMap();
  }

  refresh() {
    for (const [node, panel] of this.panels) {
      const value = this.values.get(keyOf(app, node)) ?? null;
      if (!isReachable(app, node)) {
        this.panels.delete(node);
        panel.disconnect?.();
      } else if (this.shown.get(panel) !== value) {
        this.shown.set(panel, value);
        panel.show(value);
      }
    }
  }

  /** @param {string} key @param {any} value */
  keep(key, value) {
    const { values } = this;
    values.delete(key); // so that it comes last
    values.set(key, value);
    for (const oldest of [...values.keys()].slice(0, Math.max(0, values.size - KEPT))) values.delete(oldest);
    this.refresh();
  }

  /** @param {GraphNode} node */
  addTo(node) {
    const { make, widget, height, width, above } = this.options, panel = make(), { element } = panel;
    this.shown.set(panel, null);
    const added = node.addDOMWidget(widget, "dual_cache_outcome", element, {
      serialize: false, hideOnZoom: false, getValue: () => "", setValue: () => {}, getMinHeight: () => height,
    });
    added.serialize = false; // in the workflow; the option above is for the prompt
    let forwarding = new AbortController();
    const attach = () => {
      this.panels.set(node, panel);
      panel.connect?.();
      forwarding.abort();
      forwarding = new AbortController();
      passThrough(element, forwarding.signal, panel.keepsWheel);
      this.refresh();
      whenVisible(node, element, () => this.panels.get(node) === panel, () => this.refresh());
    };
    afterCall(node, "onAdded", attach);
    afterCall(node, "onRemoved", () => {
      this.panels.delete(node);
      panel.disconnect?.();
      forwarding.abort();
    });
    if (node.graph) attach();
    node.setSize?.([Math.max(node.size[0], width), Math.max(node.size[1], height + above)]);
  }

  /** Starts listening to runs and to changes of the page. */
  listen() {
    const { type, read } = this.options;
    const noted = trackPrompts(app, api, (node) => (node.comfyClass === type ? keyOf(app, node) : null));
    api.addEventListener("executed", (/** @type {CustomEvent} */ { detail }) => {
      const value = detail?.output && read(detail.output);
      if (value === undefined) return;
      noted({ node: detail.display_node ?? detail.node, prompt_id: detail.prompt_id }, (key) => this.keep(key, value));
    });
    let tab = 0;
    afterCall(app.canvas, "onDrawForeground", () => {
      if (tabOf(app) === tab) return;
      tab = tabOf(app);
      this.refresh();
    });
    onAppearanceChange(() => this.panels.forEach((panel) => panel.redraw?.()));
  }
}

/**
 * Registers the extension.
 * @param {Options} options
 * @returns {{remember: (node: GraphNode, value: any) => void}} shows a value of an earlier run on a node
 */
export function showOutput(options) {
  const panels = new OutputPanels(options), { name, type } = options;
  const extension = {
    name,
    setup: () => panels.listen(),
    /** @param {GraphNode} node */
    nodeCreated(node) {
      if (node.comfyClass === type) panels.addTo(node);
    },
    afterConfigureGraph: () => panels.refresh(),
  };
  // ComfyUI may serve the folder under two names, its own and the one of pyproject.toml, and then loads this file twice.
  const registered = Symbol.for(name);
  if (!app[registered]) {
    app[registered] = true;
    app.registerExtension(extension);
  }
  return { remember: (node, value) => panels.keep(keyOf(app, node), value) };
}
