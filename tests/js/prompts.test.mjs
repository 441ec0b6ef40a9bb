// Which node of which workflow an event means, on stand-ins for ComfyUI's objects.

import assert from "node:assert/strict";
import { test } from "node:test";
import { isReachable, keyOf, nodeAt, trackPrompts } from "../../web/prompts.js";

/** A workflow with a node 5, and a node 7 in a subgraph that node 6 stands for. */
function workflow(name) {
  const graphOf = (id, nodes) => {
    const graph = { id, nodes, getNodeById: (number) => nodes.find((node) => node.id === Number(number)) ?? null };
    for (const node of nodes) node.graph = graph;
    return graph;
  };
  const inner = graphOf("inner", [{ id: 7, name }]);
  return Object.assign(graphOf("same", [{ id: 5, name }, { id: 6, name, subgraph: inner }]), { subgraphs: new Map([["inner", inner]]) });
}

function open() {
  const first = workflow("first"), second = workflow("second");
  const tabs = new Map([[first, {}], [second, {}]]), store = { activeWorkflow: null };
  const app = { extensionManager: { workflow: store } };
  const show = (graph) => {
    app.rootGraph = graph;
    store.activeWorkflow = tabs.get(graph);
  };
  show(first);
  let answer;
  const api = { queuePrompt: () => new Promise((done) => { answer = done; }) };
  return { app, api, first, second, show, answer: (id) => answer({ prompt_id: id }) };
}

const OUTPUT = { 5: {}, "6:7": {} };

test("the same template in two tabs has keys of its own, which an undo keeps", () => {
  const { app, first, second, show } = open();
  const before = keyOf(app, first.nodes[0]), inside = keyOf(app, nodeAt(app, "6:7"));
  assert.notEqual(before, inside);
  show(second);
  assert.notEqual(keyOf(app, second.nodes[0]), before);
  show(first);
  app.rootGraph = workflow("made anew");
  assert.equal(keyOf(app, app.rootGraph.nodes[0]), before);
});

test("what a cleared graph leaves behind is no longer in reach", () => {
  const { app, first, second, show } = open();
  const [node, inner] = [first.nodes[0], nodeAt(app, "6:7")];
  assert.ok(isReachable(app, node) && isReachable(app, inner));
  show(second);
  assert.ok(!isReachable(app, node) && !isReachable(app, inner) && !isReachable(app, { id: 5, graph: null }));
});

test("an event finds what was noted when its prompt was queued, whatever is shown by then", async () => {
  const { app, api, second, show, answer } = open(), heard = [];
  let setting = "asked";
  const noted = trackPrompts(app, api, (node) => (node.id === 6 ? null : `${setting} ${node.name} ${node.id}`));
  const queued = api.queuePrompt(0, { output: OUTPUT });
  setting = "later";
  show(second);
  noted({ node: "5", prompt_id: "p" }, (found) => heard.push(found)); // before the server has named the prompt
  assert.deepEqual(heard, []);
  answer("p");
  assert.deepEqual(await queued, { prompt_id: "p" });
  for (const node of ["6:7", "6", "9"]) noted({ node, prompt_id: "p" }, (found) => heard.push(found));
  assert.deepEqual(heard, ["asked first 5", "asked first 7"]);
});

test("a prompt that was queued elsewhere is taken for one of the graph that is shown", () => {
  const { app, api } = open(), heard = [];
  const noted = trackPrompts(app, api, (node) => node.id);
  for (const sender of [{ node: "5" }, { node: "6:7", prompt_id: "unknown" }, { node: "9" }]) noted(sender, (found) => heard.push(found));
  assert.deepEqual(heard, [5, 7]);
});

test("a prompt that the server refuses is refused here too, and nothing waits for it", async () => {
  const { app, api } = open(), heard = [];
  api.queuePrompt = () => Promise.reject(new Error("no"));
  const noted = trackPrompts(app, api, (node) => node.id), queued = api.queuePrompt(0, { output: OUTPUT });
  noted({ node: "5", prompt_id: "other" }, (found) => heard.push(found));
  await assert.rejects(queued, /no/);
  assert.deepEqual(heard, [5]);
});
