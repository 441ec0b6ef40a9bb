/**
 * Cache schedules and what they cost, as cache_core/schedule/plan.py and cost.py compute them. Pure, without a page.
 * Both sides are tested against tests/fixtures/schedules.json, so that they agree.
 */

import {
  CUSTOM, DEFAULT_RATIO, FORMAT, GENERATORS, GENERATOR_DEFAULTS, KIND, LATENT_VALUES, LAYOUTS, MAX_STEPS, PATTERNS, PRESETS,
} from "./presets.js";

export const LETTERS = "FCA";

/**
 * @typedef {Record<string, any>} Generator the settings that make a schedule; `type` names the rule
 * @typedef {object} Schedule
 * @property {string} kinds one letter per step: F, C or A
 * @property {number[]} ratios share of tokens per step, 0..1
 * @property {string} name
 * @property {Generator | null} generator null for an explicit list
 * @typedef {object} CostModel
 * @property {number} width
 * @property {number} image_tokens
 * @property {number} text_tokens
 * @property {number} double
 * @property {number} single
 */

/** An invalid value that a user can correct; `message` is one sentence that begins with the field's name. */
export class ScheduleError extends Error {}

/** @param {unknown} value @returns {value is Record<string, any>} */
function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** @param {unknown} condition @param {string} sentence @returns {asserts condition} */
function check(condition, sentence) {
  if (!condition) throw new ScheduleError(sentence);
}

/** @param {string} name @param {unknown} value @param {number} least @returns {number} */
function whole(name, value, least) {
  const sentence = `${name} must be a whole number from ${least} to ${MAX_STEPS}.`;
  check(typeof value === "number" && Number.isInteger(value) && value >= least && value <= MAX_STEPS, sentence);
  return value;
}

/** @param {string} name @param {unknown} value @returns {number} */
function fraction(name, value) {
  check(typeof value === "number" && value >= 0 && value <= 1, `${name} must be a number from 0 to 1.`);
  return value;
}

/**
 * Checked settings of a generator, complete and in their order; `prefix` goes before the field's name in errors.
 * @param {unknown} generator @param {string} [prefix] @returns {Generator}
 */
function settingsOf(generator, prefix = "") {
  check(isObject(generator), "generator must be an object.");
  const type = generator.type;
  check(typeof type === "string" && Object.hasOwn(GENERATORS, type), `${prefix}type must be one of ${Object.keys(GENERATORS).join(", ")}.`);
  /** @type {string[]} */
  const names = GENERATORS[/** @type {keyof typeof GENERATORS} */ (type)];
  /** @type {Record<string, any>} */
  const defaults = GENERATOR_DEFAULTS[/** @type {keyof typeof GENERATORS} */ (type)];
  for (const key of Object.keys(generator)) check(key === "type" || names.includes(key), `${prefix}${key} is not a setting of ${type}.`);
  /** @type {Generator} */
  const settings = { type };
  for (const key of names) {
    check(Object.hasOwn(generator, key) || Object.hasOwn(defaults, key), `${prefix}${key} is missing.`);
    const value = Object.hasOwn(generator, key) ? generator[key] : defaults[key];
    if (key === "order") {
      const fits = typeof value === "string" && /^[CA]+$/.test(value) && value.length <= MAX_STEPS;
      check(fits, `${prefix}order must be a string of the letters C and A.`);
      settings[key] = value;
    } else if (key === "interval" || key === "warmup" || key === "tail") {
      settings[key] = whole(prefix + key, value, key === "interval" ? 1 : 0);
    } else if (key === "growth") {
      check(typeof value === "number" && value >= 0 && value <= 100, `${prefix}growth must be a number from 0 to 100.`);
      settings[key] = value;
    } else {
      settings[key] = fraction(prefix + key, value);
    }
  }
  check((settings.start ?? 0) <= (settings.end ?? 1), `${prefix}start must not be greater than end.`);
  return settings;
}

/** @param {number} steps @param {Generator} settings @returns {string} */
function cycleKinds(steps, { interval = 1, warmup = 1, tail = 0, start = 0, end = 1, order = "A" }) {
  const first = Math.floor(start * steps + 0.5), last = Math.floor(end * steps + 0.5);
  let kinds = "", since = 0;
  for (let i = 0; i < steps; i++) {
    if (i < Math.max(warmup, 1) || i >= steps - tail || i < first || i >= last || since === interval - 1) {
      kinds += "F";
      since = 0;
    } else {
      kinds += order[since % order.length];
      since++;
    }
  }
  return kinds;
}

/** @param {number} steps @param {number} interval @returns {string} */
function ditKinds(steps, interval) {
  if (interval === 1) return "F".repeat(steps);
  let kinds = "", current = interval;
  for (let d = steps - 1; d >= 0; d--) {
    if (kinds && d % current) {
      kinds += (d % current) % 2 ? "C" : "A";
      continue;
    }
    kinds += "F";
    const below = 7 * steps - 4 * d;
    current = steps <= 5 * d && 5 * d < 2 * steps ? 2 : Math.floor((10 * interval * steps + below) / (2 * below));
  }
  return kinds;
}

/** @param {number} steps @param {Generator} settings @returns {string} */
function moduloKinds(steps, { interval, warmup }) {
  return Array.from({ length: steps }, (_, i) => (i < Math.max(warmup, 1) || i % interval === 0 ? "F" : "A")).join("");
}

/** @param {number} steps @param {Generator} settings @returns {string} */
function growingKinds(steps, { growth, warmup }) {
  let kinds = "F".repeat(Math.min(Math.max(warmup, 1), steps)), window = 2, since = 0;
  while (kinds.length < steps) {
    since++;
    if (since % Math.floor(window) === 0) {
      kinds += "F";
      window += growth;
      since = 0;
    } else {
      kinds += "A";
    }
  }
  return kinds;
}

/** The rules that are not cycles. @type {Record<string, (steps: number, settings: Generator) => string>} */
const RULES = { duca_dit: (steps, { interval }) => ditKinds(steps, interval), modulo: moduloKinds, growing: growingKinds };

/** @param {Generator} settings @param {number} steps @returns {Schedule} */
function planned(settings, steps) {
  const kinds = (RULES[settings.type] ?? cycleKinds)(steps, settings);
  return { kinds, ratios: new Array(steps).fill(settings.ratio ?? DEFAULT_RATIO), name: settings.type, generator: settings };
}

/**
 * The schedule of a generator; settings left out take their defaults.
 * @param {unknown} generator @param {unknown} steps @returns {Schedule}
 */
export function fromGenerator(generator, steps) {
  const count = whole("steps", steps, 1);
  return planned(settingsOf(generator, "generator."), count);
}

/** @param {unknown} kinds @param {unknown} ratios @param {unknown} name @param {Generator | null} [generator] @returns {Schedule} */
function schedule(kinds, ratios, name, generator = null) {
  check(typeof name === "string", "name must be a string.");
  check(typeof kinds === "string", "kinds must be a string of the letters F, C and A.");
  const letters = [...kinds];
  check(letters.length >= 1 && letters.length <= MAX_STEPS, `kinds must have 1 to ${MAX_STEPS} letters.`);
  letters.forEach((kind, i) => check(LETTERS.includes(kind), `kinds[${i}] must be F, C or A.`));
  check(kinds[0] === "F", "kinds[0] must be F, because nothing is cached before the first step.");
  check(Array.isArray(ratios), "ratios must be a list of numbers.");
  check(ratios.length === letters.length, "ratios must have one number per step.");
  const made = { kinds, ratios: ratios.map((ratio, i) => fraction(`ratios[${i}]`, ratio)), name, generator };
  if (generator) {
    const again = planned(generator, letters.length);
    const same = again.kinds === kinds && again.ratios.every((ratio, i) => ratio === made.ratios[i]);
    check(same, "generator does not produce these kinds and ratios; set it to null for an explicit list.");
  }
  return made;
}

/**
 * A list written by hand; blanks are dropped.
 * @param {string} kinds @param {unknown} [ratio] one for all steps or a list @returns {Schedule}
 */
export function explicit(kinds, ratio = DEFAULT_RATIO) {
  const letters = kinds.replace(/[ \t\r\n]+/g, "");
  return schedule(letters, Array.isArray(ratio) ? ratio : new Array(letters.length).fill(fraction("ratio", ratio)), "custom");
}

/** Reads the JSON form from a text. @param {string} text @returns {Schedule} */
export function fromJson(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new ScheduleError("schedule is not valid JSON.");
  }
  check(isObject(data), "schedule must be a JSON object.");
  check(Object.hasOwn(data, "format"), "format is missing.");
  check(data.format === FORMAT, `format must be ${FORMAT}; other versions of the schedule cannot be read.`);
  for (const key of ["kind", "name", "steps", "kinds", "ratios", "generator"]) check(Object.hasOwn(data, key), `${key} is missing.`);
  check(data.kind === KIND, `kind must be "${KIND}".`);
  const steps = whole("steps", data.steps, 1);
  const made = schedule(data.kinds, data.ratios, data.name);
  check(steps === made.kinds.length, "steps must equal the number of letters in kinds.");
  return data.generator === null ? made : schedule(made.kinds, made.ratios, made.name, settingsOf(data.generator, "generator."));
}

/** @param {Schedule} plan @returns {string} */
export function toJson({ kinds, ratios, name, generator }) {
  return JSON.stringify({ format: FORMAT, kind: KIND, name, steps: kinds.length, kinds, ratios, generator });
}

/** Number of steps of each kind. @param {string} kinds @returns {{F: number, C: number, A: number}} */
export function counts(kinds) {
  const of = { F: 0, C: 0, A: 0 };
  for (const kind of kinds) of[/** @type {keyof typeof of} */ (kind)]++;
  return of;
}

/**
 * The same pattern at another step count, as CacheSchedule.scaled gives it.
 * @param {Schedule} plan @param {unknown} steps @returns {Schedule}
 */
export function scaled(plan, steps) {
  const count = whole("steps", steps, 1);
  if (count === plan.kinds.length) return plan;
  if (plan.generator) return { ...planned(plan.generator, count), name: plan.name };
  return { ...resample(plan.kinds, plan.ratios, count), name: plan.name, generator: null };
}

/** The rule of `_resample` in Python. @param {string} kinds @param {number[]} ratios @param {number} steps */
function resample(kinds, ratios, steps) {
  const old = kinds.length;
  /** @param {string} letter */
  const due = (letter) => {
    const before = [0];
    for (const kind of kinds) before.push(before[before.length - 1] + Number(kind === letter));
    before.push(before[old]);
    return Array.from({ length: steps + 1 }, (_, i) => {
      const edge = i * old, at = Math.floor(edge / steps);
      return before[at] * (steps - (edge % steps)) + before[at + 1] * (edge % steps);
    });
  };
  const full = due("F"), conservative = due("C"), aggressive = due("A");
  const placed = { C: 0, A: 0 };
  let letters = "";
  for (let i = 0; i < steps; i++) {
    if (Math.ceil(full[i + 1] / old) > Math.ceil(full[i] / old)) {
      letters += "F";
      continue;
    }
    const kind = conservative[i + 1] - placed.C * old >= aggressive[i + 1] - placed.A * old ? "C" : "A";
    placed[kind]++;
    letters += kind;
  }
  const ofC = ratios.filter((_, i) => kinds[i] === "C");
  let c = 0;
  const taken = [...letters].map((kind, i) =>
    kind === "C" ? ofC[Math.floor(((2 * c++ + 1) * ofC.length) / (2 * placed.C))] : ratios[Math.floor(((2 * i + 1) * old) / (2 * steps))]);
  return { kinds: letters, ratios: taken };
}

/** The schedule of a preset. @param {string} name @param {unknown} steps @returns {Schedule} */
export function presetSchedule(name, steps) {
  check(Object.hasOwn(PRESETS, name), `preset must be one of ${Object.keys(PRESETS).join(", ")}, not '${name}'.`);
  return recipeSchedule(PRESETS[/** @type {keyof typeof PRESETS} */ (name)], steps);
}

/** The schedule of a recipe: of its list, scaled, or of its generator, in full where the run is too short for it. @param {Record<string, any>} recipe @param {unknown} steps */
export function recipeSchedule({ kinds, generator, least_steps = 0 }, steps) {
  if (kinds !== undefined) return scaled(explicit(kinds), steps);
  return fromGenerator(Number(steps) < least_steps ? { type: "full" } : generator, steps);
}

/** A list as JSON; its errors name the input. @param {string} text @returns {Schedule} */
function readList(text) {
  try {
    return fromJson(text);
  } catch (error) {
    if (error instanceof ScheduleError) throw new ScheduleError(`explicit is not a schedule's JSON (${error.message.replace(/\.$/, "")}).`);
    throw error;
  }
}

/** A list as typed; its errors count letters as a user does. @param {string} text @param {unknown} ratio @returns {Schedule} */
function listed(text, ratio) {
  const letters = [...text];
  check(letters.length <= MAX_STEPS, `explicit must have at most ${MAX_STEPS} letters.`);
  letters.forEach((letter, i) => check(LETTERS.includes(letter), `letter ${i + 1} of explicit must be F, C or A.`));
  check(letters[0] === "F", "letter 1 of explicit must be F, because nothing is cached before the first step.");
  return explicit(text, ratio);
}

/**
 * The schedule that the widgets of Cache Schedule Builder describe, as `build` in nodes/schedule_builder.py makes it.
 * @param {Record<string, any>} values by widget name @returns {Schedule}
 */
export function buildSchedule({ preset, steps, interval, pattern, ratio, warmup, tail, start, end, explicit: list = "" }) {
  const text = String(list ?? "").trim();
  if (text.startsWith("{")) return scaled(readList(text), steps);
  if (text) return scaled(listed(text.toUpperCase().replace(/\s+/g, ""), ratio), steps);
  if (preset !== CUSTOM) return presetSchedule(preset, steps);
  check(Object.hasOwn(PATTERNS, pattern), `pattern must be one of ${Object.keys(PATTERNS).join(", ")}.`);
  const order = PATTERNS[/** @type {keyof typeof PATTERNS} */ (pattern)];
  const common = { interval, warmup, tail, start, end };
  return fromGenerator(order === "A" ? { type: "uniform", ...common } : { type: "dual", order, ratio, ...common }, steps);
}

/** FLOPs of a full step. @param {CostModel} cost */
export function flopsFull({ width, image_tokens, text_tokens, double, single }) {
  const tokens = image_tokens + text_tokens;
  return (double + single) * tokens * (24 * width ** 2 + 4 * tokens * width);
}

/**
 * FLOPs of a conservative step that refreshes the share `ratio` of the tokens.
 * @param {CostModel} cost @param {number} ratio @param {string} [layout] @param {boolean} [live]
 */
export function flopsConservative(cost, ratio, layout = "built", live = false) {
  if (live) return ratio * flopsFull(cost);
  const [double, single] = LAYOUTS[/** @type {keyof typeof LAYOUTS} */ (layout)];
  return ratio * (cost.image_tokens + cost.text_tokens) * cost.width ** 2 * (double * cost.double + single * cost.single);
}

/**
 * FLOPs of an uncached run over those of the schedule; `aggressive` is the work of an A step as a share of a full one.
 * @param {Schedule} plan @param {CostModel} cost @param {string} [layout] @param {boolean} [live] @param {number} [aggressive]
 */
export function estimatedSpeedup({ kinds, ratios }, cost, layout = "built", live = false, aggressive = 0) {
  const full = flopsFull(cost), of = counts(kinds);
  let spent = of.F * full + of.A * aggressive * full;
  for (let i = 0; i < kinds.length; i++) if (kinds[i] === "C") spent += flopsConservative(cost, ratios[i], layout, live);
  return (kinds.length * full) / spent;
}

/**
 * Bytes of cache held at once, as `peak_bytes` in Python counts them; 0 when nothing is skipped.
 * @param {Schedule} plan @param {CostModel} cost
 * @param {{snapshots?: number, module_snapshots?: number, bytes_per_value?: number, branches?: number, live_attention?: boolean,
 *   level?: string}} [options]
 */
export function peakBytes({ kinds }, cost, options = {}) {
  const { module_snapshots = 1, bytes_per_value = 2, branches = 1, live_attention = false, level = "final" } = options;
  const of = counts(kinds), snapshots = Math.min(options.snapshots ?? 1, of.F);
  const blocks = cost.double + cost.single, feature = (cost.image_tokens + cost.text_tokens) * cost.width;
  const modules = level === "module" ? snapshots : Math.min(module_snapshots, of.F);
  let values = 0;
  if (level !== "module") {
    const kept = level === "output" ? cost.image_tokens * LATENT_VALUES : level === "block" ? blocks * feature : feature;
    if (of.A || of.C) values += (snapshots + (of.C ? 1 : 0)) * kept;
  }
  if (of.C) values += (blocks * (live_attention ? modules + 2 : 2 * modules) + (live_attention ? cost.double : 0) + blocks) * feature;
  else if (of.A && level === "module") values += (2 * cost.double + cost.single) * modules * feature;
  return values * bytes_per_value * branches;
}
