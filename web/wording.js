/** Words and numbers that the sentences of several files share: kinds of steps, plurals, sizes. Pure, without a page. */

import { counts } from "./schedule.js";

/** Kinds of steps by their letter. @type {Record<string, string>} */
export const KIND_NAMES = { F: "full", C: "conservative", A: "aggressive" };

/** @param {number} number @param {string} [one] @param {string} [many] */
export const plural = (number, one = "step", many = `${one}s`) => `${number} ${number === 1 ? one : many}`;
/** @param {unknown} value @returns {number | null} */
export const finite = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
/** @param {number} value @param {number} [digits] */
export const short = (value, digits = 3) => String(Number(value.toPrecision(digits)));

/** Bytes with a unit, as `size` in cache_core/base/wording.py writes them. @param {number} count */
export function size(count) {
  for (const unit of ["B", "KiB", "MiB"]) {
    if (count < 1024) return `${short(count)} ${unit}`;
    count /= 1024;
  }
  return `${short(count)} GiB`;
}

/** @param {string} kinds @returns {string} such as "12 full, 18 aggressive" */
export function countWords(kinds) {
  const of = counts(kinds);
  return Object.entries(of).filter(([, n]) => n).map(([kind, n]) => `${n} ${KIND_NAMES[kind]}`).join(", ");
}
