/** Shows the text of Cache Report on the node, once it has run. */

import { app } from "../../scripts/app.js";

const HEIGHT = 180;

/** @param {any} node a litegraph node, which has no types here */
function addText(node) {
  const text = document.createElement("pre");
  text.tabIndex = 0;
  text.setAttribute("aria-label", "Cache report");
  Object.assign(text.style, {
    margin: "0", padding: "6px", overflow: "auto", boxSizing: "border-box", whiteSpace: "pre", font: "11px monospace",
    color: "var(--input-text)", background: "var(--comfy-input-bg)", border: "1px solid var(--border-color)", borderRadius: "4px",
  });
  text.textContent = "The report appears here after a run.";
  node.addDOMWidget("report_text", "dual_cache_report", text, {
    serialize: false, hideOnZoom: false, getValue: () => "", setValue: () => {}, getMinHeight: () => HEIGHT,
  });
  const before = node.onExecuted;
  node.onExecuted = function (/** @type {any} */ output) {
    before?.apply(this, arguments);
    if (output?.text) text.textContent = [output.text].flat().join("\n");
  };
  node.setSize?.([Math.max(node.size[0], 520), Math.max(node.size[1], HEIGHT + 120)]);
}

app.registerExtension({
  name: "dual_cache.report",
  /** @param {any} node */
  nodeCreated(node) {
    if (node.comfyClass === "CacheReport") addText(node);
  },
});
