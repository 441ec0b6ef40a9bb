/** Gives runs that a picture or a workflow carries back to their nodes when it is opened. */

import { app } from "../../scripts/app.js";
import { sourceOf } from "./graph.js";
import { REPORT } from "./node_ids.js";
import { isReachable, nodeAt, rootOf, tabOf } from "./prompts.js";
import { remember } from "./report.js";
import { readRun, takeRuns } from "./run_metadata.js";
import { restoreRun } from "./widget.js";

const FRAMES = 90;
/** By id of the node that sampled. @type {Record<string, any>} */
let carried = {};

/** Nodes of all graphs of the workflow. @returns {any[]} */
function allNodes() {
  const root = rootOf(app);
  return [root, ...(root.subgraphs?.values() ?? [])].flatMap((graph) => graph._nodes);
}

/** A run, or null where the picture says it in a way that cannot be read: the others are shown all the same. @param {any} kept */
function readable(kept) {
  try {
    return readRun(kept);
  } catch (error) {
    console.warn("Dual Cache: a run that this picture carries cannot be read.", error);
    return null;
  }
}

/** @param {Record<string, any>} runs */
function giveBack(runs) {
  const reports = allNodes().filter((node) => node.comfyClass === REPORT), found = Object.entries(runs);
  for (const [sampler, kept] of found) {
    const run = readable(kept), source = nodeAt(app, sampler), owner = nodeAt(app, kept?.node ?? "");
    if (!run) continue;
    if (owner) restoreRun(owner, run);
    for (const node of reports) {
      const from = sourceOf(node, "report") ?? sourceOf(node, "latent");
      if (isReachable(app, node) && (found.length === 1 || (from && from === source))) remember(node, { report: run.report, text: run.text });
    }
  }
}

const EXTENSION = {
  name: "dual_cache.restore",
  /** @param {any} workflow */
  beforeConfigureGraph(workflow) {
    carried = takeRuns(workflow);
  },
  afterConfigureGraph() {
    const runs = carried, tab = tabOf(app);
    carried = {};
    if (!Object.keys(runs).length) return;
    giveBack(runs);
    // ComfyUI names the workflow a little later, and nodes are known by its name.
    let frames = 0;
    const wait = () => {
      if (tabOf(app) !== tab) giveBack(runs);
      else if (++frames < FRAMES) requestAnimationFrame(wait);
    };
    requestAnimationFrame(wait);
  },
};

// ComfyUI may serve the folder under two names, its own and the one of pyproject.toml, and then loads this file twice.
const registered = Symbol.for(EXTENSION.name);
if (!app[registered]) {
  app[registered] = true;
  app.registerExtension(EXTENSION);
}
