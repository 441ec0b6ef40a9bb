/** Runs as pictures carry them, read back: cache_core/keepsake.py writes them. Pure, without a page. */

/** @typedef {import("./view.js").Run} Run */

const KEY = "dual_cache", FORMAT = 1;

/**
 * Takes the runs out of a workflow, so that they are not saved with it again.
 * @param {any} workflow @returns {Record<string, any>} by id of the node that sampled
 */
export function taken(workflow) {
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

/** The run that a picture carries, or null where it says too little to be shown. @param {any} kept @returns {Run | null} */
export function runOf(kept) {
  const records = recordsOf(kept?.records), { steps, schedule } = kept ?? {};
  if (!records.length || !Number.isInteger(steps) || steps < 1 || steps > 10000) return null;
  if (records.some((record) => !Number.isInteger(record.step) || record.step < 0)) return null;
  const report = { ...kept, records, schedule: { kinds: schedule ?? "" }, messages: Array.isArray(kept.messages) ? kept.messages : [] };
  const told = kept.earlier ? "ComfyUI still had the result of an earlier run, which this is.\n" : "";
  return { steps, records, report, text: `As the picture carries it.\n${told}${kept.text ?? ""}` };
}
