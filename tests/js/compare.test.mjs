// What Cache Compare shows and says, from its data alone.

import assert from "node:assert/strict";
import { test } from "node:test";
import { firstChoice, fitted, legend, moved, sidesOf, spelled, spokenPlace, within } from "../../web/compare_view.js";

const files = (name, count) => Array.from({ length: count }, (_, i) => ({ filename: `${name}${i}.png`, subfolder: "", type: "temp" }));
const way = (name, steps, seconds, psnr) =>
  ({ name, steps, median_seconds: seconds, closeness: psnr === undefined ? null : { psnr, psnr_worst: psnr, ssim: 0.9, worst: 1, count: 3 } });
const comparison = (changes = {}) => ({
  video: true, notes: [], table: [["", "steps"]],
  ways: [way("uncached", 30, 9), way("cached", 30, 4, 41.26), way("fewer steps", 13, 4, "inf")],
  shown: { frames: [0, 4, 8], count: 9, first: 1, scale: 0.1234, pictures: ["u", "c", "f"].map((n) => files(n, 3)), maps: ["dc", "df"].map((n) => files(n, 3)) },
  ...changes,
});

test("the first look is at the cached run's worst frame, half and half", () => {
  const data = comparison(), choice = firstChoice(data);
  assert.deepEqual(choice, { way: 1, difference: false, frame: 1, split: 50 });
  const sides = sidesOf(data, choice);
  assert.deepEqual([sides.left.filename, sides.right.filename, ...sides.names, sides.frame], ["u1.png", "c1.png", "uncached", "cached", "frame 5 of 9"]);
});

test("ways, differences and frames choose the pictures", () => {
  const data = comparison();
  const right = (change) => sidesOf(data, { ...firstChoice(data), ...change }).right.filename;
  assert.equal(right({ way: 2, frame: 2 }), "f2.png");
  assert.equal(right({ way: 2, difference: true }), "df1.png");
  assert.equal(right({ way: 1, difference: true, frame: 0 }), "dc0.png");
  assert.equal(sidesOf(comparison({ video: false }), firstChoice(data)).frame, "picture 5 of 9");
});

test("a new run is looked at as the last one, as far as it has the same", () => {
  const data = comparison({ ways: [way("uncached", 30, 9), way("cached", 30, 4, 40)] });
  assert.deepEqual(fitted(data, { way: 2, difference: true, frame: 7, split: 20 }), { way: 1, difference: true, frame: 2, split: 20 });
});

test("keys move the boundary within the picture", () => {
  assert.equal(moved("ArrowRight", 50), 52);
  assert.equal(moved("ArrowLeft", 1), 0);
  assert.equal(moved("PageUp", 95), 100);
  assert.deepEqual([moved("Home", 40), moved("End", 40), moved("a", 40), moved("Enter", 40)], [0, 100, null, null]);
  assert.deepEqual([within(-3), within(130)], [0, 100]);
});

test("it tells in words what is seen and what came out", () => {
  const data = comparison(), choice = { ...firstChoice(data), split: 25.4 };
  assert.equal(spokenPlace(data, choice), "25 per cent uncached on the left, 75 per cent cached on the right, frame 5 of 9");
  assert.match(spokenPlace(data, { ...choice, difference: true }), /75 per cent difference of cached on the right/);
  assert.equal(spelled(data), "uncached: 30 steps, 9.00 seconds. cached: 30 steps, 4.00 seconds, 41.3 decibels to uncached. "
    + "fewer steps: 13 steps, 4.00 seconds, equal to uncached.");
  assert.equal(legend(data), "The brightest colour is a mean difference of 0.12 (1 is black against white).");
  const finished = comparison({ ways: [way("uncached", null, null), way("cached", null, null, 30)] });
  assert.equal(spelled(finished), "cached: 30.0 decibels to uncached.");
  const broken = comparison({ ways: [way("uncached", null, null), way("cached", null, null)] });
  assert.equal(spelled(broken), "cached: closeness not available.");
});
