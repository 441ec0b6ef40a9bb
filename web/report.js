/** Shows the text of Cache Report on the node, once it has run. */

import { showOutcome } from "./outcome.js";

const HEIGHT = 180;
const WAITING = "The report appears here after a run.";

function make() {
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
  return {
    element: text, show: (/** @type {string | null} */ value) => { text.textContent = value ?? WAITING; },
    keepsWheel: () => document.activeElement === text,
  };
}

showOutcome({
  name: "dual_cache.report", type: "CacheReport", widget: "report_text", height: HEIGHT, width: 520, above: 120, make,
  read: (output) => (output.dual_cache_report ? [output.text].flat().join("\n") : undefined),
});
