/** The sentences of the schedule plot: summary, warnings, one step, and all of it for screen readers. Pure, without a page. */

import { BUILDER, FORECAST, PATCH, PLANNER } from "./node_ids.js";
import { LOW_STEPS } from "./presets.js";
import { LETTERS, fromJson } from "./schedule.js";
import { KIND_NAMES, countWords, finite, plural, short, size } from "./wording.js";

/**
 * @typedef {import("./view.js").Bar} Bar
 * @typedef {import("./view.js").Context} Context
 * @typedef {import("./view.js").Run} Run
 * @typedef {import("./view.js").View} View
 */

const PLANNED = "planned"; // the preset whose plan is solved at the beginning of the run
const LONG_GAP = 8;
const MUCH_MEMORY = 2 ** 31;
const GROUPS_READ = 40;
const MUCH_SCATTER = 0.25; // of a full step's time
const MUCH_ERROR = 0.5;

/** The kind that a click turns a step into. @param {string} kind */
export const nextKind = (kind) => LETTERS[(LETTERS.indexOf(kind) + 1) % LETTERS.length];

/** @param {View} view @param {number} branches @returns {string[]} */
export function planSummary({ plan, speedup, bytes, bars }, branches) {
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
  if (worst >= 0) lines.push(`Worst forecast error ${short(worst)} (1 is as large as the feature).`);
  return lines;
}

/** The largest forecast error at full steps that follow a skipped step, or -1. @param {Bar[]} bars */
const worstError = (bars) => Math.max(-1, ...bars.map((bar, i) => (i && bars[i - 1].actual !== "F" ? (bar.error ?? -1) : -1)));

/**
 * Measured speed-up over a run of full steps only; null where nothing was skipped or the times scatter too much.
 * @param {Bar[]} ran
 */
function measuredGain(ran) {
  /** @param {number[]} values */
  const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
  const times = ran.map((bar) => bar.milliseconds ?? 0), full = times.filter((_, i) => ran[i].actual === "F");
  if (!full.length || full.length === ran.length) return null;
  const steady = full.length > 1 ? full.slice(1) : full; // the first step often includes loading the model
  const usual = median(steady), scatter = median(steady.map((time) => Math.abs(time - usual)));
  if (!(usual > 0) || scatter > MUCH_SCATTER * usual) return null;
  times[0] = Math.min(times[0], usual);
  return (usual * times.length) / times.reduce((sum, time) => sum + time, 0);
}

/**
 * Letters in the list of a Cache Schedule Builder; 0 without a list, and for JSON with a generator, which fits any number of steps.
 * @param {Record<string, any> | null} source settings that make a plan
 */
function listLength(source) {
  const text = String(source?.explicit ?? "").trim();
  if (!text.startsWith("{")) return text.replace(/\s+/g, "").length;
  const { kinds, generator } = fromJson(text);
  return generator ? 0 : kinds.length;
}

/** @param {View} view @param {Context} context @param {Run | null} run @returns {string[]} */
export function warningsOf(view, { node, values, foreign, builder, run: last, solved }, run) {
  const kinds = view.plan?.kinds ?? "", steps = kinds.length;
  const found = [];
  if (node === BUILDER && view.listed) {
    const ratio = kinds.includes("C") && !String(values.explicit).trim().startsWith("{") ? "; ratio still applies" : "";
    found.push(`The list in explicit is in use: preset and the settings below have no effect until you clear it${ratio}.`);
  }
  if (view.mode === "ran" && run) {
    const nothing = run.text.split("\n").find((line) => line.startsWith("Nothing was skipped"));
    if (worstError(view.bars) > MUCH_ERROR) {
      found.push("A forecast error was above 0.5. If the picture differs from the uncached one, plan more full steps.");
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
  if (gap >= LONG_GAP) found.push(`${gap} steps in a row are skipped; expect the picture to change.`);
  if (view.bytes >= MUCH_MEMORY && kinds.includes("C")) {
    found.push("Conservative steps need most of that memory; a plan of full and aggressive steps needs little.");
  }
  for (const name of foreign) {
    found.push(name === "schedule" ? "Another node makes the plan, and the plot shows it after the run; this is the plan of the preset."
      : `Another node gives the value of ${name}; the plot may differ from the run.`);
  }
  if (solved?.stale) found.push("Settings have changed since this plan was solved; the next run solves it again.");
  const recipe = node === FORECAST && String(values.recipe ?? "").trim();
  if (values.preset === PLANNED && node !== BUILDER && !recipe && !builder && !solved && !foreign.includes("schedule")) {
    found.push("The plot shows the plan of balanced; the run uses a profile of this model if one fits.");
  }
  if ((node === PATCH || node === FORECAST) && !builder && !last && !solved) {
    found.push(`The plot shows ${plural(steps)}; the sampler sets the number of steps.`);
  }
  if (last && !run && node !== BUILDER && node !== PLANNER) found.push("The last run used another plan.");
  return found;
}

/** What the plot says about one step. @param {View} view @param {number} index counted from 0 @returns {string} */
export function describe(view, index) {
  const bar = view.bars[index];
  if (!bar) return "";
  const head = `Step ${index + 1} of ${view.bars.length}, ${KIND_NAMES[bar.actual]}`;
  const before = view.bars.slice(0, index).map((b) => b.actual).lastIndexOf("F") + 1;
  const what = {
    F: "every block runs on every token.",
    C: `attention is replayed from step ${before}, ${short(100 * bar.ratio)} % of the tokens are recomputed.`,
    A: `the blocks are skipped, their result is rebuilt from step ${before}${before > 1 ? " and earlier" : ""}.`,
  }[bar.actual];
  const why = `in place of ${KIND_NAMES[bar.planned]}: ${bar.reason || "the plan could not be kept"}.`;
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
    parts.push(index ? `Click to make it ${KIND_NAMES[nextKind(bar.planned)]}.` : first);
  }
  return parts.join(" ");
}

/** The plan or the run as one text, for screen readers. @param {View} view @returns {string} */
export function spelled(view) {
  const groups = [];
  for (let i = 0; i < view.bars.length; ) {
    let j = i;
    while (j + 1 < view.bars.length && view.bars[j + 1].actual === view.bars[i].actual) j++;
    groups.push(`${i === j ? i + 1 : `${i + 1} to ${j + 1}`} ${KIND_NAMES[view.bars[i].actual]}`);
    i = j + 1;
  }
  const steps = groups.length ? `Steps ${groups.slice(0, GROUPS_READ).join(", ")}${groups.length > GROUPS_READ ? ", and so on" : ""}.` : "";
  return [...view.summary, ...view.warnings, steps].filter(Boolean).join(" ");
}
