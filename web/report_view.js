/** The view state of a report alone, without the settings of the node that sampled. Pure, without a page. */

import { REPORT } from "./node_ids.js";
import { runSummary } from "./sentences.js";
import { barsOf } from "./view.js";

/**
 * @typedef {import("./view.js").View} View
 * @typedef {import("./view.js").Run} Run
 */

/** @param {string[]} warnings @returns {View} */
const empty = (warnings) => ({
  node: REPORT, editable: false, listed: false, plan: null, error: null, bars: [], sigmas: "measured", mode: "ran", done: 0, stopped: false,
  speedup: 1, bytes: 0, summary: [], warnings,
});

/** @param {Record<string, any> | null} report as cache_core/report/run_report.py writes it; null before the first run @returns {View} */
export function reportView(report) {
  if (!report?.records?.length) return empty(report ? ["Nothing was evaluated in this run."] : []);
  const steps = Math.max(report.steps, ...report.records.map((/** @type {any} */ record) => record.step + 1));
  const given = String(report.schedule?.kinds ?? ""), kinds = given.length === steps ? given : "F".repeat(steps);
  const plan = { kinds, ratios: Array(steps).fill(0), name: report.method, generator: null };
  /** @type {Run} */
  const run = { steps, records: report.records, report, text: "" };
  const view = empty([]);
  Object.assign(view, { plan, bars: barsOf(plan, run) });
  view.done = view.bars.filter((bar) => bar.ran).length;
  view.stopped = view.done < steps;
  view.summary = runSummary(view, run).slice(0, view.stopped ? 2 : 1); // the text below the plot has the rest
  return view;
}
