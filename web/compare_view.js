/** The view state of Cache Compare: which pictures are under the slider, and its sentences. Pure, without a page. */

import { plural } from "./wording.js";

/**
 * @typedef {{filename: string, subfolder: string, type: string}} File as ComfyUI's /view takes it
 * @typedef {object} Way
 * @property {string} name
 * @property {number | null} steps
 * @property {number | null} median_seconds
 * @property {{psnr: number | string, ssim: number | null, psnr_worst: number | string, worst: number, count: number} | null} closeness
 * @typedef {object} Comparison as nodes/cache_compare.py sends it
 * @property {boolean} video
 * @property {Way[]} ways the uncached one first
 * @property {string[]} notes
 * @property {string[][]} table heading and a row per way
 * @property {{frames: number[], count: number, first: number, scale: number, pictures: File[][], maps: File[][]}} shown pictures: by way;
 *   maps: by way but the first; frames: their indices among `count` pictures; first: index of the worst one in `frames`
 * @typedef {object} Choice what the user looks at
 * @property {number} way index of the way on the right
 * @property {boolean} difference whether the right side shows where it differs
 * @property {number} frame place in `shown.frames`
 * @property {number} split per cent of the width that the uncached picture has
 */

const STEP = 2, LEAP = 10;

/** @param {Comparison} data @returns {Choice} */
export const firstChoice = (data) => ({ way: 1, difference: false, frame: data.shown.first, split: 50 });

/** The user's choice limited to what the new data has, so that the next run opens with it. @param {Comparison} data @param {Choice} choice */
export function fitted(data, choice) {
  return { ...choice, way: Math.min(choice.way, data.ways.length - 1), frame: Math.min(choice.frame, data.shown.frames.length - 1) };
}

/** @param {Comparison} data @param {Choice} choice @returns {{left: File, right: File, names: [string, string], frame: string}} */
export function sidesOf({ video, ways, shown }, { way, difference, frame }) {
  const right = (difference ? shown.maps[way - 1] : shown.pictures[way])[frame];
  const name = difference ? `difference of ${ways[way].name}` : ways[way].name;
  const which = shown.count > 1 ? `${video ? "frame" : "picture"} ${shown.frames[frame] + 1} of ${shown.count}` : "";
  return { left: shown.pictures[0][frame], right, names: [ways[0].name, name], frame: which };
}

/** @param {number} split */
export const within = (split) => Math.min(100, Math.max(0, split));

/** Where a key moves the slider, or null for other keys. @param {string} key @param {number} split */
export function moved(key, split) {
  /** @type {Record<string, number>} */
  const places = {
    ArrowLeft: split - STEP, ArrowDown: split - STEP, ArrowRight: split + STEP, ArrowUp: split + STEP, PageDown: split - LEAP,
    PageUp: split + LEAP, Home: 0, End: 100,
  };
  return Object.hasOwn(places, key) ? within(places[key]) : null;
}

/** The slider's position for screen readers. @param {Comparison} data @param {Choice} choice */
export function spokenPlace(data, choice) {
  const { names, frame } = sidesOf(data, choice);
  const share = Math.round(choice.split);
  return `${share} per cent ${names[0]} on the left, ${100 - share} per cent ${names[1]} on the right${frame && `, ${frame}`}`;
}

/** The legend of the difference map. @param {Comparison} data */
export const legend = ({ shown }) => `The brightest colour is a mean difference of ${Number(shown.scale.toPrecision(2))} (1 is black against white).`;

/** The comparison in sentences, for screen readers. @param {Comparison} data */
export function spelled(data) {
  const [first] = data.ways;
  const lines = data.ways.slice(1).map((way) => {
    const psnr = way.closeness?.psnr, parts = [];
    if (way.steps !== null) parts.push(plural(way.steps));
    if (way.median_seconds !== null) parts.push(`${way.median_seconds.toFixed(2)} seconds`);
    if (psnr === undefined) parts.push("closeness not available");
    else parts.push(psnr === "inf" ? `equal to ${first.name}` : `${Number(psnr).toFixed(1)} decibels to ${first.name}`);
    return `${way.name}: ${parts.join(", ")}.`;
  });
  const own = first.median_seconds === null || first.steps === null ? [] : [`${first.name}: ${plural(first.steps)}, ${first.median_seconds.toFixed(2)} seconds.`];
  return [...own, ...lines].join(" ");
}
