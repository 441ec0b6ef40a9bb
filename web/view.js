/** What the schedule plot shows and says: a view state made from settings and a run, and its sentences. Pure, without a page. */

import { FLUX_DEV, FORECASTS as TABLE, FROM_PRESET, FROM_RECIPE, LOW_STEPS, PRESETS, REASONS, RECIPE } from "./presets.js";
import {
  LETTERS, ScheduleError, buildSchedule, counts, estimatedSpeedup, explicit, fromJson, peakBytes, presetSchedule, recipeSchedule, scaled, toJson,
} from "./schedule.js";

/**
 * @typedef {import("./schedule.js").Schedule} Schedule
 * @typedef {object} StepRecord one evaluation, as cache_core/report.py writes it; numbers that are not finite come as strings
 * @property {number} step
 * @property {number} phase
 * @property {number | string} sigma
 * @property {string} planned
 * @property {string} actual
 * @property {string} reason
 * @property {number | string} milliseconds
 * @property {number | string} ratio
 * @property {number | string | null} forecast_error
 * @property {number | string | null} [indicator]
 * @typedef {object} Run
 * @property {number} steps
 * @property {StepRecord[]} records
 * @property {Record<string, any> | null} report null while it runs
 * @property {string} text
 * @property {string} [expected] what its caches will hold, in words
 * @typedef {object} Context what a view is made of
 * @property {string} node node id, such as DualCacheSampler
 * @property {Record<string, any>} values by widget name
 * @property {Record<string, any> | null} builder the widget values of a connected Cache Schedule Builder
 * @property {string[]} foreign names of inputs whose values come from nodes that cannot be read before the run
 * @property {Run & {asked: string} | null} run asked: the kinds of its settings when the run began
 * @property {Solved | null} [solved] what Plan Cache has solved last: this node, or the one that gives it its schedule
 * @typedef {object} Solved
 * @property {string} kinds
 * @property {number[]} expected relative error of each step's forecast, 0 at full steps
 * @property {number[]} sigmas one more than steps
 * @property {string[]} text what to expect, in sentences
 * @property {boolean} stale whether the settings have changed since
 * @typedef {object} Bar
 * @property {string} planned
 * @property {string} actual what ran, or the planned kind before that
 * @property {boolean} ran
 * @property {boolean} changed whether it did not run as planned
 * @property {string} reason why, in words
 * @property {number} ratio
 * @property {number} sigma
 * @property {number | null} milliseconds
 * @property {number | null} error of the forecast, as measured
 * @property {number | null} expected error of the forecast, as solved before the run
 * @property {number | null} indicator what an adaptive forecast went by
 * @property {number} evaluations
 * @typedef {object} View
 * @property {string} node
 * @property {boolean} editable
 * @property {boolean} listed whether the plan is an explicit list
 * @property {Schedule | null} plan
 * @property {string | null} error
 * @property {Bar[]} bars
 * @property {"planned" | "measured"} sigmas
 * @property {"plan" | "running" | "ran"} mode
 * @property {number} done steps that have run
 * @property {boolean} stopped whether the run ended before its last step
 * @property {number} speedup
 * @property {number} bytes
 * @property {string[]} summary
 * @property {string[]} warnings
 */

export const BUILDER = "CacheScheduleBuilder";
export const SAMPLER = "DualCacheSampler";
export const PATCH = "DualCache";
export const FORECAST = "FeatureForecast";
export const PLANNER = "PlanCache";
const PLANNED = "planned"; // the preset whose plan is made when it runs
/** Snapshots that a forecast keeps. @type {Record<string, number>} */
const FORECASTS = TABLE;
/** @type {Record<string, string>} */
export const WORDS = { F: "full", C: "conservative", A: "aggressive" };
/** Steps assumed where nothing tells them. */
export const ASSUMED_STEPS = 30;
const LONG_GAP = 8;
const MUCH_MEMORY = 2 ** 31;
const GROUPS_READ = 40;
const MUCH_SCATTER = 0.25; // of a full step's time
const MUCH_ERROR = 0.5;

/** @param {number} number @param {string} [one] @param {string} [many] */
export const plural = (number, one = "step", many = `${one}s`) => `${number} ${number === 1 ? one : many}`;
/** @param {unknown} value @returns {number | null} */
const finite = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
/** @param {number} value @param {number} [digits] */
export const short = (value, digits = 3) => String(Number(value.toPrecision(digits)));

/** Bytes for people, as cache_core/report.py writes them. @param {number} count */
export function size(count) {
  for (const unit of ["B", "KiB", "MiB"]) {
    if (count < 1024) return `${short(count)} ${unit}`;
    count /= 1024;
  }
  return `${short(count)} GiB`;
}

/** The plan of a recipe written as JSON; the node itself checks the rest. @param {string} text @returns {Record<string, any>} */
function readRecipe(text) {
  let recipe;
  try {
    recipe = JSON.parse(text);
  } catch {
    throw new ScheduleError("recipe is not valid JSON.");
  }
  if (recipe?.kind !== RECIPE.kind) throw new ScheduleError(`kind must be "${RECIPE.kind}": this is no recipe.`);
  const { format } = RECIPE;
  if (recipe.format !== format) throw new ScheduleError(`format must be ${format}; other versions of the recipe cannot be read.`);
  return recipe;
}

/** What a node without a plan says. @param {Context} context @param {string | null} error @returns {string} */
function withoutPlan({ node, builder }, error) {
  if (error === null) return "The plan is solved when this node runs, and then shows here.";
  return `${node !== BUILDER && builder ? "The connected Cache Schedule Builder makes" : "These settings make"} no plan: ${error}`;
}

/**
 * The plan that a node's settings describe, or why they describe none.
 * @param {Context} context @returns {{plan: Schedule | null, error: string | null}}
 */
export function planOf({ node, values, builder, solved }) {
  const source = node === BUILDER ? values : builder;
  if (node === PLANNER && !solved) return { plan: null, error: null };
  try {
    const recipe = node === FORECAST ? String(values.recipe ?? "").trim() : "";
    const steps = values.steps ?? ASSUMED_STEPS;
    const plan = solved ? explicit(solved.kinds) : source ? buildSchedule(source) : recipe ? recipeSchedule(readRecipe(recipe), steps) : presetSchedule(values.preset, steps);
    return { plan: node === SAMPLER ? scaled(plan, values.steps) : plan, error: null };
  } catch (error) {
    if (error instanceof ScheduleError) return { plan: null, error: error.message };
    throw error;
  }
}

/** @param {Context} context @returns {View} */
export function viewOf(context) {
  const { node, values, foreign } = context;
  const { plan: settled, error } = planOf(context);
  let run = settled && context.run?.asked === settled.kinds ? context.run : null;
  if ((node === BUILDER || node === PLANNER) && run?.steps !== settled?.kinds.length) run = null;
  // The sampler decides how many steps there are: Dual Cache learns it from the run, and some schedulers add or leave out a step.
  const plan = settled && run ? scaled(settled, run.steps) : settled;
  const source = node === BUILDER ? values : context.builder;
  const listed = String(source?.explicit ?? "").trim() !== "";
  /** @type {View} */
  const view = {
    node, plan, error, listed, editable: node === BUILDER && plan !== null && !foreign.includes("explicit"),
    bars: [], sigmas: "planned", mode: "plan", done: 0, stopped: false, speedup: 1, bytes: 0, summary: [], warnings: [],
  };
  if (!plan) {
    view.warnings = [withoutPlan(context, error)];
    return view;
  }
  const { level, snapshots, aggressive } = partsOf(context);
  const memory = { snapshots, level, branches: finite(values.cfg) !== null && values.cfg !== 1 ? 2 : 1 };
  view.speedup = estimatedSpeedup(plan, FLUX_DEV, "built", false, aggressive);
  view.bytes = peakBytes(plan, FLUX_DEV, memory);
  view.bars = barsOf(plan, run);
  const { solved } = context, length = plan.kinds.length;
  if (solved?.kinds.length === length) {
    view.bars.forEach((bar, i) => {
      bar.expected = solved.expected[i] > 0 ? solved.expected[i] : null;
      if (!bar.ran) bar.sigma = solved.sigmas[i];
    });
    view.sigmas = "measured";
  }
  if (run && node !== PLANNER) {
    view.mode = run.report ? "ran" : "running";
    view.done = view.bars.filter((bar) => bar.ran).length;
  } else {
    view.bars.forEach((bar, i) => {
      const kind = plan.kinds[i];
      const ratio = plan.ratios[i];
      Object.assign(bar, { planned: kind, actual: kind, ratio, ran: false, changed: false, milliseconds: null, error: null, indicator: null });
    });
  }
  if (run?.records.length) view.sigmas = "measured";
  view.stopped = view.mode === "ran" && view.done < view.bars.length;
  view.summary = view.mode === "plan" || !run ? planSummary(view, memory.branches) : runSummary(view, run);
  if (node === PLANNER && solved) view.summary = [view.summary[0], ...solved.text];
  view.warnings = warningsOf(view, context, run);
  return view;
}

/**
 * Where the forecast puts features back, how many snapshots it keeps and what an aggressive step costs beside a full one.
 * @param {Context} context @returns {{level: string, snapshots: number, aggressive: number}}
 */
function partsOf({ node, values, builder }) {
  const name = node === BUILDER && String(values.explicit ?? "").trim() ? "" : (values.preset ?? builder?.preset);
  // A plan of one's own runs under the preset of another node; most of them are like the default.
  const known = PRESETS[/** @type {keyof typeof PRESETS} */ (Object.hasOwn(PRESETS, name) ? name : "balanced")];
  const parts = { level: known.level, snapshots: known.snapshots, aggressive: known.aggressive };
  if (node === BUILDER) return parts;
  if (node === FORECAST && (values.level ?? FROM_RECIPE) !== FROM_RECIPE) Object.assign(parts, { level: values.level, aggressive: 0 });
  if (values.forecast !== undefined && values.forecast !== FROM_PRESET && values.forecast !== FROM_RECIPE) {
    parts.snapshots = node === FORECAST && values.order ? values.order + 1 : (FORECASTS[values.forecast] ?? 2);
  }
  return parts;
}

/** @param {Schedule} plan @param {Run | null} run @returns {Bar[]} */
export function barsOf({ kinds, ratios }, run) {
  const steps = kinds.length;
  /** @type {Bar[]} */
  const bars = [...kinds].map((kind, i) => ({
    planned: kind, actual: kind, ran: false, changed: false, reason: "", ratio: ratios[i], sigma: 1 - i / steps, milliseconds: null,
    error: null, expected: null, indicator: null, evaluations: 0,
  }));
  for (const record of run?.records ?? []) {
    const bar = bars[record.step];
    if (!bar) continue; // an evaluation beyond the plan
    // A step of several evaluations counts as the most costly of them, and takes its noise level from the first.
    if (!bar.ran || LETTERS.indexOf(record.actual) < LETTERS.indexOf(bar.actual)) bar.actual = record.actual;
    if (!bar.ran) bar.sigma = finite(record.sigma) ?? bar.sigma;
    if (record.actual !== record.planned) {
      bar.changed = true;
      bar.reason = Object.hasOwn(REASONS, record.reason) ? REASONS[/** @type {keyof typeof REASONS} */ (record.reason)] : record.reason;
    }
    bar.planned = record.planned;
    bar.ratio = finite(record.ratio) ?? bar.ratio;
    bar.milliseconds = (bar.milliseconds ?? 0) + (finite(record.milliseconds) ?? 0);
    const error = finite(record.forecast_error);
    if (error !== null) bar.error = Math.max(bar.error ?? 0, error);
    bar.indicator ??= finite(record.indicator ?? null);
    bar.ran = true;
    bar.evaluations++;
  }
  const measured = bars.filter((bar) => bar.ran);
  const last = measured[measured.length - 1];
  // What is still to come of a running curve falls straight to zero.
  bars.forEach((bar, i) => {
    if (last && !bar.ran) bar.sigma = last.sigma * (1 - (i - measured.length + 1) / (steps - measured.length + 1));
  });
  return bars;
}

/** @param {string} kinds @returns {string} such as "12 full, 18 aggressive" */
function countWords(kinds) {
  const of = counts(kinds);
  return Object.entries(of).filter(([, n]) => n).map(([kind, n]) => `${n} ${WORDS[kind]}`).join(", ");
}

/** @param {View} view @param {number} branches @returns {string[]} */
function planSummary({ plan, speedup, bytes, bars }, branches) {
  const lines = [`${plural(bars.length)}: ${countWords(plan?.kinds ?? "")}.`];
  if (bytes) {
    const streams = branches > 1 ? ", with guidance" : "";
    lines.push(`Estimated ${short(speedup, 2)} times as fast on FLUX.1-dev at 1024 × 1024${streams}, cache ${size(bytes)}.`);
  }
  return lines;
}

/** @param {View} view @param {Run} run @returns {string[]} */
export function runSummary(view, run) {
  const ran = view.bars.filter((bar) => bar.ran);
  const kinds = countWords(ran.map((bar) => bar.actual).join(""));
  const step = `step ${Math.min(view.done + 1, run.steps)} of ${run.steps}`;
  if (view.mode === "running") return [`Running: ${step}. So far ${kinds || "nothing"}.`, ...(run.expected ? [run.expected] : [])];
  const report = run.report ?? {}, took = `in ${short(finite(report.wall_seconds) ?? 0)} s: ${kinds || "nothing"}.`;
  const lines = view.stopped ? [`Stopped after ${view.done} of ${plural(view.bars.length)}.`, `Ran ${took}`] : [`Ran ${plural(view.done)} ${took}`];
  const gain = measuredGain(ran);
  if (gain !== null) {
    const how = gain >= 1 ? `${short(gain, 2)} times as fast as` : `${short(1 / gain, 2)} times slower than`;
    lines.push(`About ${how} full steps only, by measured step times.`);
  }
  const held = finite(report.totals?.peak_bytes) ?? 0;
  if (held) lines.push(`Cached at most ${size(held)}.`);
  const changed = ran.filter((bar) => bar.changed).length;
  if (changed) lines.push(`${plural(changed)} did not run as planned.`);
  const worst = worstError(ran);
  if (worst >= 0) lines.push(`Worst forecast error ${short(worst)}, relative: 1 is as large as the feature itself.`);
  return lines;
}

/** The largest forecast error of full steps behind cheaper ones, which forecasts have stood in for, or -1. @param {Bar[]} bars */
const worstError = (bars) => Math.max(-1, ...bars.map((bar, i) => (i && bars[i - 1].actual !== "F" ? (bar.error ?? -1) : -1)));

/**
 * How many times as fast the steps ran as if all had been full; null where nothing was skipped or the times scatter too widely to tell.
 * @param {Bar[]} ran
 */
function measuredGain(ran) {
  /** @param {number[]} values */
  const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
  const times = ran.map((bar) => bar.milliseconds ?? 0), full = times.filter((_, i) => ran[i].actual === "F");
  if (!full.length || full.length === ran.length) return null;
  const steady = full.length > 1 ? full.slice(1) : full; // the first step often carries the loading of the model
  const usual = median(steady), scatter = median(steady.map((time) => Math.abs(time - usual)));
  if (!(usual > 0) || scatter > MUCH_SCATTER * usual) return null;
  times[0] = Math.min(times[0], usual);
  return (usual * times.length) / times.reduce((sum, time) => sum + time, 0);
}

/**
 * How many letters the list of a builder's settings has; 0 without one, and for JSON that a generator makes anew at any number of steps.
 * @param {Record<string, any> | null} source settings that make a plan
 */
function listLength(source) {
  const text = String(source?.explicit ?? "").trim();
  if (!text.startsWith("{")) return text.replace(/\s+/g, "").length;
  const { kinds, generator } = fromJson(text);
  return generator ? 0 : kinds.length;
}

/** @param {View} view @param {Context} context @param {Run | null} run @returns {string[]} */
function warningsOf(view, { node, values, foreign, builder, run: last, solved }, run) {
  const kinds = view.plan?.kinds ?? "", steps = kinds.length;
  const found = [];
  if (node === BUILDER && view.listed) {
    const ratio = kinds.includes("C") && !String(values.explicit).trim().startsWith("{") ? ", but for ratio," : "";
    found.push(`A list of your own is in use; preset and the settings below${ratio} do not count until you clear it.`);
  }
  if (view.mode === "ran" && run) {
    const nothing = run.text.split("\n").find((line) => line.startsWith("Nothing was skipped"));
    if (worstError(view.bars) > MUCH_ERROR) {
      found.push("A forecast was off by more than half of the feature. If the picture has changed, plan more full steps.");
    }
    return [...found, ...(run.report?.messages ?? []), ...(nothing ? [nothing] : [])];
  }
  if (view.mode === "running") return found;
  if (/^F*$/.test(kinds)) found.push("No step is skipped, so nothing gets faster.");
  else if (steps < LOW_STEPS) found.push(`With ${plural(steps)} caching can save little.`);
  const letters = listLength(node === BUILDER ? values : builder);
  if (letters && letters !== steps) {
    found.push(`The list has ${plural(letters, "letter")}; it is ${letters < steps ? "stretched" : "shrunk"} to ${plural(steps)}.`);
  }
  const gap = Math.max(...kinds.split("F").map((part) => part.length));
  if (gap >= LONG_GAP) found.push(`${gap} steps in a row run without a full one; expect the picture to change.`);
  if (view.bytes >= MUCH_MEMORY && kinds.includes("C")) {
    found.push("Conservative steps need most of that memory; a plan of full and aggressive steps needs little.");
  }
  for (const name of foreign) {
    found.push(name === "schedule" ? "The plan comes from another node and shows once it has run; this is the preset's."
      : `The value of ${name} comes from another node and may differ from what is drawn.`);
  }
  if (solved?.stale) found.push("Settings have changed since this plan was solved; it is solved anew when it runs.");
  const recipe = node === FORECAST && String(values.recipe ?? "").trim();
  if (values.preset === PLANNED && node !== BUILDER && !recipe && !builder && !solved && !foreign.includes("schedule")) {
    found.push("Drawn as balanced; the run uses this model's profile if there is one that fits.");
  }
  if ((node === PATCH || node === FORECAST) && !builder && !last && !solved) {
    found.push(`Drawn for ${plural(steps)}; the sampler decides how many there are.`);
  }
  if (last && !run && node !== BUILDER && node !== PLANNER) found.push("The last run used another plan.");
  return found;
}

/** One step in words. @param {View} view @param {number} index counted from 0 @returns {string} */
export function describe(view, index) {
  const bar = view.bars[index];
  if (!bar) return "";
  const head = `Step ${index + 1} of ${view.bars.length}, ${WORDS[bar.actual]}`;
  const before = view.bars.slice(0, index).map((b) => b.actual).lastIndexOf("F") + 1;
  const what = {
    F: "every block runs on every token.",
    C: `attention is kept from step ${before}, ${short(100 * bar.ratio)} % of the tokens are computed afresh.`,
    A: `the blocks are skipped, their result is rebuilt from step ${before}${before > 1 ? " and earlier" : ""}.`,
  }[bar.actual];
  const why = `in place of ${WORDS[bar.planned]}: ${bar.reason || "the plan could not be kept"}.`;
  const parts = [bar.changed ? `${head} ${why}` : `${head}: ${what}`];
  if (bar.ran) {
    const facts = [`Sigma ${short(bar.sigma)}`, `${short(bar.milliseconds ?? 0)} ms`];
    if (bar.evaluations > 1) facts.push(`${bar.evaluations} evaluations`);
    if (bar.error !== null) facts.push(`forecast error ${short(bar.error)}`);
    if (bar.indicator !== null) facts.push(`indicator ${short(bar.indicator)}`);
    if (bar.expected !== null) facts.push(`expected error ${short(bar.expected)}`);
    parts.push(`${facts.join(", ")}.`);
  } else if (bar.expected !== null) {
    parts.push(`Expected forecast error ${short(bar.expected)}.`);
  }
  if (view.editable) {
    const first = "The first step is always full: nothing is cached before it.";
    parts.push(index ? `Click to make it ${WORDS[nextKind(bar.planned)]}.` : first);
  }
  return parts.join(" ");
}

/** The plan or the run as one text, for those who do not see the plot. @param {View} view @returns {string} */
export function spelled(view) {
  const groups = [];
  for (let i = 0; i < view.bars.length; ) {
    let j = i;
    while (j + 1 < view.bars.length && view.bars[j + 1].actual === view.bars[i].actual) j++;
    groups.push(`${i === j ? i + 1 : `${i + 1} to ${j + 1}`} ${WORDS[view.bars[i].actual]}`);
    i = j + 1;
  }
  const steps = groups.length ? `Steps ${groups.slice(0, GROUPS_READ).join(", ")}${groups.length > GROUPS_READ ? ", and so on" : ""}.` : "";
  return [...view.summary, ...view.warnings, steps].filter(Boolean).join(" ");
}

/** The kind that a click turns a step into. @param {string} kind */
export const nextKind = (kind) => LETTERS[(LETTERS.indexOf(kind) + 1) % LETTERS.length];

/**
 * The text of the `explicit` input once step `index` is of another kind; letters alone where the node's ratio says the rest, else JSON.
 * @param {Schedule} plan @param {number} index from 1, since the first step stays full @param {string} kind @param {unknown} ratio
 * @returns {string}
 */
export function edited(plan, index, kind, ratio) {
  const kinds = plan.kinds.slice(0, index) + kind + plan.kinds.slice(index + 1);
  const plain = plan.ratios.every((value, i) => kinds[i] !== "C" || value === ratio);
  return plain ? kinds : toJson({ kinds, ratios: plan.ratios, name: "custom", generator: null });
}
