/** Shows on the nodes of one type what they have given out last: by workflow tab, kept through an undo, gone with the node. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { afterCall, onAppearanceChange, passThrough, whenVisible } from "./dom.js";
import { isReachable, keyOf, tabOf, track } from "./prompts.js";

/**
 * @typedef {any} GraphNode a litegraph node, which has no types here
 * @typedef {object} Panel what stands on a node
 * @property {HTMLElement} element of a class that no other element of the node has
 * @property {(value: any) => void} show null before the first run
 * @property {() => void} [connect]
 * @property {() => void} [disconnect]
 * @property {() => void} [redraw] when the zoom or the colours have changed
 * @property {() => boolean} [keepsWheel] whether it has use for the wheel itself
 */

const KEPT = 64;

/**
 * Registers an extension for it.
 * @param {object} options
 * @param {string} options.name of the extension
 * @param {string} options.type of the nodes
 * @param {string} options.widget name of the widget
 * @param {number} options.height at least
 * @param {(output: Record<string, any>) => any} options.read what to show of a node's output; undefined where it holds nothing of ours
 * @param {() => Panel} options.make
 * @param {number} options.width of a new node
 * @param {number} options.above room on a new node for what else it has
 * @returns {{remember: (node: GraphNode, value: any) => void}} to show what was known before
 */
export function showOutput({ name, type, widget, height, read, make, width, above }) {
  /** What stands on the nodes in the graph. @type {Map<GraphNode, Panel>} */
  const panels = new Map();
  /** Last values by node, so that an undo, which makes all nodes anew, does not lose them. @type {Map<string, any>} */
  const values = new Map();
  /** What each panel shows. @type {WeakMap<Panel, any>} */
  const shown = new WeakMap();

  function refreshAll() {
    for (const [node, panel] of panels) {
      const value = values.get(keyOf(app, node)) ?? null;
      if (!isReachable(app, node)) {
        panels.delete(node);
        panel.disconnect?.();
      } else if (shown.get(panel) !== value) {
        shown.set(panel, value);
        panel.show(value);
      }
    }
  }

  /** @param {string} key @param {any} value */
  function keep(key, value) {
    values.delete(key); // so that it comes last
    values.set(key, value);
    for (const oldest of [...values.keys()].slice(0, Math.max(0, values.size - KEPT))) values.delete(oldest);
    refreshAll();
  }

  /** @param {GraphNode} node */
  function addTo(node) {
    const panel = make(), { element } = panel;
    shown.set(panel, null);
    const added = node.addDOMWidget(widget, "dual_cache_outcome", element, {
      serialize: false, hideOnZoom: false, getValue: () => "", setValue: () => {}, getMinHeight: () => height,
    });
    added.serialize = false; // of the workflow; the option above is for the prompt
    let forwarding = new AbortController();
    const attach = () => {
      panels.set(node, panel);
      panel.connect?.();
      forwarding.abort();
      forwarding = new AbortController();
      passThrough(element, forwarding.signal, panel.keepsWheel);
      refreshAll();
      whenVisible(node, element, () => panels.get(node) === panel, refreshAll);
    };
    afterCall(node, "onAdded", attach);
    afterCall(node, "onRemoved", () => {
      panels.delete(node);
      panel.disconnect?.();
      forwarding.abort();
    });
    if (node.graph) attach();
    node.setSize?.([Math.max(node.size[0], width), Math.max(node.size[1], height + above)]);
  }

  const extension = {
    name,
    setup() {
      const noted = track(app, api, (node) => (node.comfyClass === type ? keyOf(app, node) : null));
      api.addEventListener("executed", (/** @type {CustomEvent} */ { detail }) => {
        const value = detail?.output && read(detail.output);
        if (value !== undefined) noted({ node: detail.display_node ?? detail.node, prompt_id: detail.prompt_id }, (key) => keep(key, value));
      });
      let tab = 0;
      afterCall(app.canvas, "onDrawForeground", () => {
        if (tabOf(app) === tab) return;
        tab = tabOf(app);
        refreshAll();
      });
      onAppearanceChange(() => panels.forEach((panel) => panel.redraw?.()));
    },
    /** @param {GraphNode} node */
    nodeCreated(node) {
      if (node.comfyClass === type) addTo(node);
    },
    afterConfigureGraph: refreshAll,
  };
  // ComfyUI may serve the folder under two names, its own and the one of pyproject.toml, and then loads this file twice.
  const registered = Symbol.for(name);
  if (!app[registered]) {
    app[registered] = true;
    app.registerExtension(extension);
  }
  return { remember: (node, value) => keep(keyOf(app, node), value) };
}
