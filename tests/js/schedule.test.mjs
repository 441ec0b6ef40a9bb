// The schedules of web/schedule.js against what Python made of the same input.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import {
  ScheduleError, buildSchedule, counts, estimatedSpeedup, explicit, flopsConservative, flopsFull, fromGenerator, fromJson, peakBytes,
  scaled, toJson,
} from "../../web/schedule.js";
import { FLUX_DEV } from "../../web/presets.js";

const load = (name) => JSON.parse(readFileSync(new URL(`../fixtures/${name}`, import.meta.url), "utf8"));
const fixture = load("schedules.json"), builder = load("builder.json");
const close = (got, want, what) => assert.ok(Math.abs(got - want) <= 1e-9 * Math.abs(want), `${what}: ${got} is not ${want}`);
const refused = (run, sentence) => assert.throws(run, (error) => error instanceof ScheduleError && error.message === sentence);

test("fixtures are not empty", () => {
  for (const part of ["cases", "scaled", "invalid", "invalid_generators"]) assert.ok(fixture[part].length > 5, part);
  assert.ok(builder.some((item) => item.error) && builder.some((item) => item.runs));
});

for (const [i, item] of fixture.cases.entries()) {
  test(`case ${i}: ${JSON.stringify(item.generator ?? item.kinds)} at ${item.steps}`, () => {
    const plan = item.generator ? fromGenerator(item.generator, item.steps) : explicit(item.kinds, item.ratios);
    assert.equal(plan.kinds, item.kinds);
    assert.deepEqual(plan.ratios, item.ratios);
    assert.deepEqual(counts(plan.kinds), item.counts);
    assert.deepEqual(JSON.parse(toJson(plan)), item.json);
    assert.deepEqual(fromJson(JSON.stringify(item.json)), plan);
    close(estimatedSpeedup(plan, item.cost, item.layout, item.live_attention, item.aggressive), item.speedup, "speed-up");
    assert.equal(peakBytes(plan, item.cost, { ...item.memory, live_attention: item.live_attention }), item.peak_bytes);
  });
}

for (const [i, item] of fixture.scaled.entries()) {
  test(`scaled ${i}: ${item.json.kinds} to ${item.steps}`, () => {
    const plan = scaled(fromJson(JSON.stringify(item.json)), item.steps);
    assert.equal(plan.kinds, item.kinds);
    assert.deepEqual(plan.ratios, item.ratios);
    assert.deepEqual(plan.generator, item.generator);
  });
}

test("invalid texts are refused in the same words", () => {
  for (const { text, error } of fixture.invalid) refused(() => fromJson(text), error);
});

test("invalid generators are refused in the same words", () => {
  for (const { generator, steps, error } of fixture.invalid_generators) refused(() => fromGenerator(generator, steps), error);
});

test("the same step count gives the same plan", () => {
  const plan = explicit("FCAF");
  assert.equal(scaled(plan, 4), plan);
});

for (const [i, item] of builder.entries()) {
  test(`builder ${i}`, () => {
    if (item.error) {
      refused(() => buildSchedule(item.values), item.error);
      return;
    }
    const plan = buildSchedule(item.values);
    assert.equal(plan.kinds, item.runs.map(([kind, n]) => kind.repeat(n)).join(""));
    assert.deepEqual(plan.ratios, Array.isArray(item.ratio) ? item.ratio : plan.ratios.map(() => item.ratio));
    assert.deepEqual(plan.generator, item.generator);
    close(estimatedSpeedup(plan, FLUX_DEV), item.speedup, "speed-up");
    assert.equal(peakBytes(plan, FLUX_DEV), item.bytes);
  });
}

test("a conservative step costs nothing for no tokens and all of a step when live", () => {
  assert.equal(flopsConservative(FLUX_DEV, 0), 0);
  assert.equal(flopsConservative(FLUX_DEV, 1, "built", true), flopsFull(FLUX_DEV));
});
