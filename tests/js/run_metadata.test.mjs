// Runs read from the metadata of pictures, and the view of a report alone.

import assert from "node:assert/strict";
import { test } from "node:test";
import { readRun, reportTable, takeRuns } from "../../web/run_metadata.js";
import { REASONS } from "../../web/presets.js";
import { reportView } from "../../web/report_view.js";
import { describe } from "../../web/sentences.js";

const kept = (changes = {}) => ({
  node: "10", method: "balanced", family: "FLUX", steps: 4, schedule: "FFAA", wall_seconds: 1.5, text: "balanced on FLUX", messages: ["A sentence."],
  totals: { peak_bytes: 2048 },
  records: {
    step: [0, 1, 2, 3], phase: 0, sigma: [1, 0.7, 0.4, 0.1], planned: "FFAA", actual: "FFAF", reason: ["planned", "planned", "planned", "rising"],
    calls: 1, full_calls: [1, 1, 0, 1], milliseconds: [100, 101, 5, 99], ratio: 0, cached_bytes: 9, forecast_error: [null, null, null, 0.02],
    indicator: [null, null, 0.9, 0.95],
  },
  ...changes,
});

test("runs are taken out of a workflow, and nothing else", () => {
  const workflow = { extra: { ds: { scale: 1 }, dual_cache: { format: 1, runs: { 5: kept() } } } };
  assert.deepEqual(Object.keys(takeRuns(workflow)), ["5"]);
  assert.deepEqual(workflow, { extra: { ds: { scale: 1 } } });
  for (const odd of [null, {}, { extra: null }, { extra: { dual_cache: 3 } }, { extra: { dual_cache: { format: 2, runs: {} } } }]) {
    assert.deepEqual(takeRuns(odd), {});
  }
});

test("columns become records again", () => {
  const run = readRun(kept());
  assert.deepEqual([run.steps, run.records.length, run.report.schedule.kinds], [4, 4, "FFAA"]);
  assert.deepEqual(run.records[3], {
    step: 3, phase: 0, sigma: 0.1, planned: "A", actual: "F", reason: "rising", calls: 1, full_calls: 1, milliseconds: 99, ratio: 0,
    cached_bytes: 9, forecast_error: 0.02, indicator: 0.95,
  });
  assert.equal(run.text, `Read from the metadata of the picture.\nbalanced on FLUX\n\n${reportTable(run.records)}`);
  assert.match(readRun(kept({ earlier: true })).text, /^This is an earlier run/m);
});

test("the table of a report is there again", () => {
  assert.deepEqual(reportTable(readRun(kept()).records).split("\n"), [
    "step  sigma  ran      calls  in full     ms  cached  error  why",
    "   1      1  F            1        1  100.0     9 B",
    "   2    0.7  F            1        1  101.0     9 B",
    "   3    0.4  A            1        0    5.0     9 B",
    `   4    0.1  F for A      1        1   99.0     9 B   0.02  ${REASONS.rising}`,
  ]);
  const records = [{ step: 0, phase: 1, sigma: 1, planned: "C", actual: "C", ratio: 0.1, calls: 2, full_calls: 0, milliseconds: 3, cached_bytes: 2048 }];
  assert.match(reportTable(records), /tokens .*\n +1b +1  C .* 10 % +2 KiB$/);
  const odd = readRun(kept({ records: { ...kept().records, sigma: "nan", forecast_error: [null, "nan", null, "inf"], cached_bytes: null } }));
  assert.match(odd.text, /nan .*\n.* nan .* nan\n/);
  assert.equal(reportTable([]) + reportTable(Array(49).fill(records[0])), "");
});

test("invalid metadata is ignored", () => {
  for (const odd of [null, {}, kept({ records: undefined }), kept({ records: { actual: "FX", planned: "FF" } }), kept({ steps: 1e9 }),
    kept({ steps: "4" }), kept({ records: { ...kept().records, step: "0" } }), kept({ records: { actual: 5 } })]) {
    assert.equal(readRun(odd), null);
  }
  assert.deepEqual(readRun(kept({ messages: "no list" })).report.messages, []);
});

test("a report alone is drawn with what was measured", () => {
  const run = readRun(kept()), view = reportView(run.report);
  assert.deepEqual(view.bars.map((bar) => [bar.actual, bar.planned, bar.milliseconds, bar.error, bar.indicator]),
    [["F", "F", 100, null, null], ["F", "F", 101, null, null], ["A", "A", 5, null, 0.9], ["F", "A", 99, 0.02, 0.95]]);
  assert.deepEqual([view.editable, view.mode, view.sigmas, view.stopped], [false, "ran", "measured", false]);
  assert.match(view.summary.join(" "), /^Ran 4 steps in 1\.5 s: 3 full, 1 aggressive\.$/);
  assert.match(describe(view, 3), /forecast error 0\.02, indicator 0\.95\.$/);
});

test("reports without evaluations, of stopped runs and without a schedule are drawn too", () => {
  assert.deepEqual([reportView(null).bars, reportView(null).warnings], [[], []]);
  for (const odd of [{ steps: 4, records: [] }, {}]) assert.deepEqual(reportView(odd).warnings, ["Nothing was evaluated in this run."]);
  const { report } = readRun(kept({ steps: 8, schedule: "" }));
  const view = reportView(report);
  assert.deepEqual([view.bars.length, view.done, view.stopped], [8, 4, true]);
});
