/** Reads the values of a node's inputs from the graph, through links, reroutes and subgraphs. Needs litegraph's objects, but no page. */

/** @typedef {any} GraphNode a litegraph node, which has no types here */

const SUBGRAPH_INPUTS = -10; // litegraph's node id of a subgraph's input side
/** Widgets that the plot depends on. */
const PLANNED = ["preset", "steps", "cfg", "forecast", "recipe", "level", "order", "interval", "pattern", "ratio", "warmup", "tail",
  "start", "end", "explicit"];

/** @param {GraphNode} node @param {string} name */
const widgetOf = (node, name) => node.widgets?.find((/** @type {any} */ widget) => widget.name === name);

/** The instances of a subgraph in the whole workflow. @param {any} graph @returns {GraphNode[]} */
function instancesOf(graph) {
  /** @type {GraphNode[]} */
  const found = [], seen = new Set();
  /** @param {any} within */
  const visit = (within) => {
    if (!within || seen.has(within)) return;
    seen.add(within);
    for (const node of within._nodes) {
      if (!node.subgraph) continue;
      if (node.subgraph === graph) found.push(node);
      visit(node.subgraph);
    }
  };
  visit(graph.rootGraph);
  return found;
}

/**
 * What feeds an input, through reroutes and through subgraphs, inwards and outwards.
 * @param {GraphNode} node @param {number} slot
 * @returns {{origin: GraphNode | null | undefined, outer: GraphNode | null, name: string}} origin: undefined when nothing is linked, null
 *   when it cannot be found. outer, name: the subgraph node with a promoted input for this one, if any, and the name of its widget.
 */
function originOf(node, slot) {
  /** @param {GraphNode} at @param {number} index @returns {number | null} */
  const linkAt = (at, index) => at.inputs?.[index]?.link ?? null;
  /** @type {GraphNode | null} */
  let outer = null;
  let { graph } = node, name = "", id = linkAt(node, slot);
  for (let hops = 0; id !== null && hops < 100; hops++) {
    const link = graph?.getLink(id);
    if (!link) return { origin: null, outer, name };
    if (link.origin_id === SUBGRAPH_INPUTS) {
      const around = instancesOf(graph);
      if (around.length !== 1) return { origin: null, outer, name }; // each instance may be fed by another node
      [outer] = around;
      name = outer.inputs[link.origin_slot]?.widget?.name ?? "";
      id = linkAt(outer, link.origin_slot);
      ({ graph } = outer);
      continue;
    }
    const origin = graph.getNodeById(link.origin_id);
    if (origin?.type === "Reroute") {
      id = linkAt(origin, 0);
    } else if (origin?.subgraph) {
      graph = origin.subgraph;
      id = graph.outputs[link.origin_slot]?.linkIds[0] ?? null;
    } else {
      return { origin: origin ?? null, outer, name };
    }
  }
  return { origin: id === null ? undefined : null, outer, name };
}

/**
 * The widget that holds the value of an input: its own, that of a primitive node that feeds it, or the one that a subgraph node promotes.
 * @param {GraphNode} node @param {string} name
 * @returns {{owner: GraphNode, widget: any, known: boolean, fed: boolean}} known: whether its value is the one that will be used; fed:
 *   whether a link sets it, so that this pack must not write it
 */
export function holderOf(node, name) {
  const widget = widgetOf(node, name);
  const slot = (node.inputs ?? []).findIndex((/** @type {any} */ input) => input.widget?.name === name);
  const { origin, outer, name: shown } = originOf(node, slot);
  if (origin) {
    const source = widgetOf(origin, "value");
    return { owner: origin, widget: source ?? widget, known: source !== undefined, fed: true };
  }
  const promoted = outer && origin === undefined ? widgetOf(outer, shown) : undefined;
  return { owner: promoted ? outer : node, widget: promoted ?? widget, known: origin === undefined, fed: origin === null };
}

/**
 * Widget values by name, linked ones included, and the names of widgets that the plot depends on and that cannot be read or written.
 * @param {GraphNode} node
 */
export function valuesOf(node) {
  /** @type {Record<string, any>} */
  const values = {};
  const foreign = [];
  for (const { name, serialize } of node.widgets ?? []) {
    if (serialize === false) continue;
    const { widget, known, fed } = holderOf(node, name);
    values[name] = widget.value;
    if (PLANNED.includes(name) && (!known || (fed && name === "explicit"))) foreign.push(name);
  }
  return { values, foreign };
}

/** What feeds an input, as `originOf` returns it. @param {GraphNode} node @param {string} name */
export function sourceOf(node, name) {
  return originOf(node, (node.inputs ?? []).findIndex((/** @type {any} */ input) => input.name === name)).origin;
}

/** @param {GraphNode} node */
export const scheduleOf = (node) => sourceOf(node, "schedule");
