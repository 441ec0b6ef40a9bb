/**
 * The view state of the schedule plot, made from a node's settings and its run. plot.js draws it, sentences.js words it. Pure, without a page.
 */

import { BUILDER, FORECAST, PLANNER, SAMPLER } from "./node_ids.js";
import { FLUX_DEV, FORECASTS as TABLE, FROM_PRESET, FROM_RECIPE, PRESETS, REASONS, RECIPE } from "./presets.js";
import {
  LETTERS, ScheduleError, buildSchedule, estimatedSpeedup, explicit, peakBytes, presetSchedule, recipeSchedule, scaled, toJson,
} from "./schedule.js";
import { planSummary, runSummary, warningsOf } from "./sentences.js";
import { finite } from "./wording.js";

/**
 * @typedef {import("./schedule.js").Schedule} Schedule
 * @typedef {object} StepRecord one evaluation, as cache_core/report/run_report.py writes it; numbers that are not finite come as strings
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
 * @property {string} [expected] a sentence on how much memory its caches will take
 * @typedef {object} Context what a view is made of
 * @property {string} node node id, such as DualCacheSampler
 * @property {Record<string, any>} values by widget name
 * @property {Record<string, any> | null} builder the widget values of a connected Cache Schedule Builder
 * @property {string[]} foreign names of inputs whose values other nodes compute in the run
 * @property {Run & {asked: string} | null} run asked: the kinds of its settings when the run began
 * @property {Solved | null} [solved] the last solution of Plan Cache: of this node, or of the one that feeds its schedule
 * @typedef {object} Solved
 * @property {string} kinds
 * @property {number[]} expected relative error of each step's forecast, 0 at full steps
 * @property {number[]} sigmas one more than steps
 * @property {string[]} text sentences on what to expect
 * @property {boolean} stale whether the settings have changed since
 * @typedef {object} Bar
 * @property {string} planned
 * @property {string} actual what ran, or the planned kind before that
 * @property {boolean} ran
 * @property {boolean} changed whether it did not run as planned
 * @property {string} reason why it did not run as planned, as a sentence part
 * @property {number} ratio
 * @property {number} sigma
 * @property {number | null} milliseconds
 * @property {number | null} error of the forecast, as measured
 * @property {number | null} expected error of the forecast, as solved before the run
 * @property {number | null} indicator the gain or agreement that an adaptive predictor used
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

/** Snapshots that a predictor keeps. @type {Record<string, number>} */
const FORECASTS = TABLE;
/** Number of steps where neither a setting nor a run gives it. */
export const ASSUMED_STEPS = 30;

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

/** The warning of a node without a plan. @param {Context} context @param {string | null} error @returns {string} */
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
  // The sampler sets the number of steps: Dual Cache learns it from the run, and some schedulers add or leave out a step.
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
 * The level, how many snapshots the predictor keeps, and the cost of an aggressive step as a share of a full one.
 * @param {Context} context @returns {{level: string, snapshots: number, aggressive: number}}
 */
function partsOf({ node, values, builder }) {
  const name = node === BUILDER && String(values.explicit ?? "").trim() ? "" : (values.preset ?? builder?.preset);
  // An explicit list runs with the preset of the node it feeds, which is not known here; assume the default preset.
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
    // A step with several evaluations shows the kind of the most costly one and the noise level of the first.
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
  // Steps that have not run yet: a straight line from the last measured noise level to zero.
  bars.forEach((bar, i) => {
    if (last && !bar.ran) bar.sigma = last.sigma * (1 - (i - measured.length + 1) / (steps - measured.length + 1));
  });
  return bars;
}

/**
 * The text of the input `explicit` after step `index` gets another kind: letters where the node's ratio gives the rest, else JSON.
 * @param {Schedule} plan @param {number} index from 1, since the first step stays full @param {string} kind @param {unknown} ratio
 * @returns {string}
 */
export function edited(plan, index, kind, ratio) {
  const kinds = plan.kinds.slice(0, index) + kind + plan.kinds.slice(index + 1);
  const plain = plan.ratios.every((value, i) => kinds[i] !== "C" || value === ratio);
  return plain ? kinds : toJson({ kinds, ratios: plan.ratios, name: "custom", generator: null });
}
