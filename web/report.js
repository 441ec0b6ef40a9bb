/** The extension that shows a finished run on Cache Report nodes: its plot and its text. */

import { showOutput } from "./output_panel.js";
import { SchedulePanel } from "./panel.js";
import { reportView } from "./report_view.js";

const PLOT = 190, TEXT = 130;
const WAITING = "The report appears here after a run.";

function make() {
  const element = document.createElement("div"), text = document.createElement("pre"), plot = new SchedulePanel();
  element.className = "dual-cache-outcome";
  Object.assign(element.style, { display: "flex", flexDirection: "column", gap: "4px", minHeight: `${PLOT + TEXT}px`, contain: "size" });
  Object.assign(plot.element.style, { flex: "1 1 55%", minHeight: `${PLOT}px` });
  text.className = "dual-cache-report";
  text.tabIndex = 0;
  text.setAttribute("aria-label", "Cache report");
  text.dataset.captureWheel = "true"; // Nodes 2.0: while it has the focus
  Object.assign(text.style, {
    flex: "1 1 45%", margin: "0", padding: "6px", overflow: "auto", boxSizing: "border-box", whiteSpace: "pre", font: "11px monospace",
    minHeight: `${TEXT}px`, color: "var(--input-text)", background: "var(--comfy-input-bg)", border: "1px solid var(--border-color)",
    borderRadius: "4px",
  });
  element.append(plot.element, text);
  /** @param {{report: Record<string, any>, text: string} | null} value */
  const show = (value) => {
    const view = reportView(value?.report ?? null);
    plot.update(view);
    plot.element.style.display = view.bars.length ? "" : "none";
    const [words, ...table] = (value?.text ?? WAITING).split(/(?=\n\nstep )/);
    const sentences = document.createElement("span");
    sentences.style.whiteSpace = "pre-wrap"; // the table keeps its columns
    sentences.textContent = words;
    text.replaceChildren(sentences, table.join(""));
  };
  show(null);
  return {
    element, show, keepsWheel: () => document.activeElement === text,
    connect: () => plot.connect(), disconnect: () => plot.disconnect(), redraw: () => plot.request(),
  };
}

export const { remember } = showOutput({
  name: "dual_cache.report", type: "CacheReport", widget: "report_text", height: PLOT + TEXT, width: 520, above: 180, make,
  read: (output) => (output.dual_cache_report
    ? { report: JSON.parse(output.dual_cache_report[0]), text: [output.text].flat().join("\n") } : undefined),
});
