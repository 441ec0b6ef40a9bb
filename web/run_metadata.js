/** Reads runs from the metadata of a picture, which cache_core/report/run_metadata.py writes. Pure, without a page. */

import { REASONS } from "./presets.js";
import { short, size } from "./wording.js";

/** @typedef {import("./view.js").Run} Run */

const KEY = "dual_cache", FORMAT = 1, ROWS = 48, LETTERS = "abcdefghijklmnopqrstuvwxyz", LEFT = ["ran", "why"];
/** A number in few digits; anything else, such as the text "nan", unchanged. @param {unknown} value @param {number} digits */
const figure = (value, digits) => (typeof value === "number" && Number.isFinite(value) ? short(value, digits) : String(value ?? ""));
/** Columns of a report's table for one evaluation, as in cache_core/report/run_report.py. @type {Record<string, (record: any) => string>} */
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
 * Removes the runs from a workflow, so that ComfyUI does not save them with it again, and returns them.
 * @param {any} workflow @returns {Record<string, any>} by id of the node that sampled
 */
export function takeRuns(workflow) {
  const carried = workflow?.extra?.[KEY];
  if (carried === undefined) return {};
  delete workflow.extra[KEY];
  return carried?.format === FORMAT && carried.runs && typeof carried.runs === "object" ? carried.runs : {};
}

/** @param {any} columns @returns {any[]} records as in a report; empty where the columns do not fit together */
function recordsOf(columns) {
  const { actual } = columns ?? {};
  if (typeof actual !== "string" || !/^[FCA]*$/.test(actual) || !/^[FCA]*$/.test(columns.planned)) return [];
  return [...actual].map((kind, i) => {
    const record = Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, Array.isArray(values) ? values[i] : values]));
    return { ...record, actual: kind, planned: columns.planned[i] ?? kind };
  });
}

/** A report's table as text; "" for runs with more than `ROWS` evaluations. @param {any[]} records */
export function reportTable(records) {
  if (!records.length || records.length > ROWS) return "";
  const columns = Object.entries(COLUMNS).map(([name, tell]) => [name, ...records.map(tell)]).filter((cells) => cells.slice(1).some(Boolean));
  const widths = columns.map((cells) => Math.max(...cells.map((cell) => cell.length)));
  return [...records.keys(), records.length].map((i) => columns.map((cells, j) => (
    LEFT.includes(cells[0]) ? cells[i].padEnd(widths[j]) : cells[i].padStart(widths[j]))).join("  ").trimEnd()).join("\n");
}

/** The run in a picture's metadata, or null where too much is missing to show it. @param {any} metadata @returns {Run | null} */
export function readRun(metadata) {
  const records = recordsOf(metadata?.records), { steps, schedule } = metadata ?? {};
  if (!records.length || !Number.isInteger(steps) || steps < 1 || steps > 10000) return null;
  if (records.some((record) => !Number.isInteger(record.step) || record.step < 0)) return null;
  const messages = Array.isArray(metadata.messages) ? metadata.messages : [];
  const report = { ...metadata, records, schedule: { kinds: schedule ?? "" }, messages };
  const earlier = metadata.earlier ? "This is an earlier run: ComfyUI reused its result.\n" : "";
  const table = reportTable(records);
  return { steps, records, report, text: `Read from the metadata of the picture.\n${earlier}${metadata.text ?? ""}${table && `\n\n${table}`}` };
}
