/** Helpers for page elements on ComfyUI's nodes: their place in the page, wheel and middle button, and calls after other methods. */

import { app } from "../../scripts/app.js";

/** @typedef {any} GraphNode a litegraph node, which has no types here */

/**
 * Runs `then` after each call of a method, which need not exist yet.
 * @param {any} object @param {string} name @param {(...given: any[]) => void} then
 */
export function afterCall(object, name, then) {
  const original = object[name];
  object[name] = function (/** @type {any[]} */ ...given) {
    const result = original?.apply(this, given);
    then.apply(this, given);
    return result;
  };
}

/** Whether an element is in a node that the Nodes 2.0 renderer has made. @param {HTMLElement} element */
const inNodes2 = (element) => element.closest("[data-node-id]") !== null;

/**
 * Passes wheel and middle button on to the graph.
 * @param {HTMLElement} element @param {AbortSignal} signal @param {() => boolean} [keeps] whether the element uses the wheel itself
 */
export function passThrough(element, signal, keeps = () => false) {
  /** @param {string} type @param {(event: any) => void} handler @param {boolean} [passive] */
  const on = (type, handler, passive = true) => element.addEventListener(type, handler, { signal, passive });
  on("wheel", (event) => {
    if (keeps()) event.stopPropagation();
    else if (!inNodes2(element)) { // with Nodes 2.0 the node handles the wheel
      event.preventDefault();
      app.canvas.processMouseWheel(event);
    }
  }, false);
  on("pointerdown", (event) => event.button === 1 && app.canvas.processMouseDown(event));
  on("pointermove", (event) => (event.buttons & 4) === 4 && app.canvas.processMouseMove(event));
  on("pointerup", (event) => event.button === 1 && app.canvas.processMouseUp(event));
}

/** Calls `then` when canvases must be redrawn: the graph was zoomed, or the colours have changed. @param {() => void} then */
export function onAppearanceChange(then) {
  let scale = 0;
  afterCall(app.canvas, "onDrawForeground", () => {
    if (app.canvas.ds.scale === scale) return;
    ({ scale } = app.canvas.ds);
    then();
  });
  // A colour palette is applied as custom properties of the root element, light and dark as a class of the body.
  const themes = new MutationObserver(then);
  themes.observe(document.documentElement, { attributes: true, attributeFilter: ["class", "style"] });
  themes.observe(document.body, { attributes: true, attributeFilter: ["class"] });
}

/**
 * Waits until an element is visible. After an undo or a reload, Nodes 2.0 keeps the page elements of the old node under the same id, with the
 * old element in them; this function puts the new element in its place.
 * @param {GraphNode} node @param {HTMLElement} element of a class that no other element of the node has
 * @param {() => boolean} current whether the element is still the node's
 * @param {() => void} [then] once it is visible
 * @param {number} [frames] frames to wait
 */
export function whenVisible(node, element, current, then, frames = 30) {
  requestAnimationFrame(() => {
    if (!current()) return;
    const here = node.graph === app.canvas.graph;
    const selector = `[data-node-id="${CSS.escape(String(node.id))}"] .${element.classList[0]}`;
    const old = here && !element.isConnected && document.querySelector(selector);
    if (old) old.replaceWith(element);
    if (element.getClientRects().length) then?.();
    else if (frames) whenVisible(node, element, current, then, frames - 1); // not in the page yet, or hidden
  });
}
