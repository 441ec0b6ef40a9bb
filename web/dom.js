/** What our page elements share on a node of ComfyUI: their place in the page, wheel and middle button, and calls that are listened to. */

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

/** Whether an element stands in a node that Nodes 2.0 has made of page elements. @param {HTMLElement} element */
const inNodes2 = (element) => element.closest("[data-node-id]") !== null;

/**
 * Gives wheel and middle button back to the graph.
 * @param {HTMLElement} element @param {AbortSignal} signal @param {() => boolean} [keeps] whether the element has use for the wheel itself
 */
export function passThrough(element, signal, keeps = () => false) {
  /** @param {string} type @param {(event: any) => void} handler @param {boolean} [passive] */
  const on = (type, handler, passive = true) => element.addEventListener(type, handler, { signal, passive });
  on("wheel", (event) => {
    if (keeps()) event.stopPropagation();
    else if (!inNodes2(element)) { // the node around it takes the wheel there
      event.preventDefault();
      app.canvas.processMouseWheel(event);
    }
  }, false);
  on("pointerdown", (event) => event.button === 1 && app.canvas.processMouseDown(event));
  on("pointermove", (event) => (event.buttons & 4) === 4 && app.canvas.processMouseMove(event));
  on("pointerup", (event) => event.button === 1 && app.canvas.processMouseUp(event));
}

/** Calls `then` when what canvases show has to be drawn anew: the graph was zoomed, or the colours have changed. @param {() => void} then */
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
 * Follows an element into the page. Nodes 2.0 keeps the page elements of a node that an undo or a reload makes anew under the same id, with
 * the element of the old node in them: the new one takes its place.
 * @param {GraphNode} node @param {HTMLElement} element of a class that no other element of the node has
 * @param {() => boolean} current whether the element is still the node's
 * @param {() => void} [then] once it can be seen
 * @param {number} [frames] how long to wait
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
