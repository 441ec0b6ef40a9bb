// What web/graph.js reads off a graph, on stand-ins for litegraph's objects.

import assert from "node:assert/strict";
import { test } from "node:test";
import { holderOf, scheduleOf, valuesOf } from "../../web/graph.js";

const INPUTS = -10, OUTPUTS = -20;

/** A graph of nodes {id, type, widgets: {name: value}, inputs: [names]} and links [from, slot, to, slot]; -10 and -20 are its ends. */
function graphOf(nodes, links = [], rootGraph = null) {
  const graph = { rootGraph, outputs: [], links: new Map(), getLink: (id) => graph.links.get(id) };
  graph.rootGraph ??= graph;
  graph._nodes = nodes.map(({ id, type = "", widgets = {}, inputs = [], ...rest }) => ({
    id, type, comfyClass: type, graph, ...rest,
    widgets: Object.entries(widgets).map(([name, value]) => ({ name, value })),
    inputs: inputs.map((name) => ({ name, link: null, widget: name in widgets ? { name } : undefined })),
  }));
  graph.getNodeById = (id) => graph._nodes.find((node) => node.id === id) ?? null;
  links.forEach(([origin_id, origin_slot, target_id, target_slot], id) => {
    graph.links.set(id, { origin_id, origin_slot, target_id, target_slot });
    if (target_id === OUTPUTS) graph.outputs[target_slot] = { linkIds: [id] };
    else graph.getNodeById(target_id).inputs[target_slot].link = id;
  });
  return graph;
}

const SAMPLER = { id: 1, type: "DualCacheSampler", widgets: { steps: 30, seed: 0 }, inputs: ["schedule", "steps", "seed"] };
const BUILDER = { id: 2, type: "CacheScheduleBuilder", widgets: { steps: 8, explicit: "" }, inputs: ["steps", "explicit"] };

/** A sampler in a subgraph whose inputs 0 and 1 feed its schedule and its steps; `count` nodes stand for it. */
function inside(outside = [], links = [], count = 1) {
  const root = graphOf([]), inner = graphOf([SAMPLER], [[INPUTS, 0, 1, 0], [INPUTS, 1, 1, 1]], root);
  const one = { subgraph: inner, widgets: { steps: 12 }, inputs: ["schedule", "steps"] };
  const around = Array.from({ length: count }, (_, i) => ({ id: 10 + i, ...one }));
  Object.assign(root, graphOf([...around, ...outside], links));
  for (const node of root._nodes) node.graph = root;
  return { root, inner, sampler: inner._nodes[0] };
}

test("a node by itself holds its own values", () => {
  const [sampler] = graphOf([SAMPLER])._nodes;
  assert.deepEqual(valuesOf(sampler), { values: { steps: 30, seed: 0 }, foreign: [] });
  assert.equal(scheduleOf(sampler), undefined);
});

test("a value comes through reroutes from a primitive node, and from nowhere else", () => {
  const nodes = [SAMPLER, { id: 3, type: "Reroute", inputs: [""] }, { id: 4, type: "PrimitiveNode", widgets: { value: 9 } }];
  const [sampler] = graphOf(nodes, [[4, 0, 3, 0], [3, 0, 1, 1]])._nodes;
  assert.deepEqual(valuesOf(sampler), { values: { steps: 9, seed: 0 }, foreign: [] });
  const [other] = graphOf([SAMPLER, { id: 4, type: "Add" }], [[4, 0, 1, 1], [4, 0, 1, 2]])._nodes;
  assert.deepEqual(valuesOf(other), { values: { steps: 30, seed: 0 }, foreign: ["steps"] }, "the seed changes no plan");
  const [loose] = graphOf([SAMPLER, { id: 3, type: "Reroute", inputs: [""] }], [[3, 0, 1, 0]])._nodes;
  assert.equal(scheduleOf(loose), undefined);
});

test("a list that is linked is not ours to write", () => {
  const [builder] = graphOf([BUILDER, { id: 4, type: "PrimitiveNode", widgets: { value: "FCA" } }], [[4, 0, 2, 1]])._nodes;
  assert.deepEqual(valuesOf(builder), { values: { steps: 8, explicit: "FCA" }, foreign: ["explicit"] });
});

test("a subgraph's own widget stands for the one inside it", () => {
  const { root, sampler } = inside();
  assert.deepEqual(valuesOf(sampler), { values: { steps: 12, seed: 0 }, foreign: [] });
  assert.equal(scheduleOf(sampler), undefined);
  const { owner, widget } = holderOf(sampler, "steps");
  assert.deepEqual([owner, widget], [root._nodes[0], root._nodes[0].widgets[0]]);
});

test("what is linked to a subgraph reaches the node inside", () => {
  const primitive = { id: 4, type: "PrimitiveNode", widgets: { value: 9 } };
  const { root, sampler } = inside([BUILDER, primitive], [[2, 0, 10, 0], [4, 0, 10, 1]]);
  assert.deepEqual(valuesOf(sampler), { values: { steps: 9, seed: 0 }, foreign: [] });
  assert.equal(scheduleOf(sampler), root._nodes[1]);
});

test("a node in a subgraph that stands twice in the workflow cannot tell which values it gets", () => {
  const { sampler } = inside([], [], 2);
  assert.deepEqual(valuesOf(sampler), { values: { steps: 30, seed: 0 }, foreign: ["steps"] });
  assert.equal(scheduleOf(sampler), null);
});

test("a plan comes out of a subgraph", () => {
  const inner = graphOf([BUILDER], [[2, 0, OUTPUTS, 0]]);
  const [sampler] = graphOf([SAMPLER, { id: 10, subgraph: inner }], [[10, 0, 1, 0]])._nodes;
  assert.equal(scheduleOf(sampler), inner._nodes[0]);
  const [unfed] = graphOf([SAMPLER, { id: 10, subgraph: graphOf([]) }], [[10, 0, 1, 0]])._nodes;
  assert.equal(scheduleOf(unfed), undefined);
});
