/**
 * Finds the node and the workflow tab that an event belongs to. Events name nodes by id, and one template in two tabs has the same ids; the
 * prompt of the event identifies the tab and the settings when it was queued. Takes ComfyUI's objects, needs no page.
 */

/**
 * @typedef {any} GraphNode a litegraph node, which has no types here
 * @typedef {{node: string, prompt_id?: string | null}} Sender
 */

const PROMPTS_KEPT = 64;

/** @param {any} app */
export const rootOf = (app) => app.rootGraph ?? app.graph;

/** Numbers of the open workflows. A workflow is one object as long as its tab is open, whatever its name. @type {WeakMap<object, number>} */
const tabs = new WeakMap();
let opened = 0;

/** The number of the open workflow; ComfyUI sets it shortly after it has loaded the graph. @param {any} app */
export function tabOf(app) {
  const workflow = app.extensionManager?.workflow?.activeWorkflow;
  if (!workflow) return 0;
  const number = tabs.get(workflow) ?? ++opened;
  tabs.set(workflow, number);
  return number;
}

/** A key of a node that stays the same after an undo or a reload. @param {any} app @param {GraphNode} node */
export const keyOf = (app, node) => `${tabOf(app)} ${rootOf(app)?.id} ${node.graph?.id} ${node.id}`;

/** Whether a node is still in the open workflow, in any subgraph. @param {any} app @param {GraphNode} node */
export function isReachable(app, node) {
  const root = rootOf(app), { graph } = node;
  return Boolean(graph) && (graph === root || root?.subgraphs?.get(graph.id) === graph) && graph.getNodeById(node.id) === node;
}

/** The node that an event names: its id, after the ids of the subgraphs around it, separated by colons. @param {any} app @param {unknown} id @returns {GraphNode} */
export function nodeAt(app, id) {
  let graph = rootOf(app), node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node;
}

/**
 * Calls `note` for the nodes of every prompt when it is queued, and finds what it returned when an event of that prompt arrives.
 * @template T
 * @param {any} app @param {any} api @param {(node: GraphNode) => T | null} note returns null for nodes to ignore
 * @returns {(sender: Sender, then: (noted: T) => void) => void} calls `then` with what `note` returned for the sender when its prompt was
 *   queued, or returns now if the prompt was queued elsewhere
 */
export function trackPrompts(app, api, note) {
  /** Notes by prompt, then by the node id in events. @type {Map<string, Map<string, T>>} */
  const prompts = new Map();
  /** Number of prompts sent whose id the server has not returned yet. */
  let pending = 0;
  /** @type {(() => void)[]} */
  let waiting = [];
  const queue = api.queuePrompt;
  api.queuePrompt = async function (/** @type {any[]} */ ...given) {
    const noted = new Map();
    for (const id of Object.keys(given[1]?.output ?? {})) {
      const node = nodeAt(app, id), found = node && note(node);
      if (found !== null) noted.set(id, found);
    }
    pending++;
    try {
      const answer = await queue.apply(this, given);
      if (answer?.prompt_id) prompts.set(answer.prompt_id, noted);
      for (const oldest of [...prompts.keys()].slice(0, Math.max(0, prompts.size - PROMPTS_KEPT))) prompts.delete(oldest);
      return answer;
    } finally {
      pending--;
      const ready = waiting;
      waiting = [];
      for (const tell of ready) tell();
    }
  };
  return function noted(sender, then) {
    const prompt = sender.prompt_id ? prompts.get(sender.prompt_id) : undefined;
    if (!prompt && sender.prompt_id && pending) { // the event came before the server's answer with the prompt id
      waiting.push(() => noted(sender, then));
      return;
    }
    const node = prompt ? null : nodeAt(app, sender.node);
    const found = prompt ? prompt.get(String(sender.node)) ?? null : node && note(node);
    if (found !== null && found !== undefined) then(found);
  };
}
