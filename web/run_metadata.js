/** Runs as pictures carry them, read back: cache_core/keepsake.py writes them. Pure, without a page. */

import { REASONS } from "./presets.js";
import { short, size } from "./wording.js";

/** @typedef {import("./view.js").Run} Run */

const KEY = "dual_cache", FORMAT = 1, ROWS = 48, LETTERS = "abcdefghijklmnopqrstuvwxyz", LEFT = ["ran", "why"];
/** A number in few digits; what is none, such as the "nan" of a picture, as it is. @param {unknown} value @param {number} digits */
const figure = (value, digits) => (typeof value === "number" && Number.isFinite(value) ? short(value, digits) : String(value ?? ""));
/** What a report's table says of an evaluation, as cache_core/report.py has it. @type {Record<string, (record: any) => string>} */
const COLUMNS = {
  step: (r) => `${r.step + 1}${r.phase ? LETTERS[Math.min(r.phase, LETTERS.length - 1)] : ""}`,
  sigma: (r) => figure(r.sigma, 4),
  ran: (r) => (r.actual === r.planned ? r.actual : `${r.actual} for ${r.planned}`),
  calls: (r) => String(r.calls),
  "in full": (r) => String(r.full_calls),
  ms: (r) => Number(r.milliseconds).toFixed(1),
  tokens: (r) => (r.actual === "C" ? `${figure(100 * r.ratio, 3)} %` : ""),
  cached: (r) => size(Number(r.cached_bytes)),
  error: (r) => figure(r.forecast_error, 3),
  why: (r) => (r.actual === r.planned ? "" : String(REASONS[/** @type {keyof typeof REASONS} */ (r.reason)] ?? r.reason)),
};

/**
 * Takes the runs out of a workflow, so that they are not saved with it again.
 * @param {any} workflow @returns {Record<string, any>} by id of the node that sampled
 */
export function takeRuns(workflow) {
  const carried = workflow?.extra?.[KEY];
  if (carried === undefined) return {};
  delete workflow.extra[KEY];
  return carried?.format === FORMAT && carried.runs && typeof carried.runs === "object" ? carried.runs : {};
}

/** @param {any} columns @returns {any[]} records as a report has them; none where columns do not fit */
function recordsOf(columns) {
  const { actual } = columns ?? {};
  if (typeof actual !== "string" || !/^[FCA]*$/.test(actual) || !/^[FCA]*$/.test(columns.planned)) return [];
  return [...actual].map((kind, i) => {
    const record = Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, Array.isArray(values) ? values[i] : values]));
    return { ...record, actual: kind, planned: columns.planned[i] ?? kind };
  });
}

/** A report's table as text; "" for runs too long for a row each. @param {any[]} records */
export function reportTable(records) {
  if (!records.length || records.length > ROWS) return "";
  const columns = Object.entries(COLUMNS).map(([name, tell]) => [name, ...records.map(tell)]).filter((cells) => cells.slice(1).some(Boolean));
  const widths = columns.map((cells) => Math.max(...cells.map((cell) => cell.length)));
  return [...records.keys(), records.length].map((i) => columns.map((cells, j) => (
    LEFT.includes(cells[0]) ? cells[i].padEnd(widths[j]) : cells[i].padStart(widths[j]))).join("  ").trimEnd()).join("\n");
}

/** The run that a picture carries, or null where it says too little to be shown. @param {any} kept @returns {Run | null} */
export function readRun(kept) {
  const records = recordsOf(kept?.records), { steps, schedule } = kept ?? {};
  if (!records.length || !Number.isInteger(steps) || steps < 1 || steps > 10000) return null;
  if (records.some((record) => !Number.isInteger(record.step) || record.step < 0)) return null;
  const report = { ...kept, records, schedule: { kinds: schedule ?? "" }, messages: Array.isArray(kept.messages) ? kept.messages : [] };
  const told = kept.earlier ? "ComfyUI still had the result of an earlier run, which this is.\n" : "";
  const table = reportTable(records);
  return { steps, records, report, text: `As the picture carries it.\n${told}${kept.text ?? ""}${table && `\n\n${table}`}` };
}
