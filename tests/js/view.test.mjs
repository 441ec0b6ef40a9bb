// What the plot shows and says, from settings and records alone.

import assert from "node:assert/strict";
import { test } from "node:test";
import { PRESETS } from "../../web/presets.js";
import { buildSchedule, fromJson, presetSchedule, toJson } from "../../web/schedule.js";
import { describe, nextKind, spelled } from "../../web/sentences.js";
import { edited, planOf, viewOf } from "../../web/view.js";
import { size } from "../../web/wording.js";

const VALUES = {
  preset: "custom", steps: 8, interval: 4, pattern: "conservative, aggressive", ratio: 0.1, warmup: 1, tail: 0, start: 0, end: 1,
  explicit: "",
};
const builder = (values = {}, rest = {}) =>
  ({ node: "CacheScheduleBuilder", values: { ...VALUES, ...values }, builder: null, foreign: [], run: null, ...rest });
const SAMPLER = { preset: "balanced", steps: 30, cfg: 1, forecast: "from preset" };
const sampler = (values = {}, rest = {}) =>
  ({ node: "DualCacheSampler", values: { ...SAMPLER, ...values }, builder: null, foreign: [], run: null, ...rest });
const record = (step, actual, more = {}) =>
  ({ step, phase: 0, sigma: 1 - step / 8, planned: actual, actual, reason: "planned", calls: 1, full_calls: Number(actual === "F"),
    milliseconds: actual === "F" ? 100 : 5, ratio: 0.1, cached_bytes: 0, forecast_error: null, ...more });

test("a builder's view follows its values", () => {
  const view = viewOf(builder());
  assert.equal(view.plan.kinds, "FCACFCAC");
  assert.deepEqual([view.editable, view.listed, view.mode, view.sigmas], [true, false, "plan", "planned"]);
  assert.deepEqual(view.bars.map((bar) => bar.sigma), [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]);
  assert.match(view.summary[0], /^8 steps: 2 full, 4 conservative, 2 aggressive\.$/);
  assert.ok(view.warnings.includes("With 8 steps caching can save little."));
  assert.equal(viewOf(builder({ interval: 2 })).plan.kinds, "FCFCFCFC");
});

test("what cannot be planned says why and draws nothing", () => {
  const view = viewOf(builder({ explicit: "CFF" }));
  assert.equal(view.plan, null);
  assert.deepEqual(view.warnings, ["These settings make no plan: letter 1 of explicit must be F, because nothing is cached before the first step."]);
  const said = (context) => viewOf(context).warnings.join(" ");
  assert.equal(said(sampler({}, { builder: { ...VALUES, explicit: '{"format": 1}' } })),
    "The connected Cache Schedule Builder makes no plan: explicit is not a schedule's JSON (kind is missing).");
  assert.deepEqual(view.bars, []);
  assert.equal(view.editable, false);
});

test("the summary has memory and speed-up", () => {
  const view = viewOf(sampler());
  assert.match(view.summary[1], /^Estimated 2\.\d times as fast on FLUX\.1-dev at 1024 × 1024, cache 162 MiB\.$/);
  assert.equal(viewOf(sampler({ forecast: "reuse" })).bytes * 6, view.bytes);
  assert.equal(viewOf(sampler({ cfg: 4 })).bytes, view.bytes * 2);
  assert.deepEqual(viewOf(sampler({ preset: "off" })).warnings, ["No step is skipped, so nothing gets faster."]);
  assert.ok(viewOf(sampler({ preset: "duca" })).warnings.some((line) => line.startsWith("Conservative steps need most of that memory")));
});

test("long gaps are warned of", () => {
  assert.ok(viewOf(builder({ interval: 20, steps: 30 })).warnings.some((line) => line.startsWith("19 steps in a row")));
});

test("a list of another length says that it is scaled, and to what", () => {
  const said = (view) => view.warnings.filter((line) => line.startsWith("The list has"));
  const letters = "FCAF CAFC AFCA";
  assert.deepEqual(said(viewOf(builder({ explicit: letters, steps: 12 }))), []);
  assert.deepEqual(said(viewOf(builder({ explicit: letters, steps: 30 }))), ["The list has 12 letters; it is stretched to 30 steps."]);
  assert.deepEqual(said(viewOf(builder({ explicit: letters, steps: 1 }))), ["The list has 12 letters; it is shrunk to 1 step."]);
  assert.deepEqual(said(viewOf(builder({ explicit: "F", steps: 8 }))), ["The list has 1 letter; it is stretched to 8 steps."]);
  const connected = viewOf(sampler({ steps: 20 }, { builder: { ...VALUES, explicit: letters, steps: 12 } }));
  assert.deepEqual(said(connected), ["The list has 12 letters; it is stretched to 20 steps."]);
  const json = toJson({ kinds: "FCAF", ratios: [0.1, 0.1, 0.2, 0.1], name: "custom", generator: null });
  assert.deepEqual(said(viewOf(builder({ explicit: json, steps: 8 }))), ["The list has 4 letters; it is stretched to 8 steps."]);
  assert.deepEqual(said(viewOf(builder({ explicit: toJson(presetSchedule("balanced", 20)), steps: 8 }))), [], "it is made anew");
});

test("a sampler shows the plan of a connected builder, scaled to its own steps", () => {
  const values = { ...VALUES, steps: 30 };
  const view = viewOf(sampler({ steps: 12 }, { builder: values }));
  assert.equal(view.plan.kinds, buildSchedule({ ...values, steps: 12 }).kinds);
  assert.equal(view.editable, false);
});

test("Dual Cache draws 30 steps, or as many as a builder or a run has", () => {
  const patch = { node: "DualCache", values: { preset: "fast", forecast: "from preset" }, builder: null, foreign: [], run: null };
  assert.equal(viewOf(patch).plan.kinds, presetSchedule("fast", 30).kinds);
  assert.equal(viewOf({ ...patch, builder: { ...VALUES, steps: 9 } }).bars.length, 9);
  const run = { steps: 20, asked: planOf(patch).plan.kinds, records: [record(0, "F")], report: null, text: "" };
  assert.equal(viewOf({ ...patch, run }).plan.kinds, presetSchedule("fast", 20).kinds);
  assert.equal(viewOf({ ...patch, run }).mode, "running");
});

test("a run fills in, marks what changed and sums up", () => {
  const context = sampler({ preset: "fora", steps: 8 });
  const asked = planOf(context).plan.kinds;
  assert.equal(asked, "FAAFAAFA");
  const records = [record(0, "F"), record(1, "A"), record(2, "F", { planned: "A", reason: "rising", milliseconds: 90 })];
  const running = viewOf({ ...context, run: { steps: 8, asked, records, report: null, text: "" } });
  assert.deepEqual([running.mode, running.done, running.sigmas], ["running", 3, "measured"]);
  assert.match(running.summary[0], /^Running: step 4 of 8\. So far 2 full, 1 aggressive\.$/);
  const expected = "Caches of about 3 MiB are expected, of 1 branch.";
  const waiting = viewOf({ ...context, run: { steps: 8, asked, records: [], report: null, text: "", expected } });
  assert.deepEqual(waiting.summary, ["Running: step 1 of 8. So far nothing.", expected]);
  assert.equal(running.bars.at(-1).ran, false);
  assert.ok(running.bars.every((bar, i) => !i || bar.sigma < running.bars[i - 1].sigma));
  const all = [...records, record(3, "F", { forecast_error: 0.9 }), record(4, "A"), record(5, "A"),
    record(6, "F", { forecast_error: 0.031 }), record(7, "A")]; // at step 4 no forecast had been in use
  const report = { wall_seconds: 1.5, totals: { peak_bytes: 2048 }, messages: ["A message."] };
  const view = viewOf({ ...context, run: { steps: 8, asked, records: all, report, text: "head\nNothing was skipped: no.\n" } });
  assert.equal(view.mode, "ran");
  assert.match(view.summary.join(" "), /Ran 8 steps in 1\.5 s: 4 full, 4 aggressive\./);
  assert.match(view.summary.join(" "), /About 2 times as fast as full steps only, by measured step times\. Cached at most 2 KiB\./);
  assert.match(view.summary.join(" "), /1 step did not run as planned\. Worst forecast error 0\.031 \(1 is as large as the feature\)\./);
  assert.deepEqual(view.warnings, ["A message.", "Nothing was skipped: no."]);
  assert.deepEqual(view.bars.filter((bar) => bar.changed).map((bar) => [bar.planned, bar.actual]), [["A", "F"]]);
  assert.match(describe(view, 2), /^Step 3 of 8, full in place of aggressive: the sampler went back to a higher noise level.*90 ms\.$/);
  assert.match(describe(view, 3), /Sigma 0\.625, 100 ms, forecast error 0\.9\.$/);
});

test("a run of another plan is not shown as this one's", () => {
  const view = viewOf(sampler({}, { run: { steps: 30, asked: "F".repeat(30), records: [record(0, "F")], report: null, text: "" } }));
  assert.equal(view.mode, "plan");
  assert.ok(view.warnings.includes("The last run used another plan."));
});

test("a run that has a step more or less than the widget says is shown as it was, until the widget changes", () => {
  const asked = planOf(sampler({ steps: 8 })).plan.kinds, run = { steps: 9, asked, records: [record(0, "F")], report: null, text: "" };
  assert.deepEqual([viewOf(sampler({ steps: 8 }, { run })).bars.length, viewOf(sampler({ steps: 8 }, { run })).mode], [9, "running"]);
  assert.deepEqual([viewOf(sampler({ steps: 9 }, { run })).bars.length, viewOf(sampler({ steps: 9 }, { run })).mode], [9, "plan"]);
});

test("a builder shows the run of the node that it feeds, and can still be edited", () => {
  const asked = planOf(builder()).plan.kinds;
  const records = [...asked].map((kind, step) => record(step, step === 2 ? "F" : kind, { planned: kind, sigma: 14.6 - step, reason: "rising" }));
  const run = { steps: 8, asked, records, report: { wall_seconds: 1, messages: [] }, text: "" };
  const view = viewOf(builder({}, { run }));
  assert.deepEqual([view.mode, view.sigmas, view.editable, view.plan.kinds], ["ran", "measured", true, asked]);
  assert.deepEqual([view.bars[0].sigma, view.bars[2].actual, view.bars[2].planned], [14.6, "F", "A"]);
  assert.ok(view.bars.every((bar) => bar.ran && bar.milliseconds > 0));
  assert.match(describe(view, 2), /ms\. Click to make it full\.$/);
  assert.equal(viewOf(builder({ explicit: edited(view.plan, 2, "F", 0.1) }, { run })).mode, "plan", "another plan has not run yet");
  assert.equal(viewOf(builder({}, { run: { ...run, steps: 12 } })).mode, "plan", "nor at another number of steps");
});

test("a run that is stopped shows how far it came", () => {
  const context = sampler({ preset: "fora", steps: 8 }), records = [record(0, "F"), record(1, "A"), record(2, "A")];
  const run = { steps: 8, asked: "FAAFAAFA", records, report: { wall_seconds: 1.5, messages: [] }, text: "" };
  const view = viewOf({ ...context, run });
  assert.deepEqual([view.mode, view.stopped, view.done], ["ran", true, 3]);
  assert.deepEqual(view.summary.slice(0, 2), ["Stopped after 3 of 8 steps.", "Ran in 1.5 s: 1 full, 2 aggressive."]);
  const whole = viewOf({ ...context, run: { ...run, records: [..."FAAFAAFA"].map((kind, step) => record(step, kind)) } });
  assert.deepEqual([whole.stopped, whole.summary[0]], [false, "Ran 8 steps in 1.5 s: 3 full, 5 aggressive."]);
});

test("measured times say faster or slower, and nothing where they scatter", () => {
  const timed = (kinds, times) => {
    const records = [...kinds].map((kind, step) => record(step, kind, { milliseconds: times[step] }));
    const run = { steps: 8, asked: kinds, records, report: { wall_seconds: 1 }, text: "" };
    return viewOf(builder({ explicit: kinds }, { run })).summary.find((line) => line.includes("step times"));
  };
  assert.match(timed("FFFFAAAA", [100, 100, 100, 100, 5, 5, 5, 5]), /^About 1\.9 times as fast as full steps only/);
  assert.match(timed("FFFFAAAA", [900, 100, 100, 100, 5, 5, 5, 5]), /^About 1\.9 times as fast/, "the first step loads the model");
  assert.match(timed("FFFFAAAA", [100, 100, 100, 100, 150, 150, 150, 150]), /^About 1\.3 times slower than full steps only/);
  assert.equal(timed("FFFFAAAA", [100, 30, 100, 300, 5, 5, 5, 5]), undefined);
});

test("a forecast that is far off is warned of", () => {
  const view = (error) => viewOf(builder({}, {
    run: { steps: 8, asked: "FCACFCAC", records: [..."FCACFCAC"].map((kind, step) => record(step, kind, { forecast_error: step === 4 ? error : null })),
      report: { wall_seconds: 1 }, text: "" },
  })).warnings.some((line) => line.startsWith("A forecast error was above 0.5."));
  assert.deepEqual([0.3, 0.6, 1.04].map(view), [false, true, true]);
});

test("a list of one's own says that it stands above the settings", () => {
  const said = (values, rest) => viewOf(builder(values, rest)).warnings.filter((line) => line.startsWith("The list in explicit is in use"));
  assert.deepEqual(said({}), []);
  assert.deepEqual(said({ explicit: "FFAAFFAA" }), ["The list in explicit is in use: preset and the settings below have no effect until you clear it."]);
  assert.match(said({ explicit: "FFCAFFCA" })[0], /until you clear it; ratio still applies\.$/);
  assert.match(said({ explicit: toJson(presetSchedule("duca", 8)) })[0], /until you clear it\.$/);
});

test("the plot of a plan that is solved in the run shows the plan of balanced", () => {
  const said = (context) => viewOf(context).warnings.some((line) => line.startsWith("The plot shows the plan of balanced;"));
  const planned = { preset: "planned" };
  assert.ok(said(sampler(planned)) && !said(sampler()));
  assert.equal(viewOf(sampler(planned)).plan.kinds, viewOf(sampler()).plan.kinds, "which is balanced");
  assert.ok(!said(sampler(planned, { builder: VALUES })) && !said(sampler(planned, { solved: SOLVED })));
  assert.ok(!said({ ...sampler(planned), foreign: ["schedule"] }));
});

test("several evaluations of a step count as one bar, those beyond the plan as none", () => {
  const context = sampler({ preset: "fora", steps: 3 });
  const records = [
    record(0, "F"), record(0, "F", { phase: 1 }), record(1, "A"), record(1, "F", { phase: 1, planned: "A", reason: "rising" }),
    record(2, "A"), record(3, "F", { reason: "beyond" }),
  ];
  const view = viewOf({ ...context, run: { steps: 3, asked: "FAA", records, report: { wall_seconds: 1 }, text: "" } });
  assert.deepEqual(view.bars.map((bar) => [bar.actual, bar.evaluations, bar.milliseconds]), [["F", 2, 200], ["F", 2, 105], ["A", 1, 5]]);
  assert.match(describe(view, 1), /2 evaluations/);
});

test("values that are not finite, which come as strings, do no harm", () => {
  const context = sampler({ preset: "fora", steps: 3 });
  const odd = record(0, "F", { sigma: "inf", milliseconds: "nan", forecast_error: "nan" });
  const view = viewOf({ ...context, run: { steps: 3, asked: "FAA", records: [odd], report: null, text: "" } });
  assert.ok(view.bars.every((bar) => Number.isFinite(bar.sigma)));
  assert.equal(view.bars[0].error, null);
});

test("a click turns F into C, C into A, A into F", () => {
  assert.deepEqual(["F", "C", "A"].map(nextKind), ["C", "A", "F"]);
});

test("an edit writes letters where the ratio is the node's, else JSON; both read back as the edited plan", () => {
  const plain = viewOf(builder()).plan;
  assert.equal(edited(plain, 2, "F", 0.1), "FCFCFCAC");
  const again = buildSchedule({ ...VALUES, explicit: edited(plain, 2, "F", 0.1) });
  assert.deepEqual([again.kinds, again.generator], ["FCFCFCAC", null]);
  const text = edited(plain, 2, "F", 0.4);
  assert.deepEqual(fromJson(text).ratios, plain.ratios);
  assert.equal(buildSchedule({ ...VALUES, ratio: 0.4, explicit: text }).kinds, "FCFCFCAC");
});

test("steps are described in words", () => {
  const view = viewOf(builder());
  assert.match(describe(view, 0), /^Step 1 of 8, full: every block runs on every token\. The first step is always full/);
  assert.match(describe(view, 1), /^Step 2 of 8, conservative: attention is replayed from step 1, 10 % .* Click to make it aggressive\.$/);
  assert.match(describe(view, 6), /^Step 7 of 8, aggressive: the blocks are skipped, their result is rebuilt from step 5 and earlier\./);
  assert.equal(describe(view, 8), "");
  assert.match(spelled(view), /Steps 1 full, 2 conservative, 3 aggressive, 4 conservative, 5 full/);
  assert.match(spelled(viewOf(sampler({ preset: "off" }))), /Steps 1 to 30 full\./);
});

test("sizes read like those of the report", () => {
  assert.deepEqual([0, 1023, 1024, 56623104, 3255828480].map(size), ["0 B", "1020 B", "1 KiB", "54 MiB", "3.03 GiB"]);
});

test("every preset has a view", () => {
  for (const preset of Object.keys(PRESETS)) assert.equal(viewOf(sampler({ preset })).error, null, preset);
});

const SOLVED = {
  kinds: "FAAFAAFA", expected: [0, 0.01, 0.02, 0, 0.03, 0.05, 0, 0.01], sigmas: [9, 8, 7, 6, 5, 4, 3, 2, 0], text: ["Expected 0.05."], stale: false,
};
const planner = (rest = {}) => ({ node: "PlanCache", values: { speedup: 3 }, builder: null, foreign: [], run: null, solved: null, ...rest });

test("a plan to be solved says when it shows", () => {
  const view = viewOf(planner());
  assert.deepEqual([view.plan, view.error, view.bars], [null, null, []]);
  assert.deepEqual(view.warnings, ["The plan is solved when this node runs, and then shows here."]);
});

test("a solved plan shows its steps, noise levels and expected errors", () => {
  const view = viewOf(planner({ solved: SOLVED }));
  assert.equal(view.plan.kinds, SOLVED.kinds);
  assert.deepEqual(view.bars.map((bar) => bar.expected), [null, 0.01, 0.02, null, 0.03, 0.05, null, 0.01]);
  assert.deepEqual(view.bars.map((bar) => bar.sigma), SOLVED.sigmas.slice(0, 8));
  assert.deepEqual(view.summary, ["8 steps: 3 full, 5 aggressive.", "Expected 0.05."]);
  assert.match(describe(view, 5), /Expected forecast error 0\.05\.$/);
  assert.equal(view.editable, false);
  assert.ok(viewOf(planner({ solved: { ...SOLVED, stale: true } })).warnings.some((line) => line.startsWith("Settings have changed")));
});

test("a sampler fed by a solved plan shows it, and its expectation beside what was measured", () => {
  const view = viewOf(sampler({ steps: 8 }, { solved: SOLVED }));
  assert.equal(view.plan.kinds, SOLVED.kinds);
  const run = { steps: 8, records: [...SOLVED.kinds].map((kind, step) => record(step, kind)), report: null, text: "", asked: SOLVED.kinds };
  const ran = viewOf(sampler({ steps: 8 }, { solved: SOLVED, run }));
  assert.match(describe(ran, 5), /expected error 0\.05\.$/);
  const scaled = viewOf(sampler({ steps: 16 }, { solved: SOLVED }));
  assert.ok(scaled.bars.length === 16 && scaled.bars.every((bar) => bar.expected === null));
});
