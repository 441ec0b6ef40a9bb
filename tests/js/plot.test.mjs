// Where the plot draws, on a canvas that only writes down what it is told.

import assert from "node:assert/strict";
import { test } from "node:test";
import { HEIGHTS, draw, frameOf, heightsOf, stepAt } from "../../web/plot.js";
import { viewOf } from "../../web/view.js";

const THEME = { text: "text", faint: "faint", F: "F", C: "C", A: "A", letter: "letter", alert: "alert", error: "error" };
const CONTEXT = { node: "DualCacheSampler", values: { preset: "duca", steps: 12, cfg: 1 }, builder: null, foreign: [], run: null };
const [WIDTH, HEIGHT] = [320, 120];

function drawn(view, width = WIDTH) {
  const rects = [], texts = [], strokes = [], target = { rects, texts, strokes, globalAlpha: 1 };
  const ctx = new Proxy(target, {
    get: (_, name) => {
      if (name === "fillRect") return (x, y, w, h) => rects.push({ colour: target.fillStyle, alpha: target.globalAlpha, x, y, w, h });
      if (name === "beginPath") return () => { target.points = 0; };
      if (name === "lineTo") return () => { target.points++; };
      if (name === "setLineDash") return (dash) => { target.dash = dash; };
      if (name === "stroke") return () => strokes.push({ points: target.points, dashed: target.dash.length > 0 });
      if (name === "fillText") return (text, x) => texts.push({ colour: target.fillStyle, text, x });
      if (name === "measureText") return (text) => ({ width: 5 * text.length });
      return () => undefined;
    },
    set: (_, name, value) => {
      target[name] = value;
      return true;
    },
  });
  draw(ctx, width, HEIGHT, view, { theme: THEME, heights: heightsOf(view), selected: -1, hovered: -1 });
  return target;
}

const view = viewOf(CONTEXT);
const bars = (seen) => seen.rects.filter(({ colour }) => "FCA".includes(colour));

test("one bar per step, in the colour and height of its kind, side by side", () => {
  const seen = bars(drawn(view)), { top, bottom } = frameOf(view, WIDTH, HEIGHT);
  assert.equal(seen.map(({ colour }) => colour).join(""), view.plan.kinds);
  for (const { colour, x, y, w, h } of seen) {
    assert.ok(Math.abs(h - HEIGHTS[colour] * (bottom - top)) < 1e-9);
    assert.ok(Math.abs(y + h - bottom) < 1e-9 && x >= 0 && x + w <= WIDTH);
  }
  for (let i = 1; i < seen.length; i++) assert.ok(seen[i].x >= seen[i - 1].x + seen[i - 1].w);
});

test("a bar is found where it is drawn", () => {
  bars(drawn(view)).forEach(({ x, w }, i) => assert.equal(stepAt(view, x + w / 2, WIDTH), i));
  assert.equal(stepAt(view, 2, WIDTH), -1);
  assert.equal(stepAt(view, WIDTH - 2, WIDTH), -1);
});

test("letters stand in bars that are wide enough", () => {
  const letters = (seen) => seen.texts.filter(({ colour }) => colour === "letter").map(({ text }) => text).join("");
  assert.equal(letters(drawn(view)), view.plan.kinds);
  assert.equal(letters(drawn(view, 100)), "");
});

test("step numbers stay inside the canvas, however many steps there are", () => {
  for (const steps of [1, 2, 30, 1000, 10000]) {
    const numbers = drawn(viewOf({ ...CONTEXT, values: { ...CONTEXT.values, steps } })).texts.filter(({ colour }) => colour === "text");
    assert.ok(numbers.length >= 1 && numbers.length <= 13, `${steps}: ${numbers.length}`);
    assert.equal(numbers[0].text, "1");
    for (const { text, x } of numbers) assert.ok(x + 2.5 * text.length <= WIDTH, `${steps}: ${text}`);
  }
});

test("times are drawn once a step has run", () => {
  const records = [0, 1, 2].map((step) => ({
    step, phase: 0, sigma: 1, planned: "F", actual: "F", reason: "planned", milliseconds: 50, ratio: 0.1, forecast_error: null,
  }));
  const run = { steps: 12, asked: view.plan.kinds, records, report: null, text: "" };
  const times = drawn(viewOf({ ...CONTEXT, run })).rects.filter(({ colour }) => colour === "faint");
  assert.equal(times.length, 3);
  assert.equal(drawn(view).rects.filter(({ colour }) => colour === "faint").length, 0);
});

test("steps that a stopped run did not come to are faint, and their noise levels dashed", () => {
  const records = [0, 1, 2].map((step) => ({
    step, phase: 0, sigma: 1 - step / 12, planned: "F", actual: "F", reason: "planned", milliseconds: 50, ratio: 0.1, forecast_error: null,
  }));
  const run = { steps: 12, asked: view.plan.kinds, records, report: { wall_seconds: 1 }, text: "" };
  const seen = drawn(viewOf({ ...CONTEXT, run }));
  assert.deepEqual(bars(seen).map(({ alpha }) => alpha < 0.5), Array.from({ length: 12 }, (_, i) => i > 2));
  assert.deepEqual(seen.strokes.slice(0, 2), [{ points: 3, dashed: false }, { points: 11, dashed: true }]);
});

test("nothing is drawn without a plan", () => {
  const none = viewOf({ ...CONTEXT, builder: { explicit: "CF", ratio: 0.1, steps: 2 } });
  assert.equal(none.plan, null);
  assert.deepEqual([drawn(none).rects, drawn(none).texts], [[], []]);
});
