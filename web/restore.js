/** Shows the runs in the metadata of a picture or workflow on their nodes when ComfyUI opens it. */

import { app } from "../../scripts/app.js";
import { sourceOf } from "./graph.js";
import { REPORT } from "./node_ids.js";
import { isReachable, nodeAt, rootOf, tabOf } from "./prompts.js";
import { remember } from "./report.js";
import { readRun, takeRuns } from "./run_metadata.js";
import { restoreRun } from "./widget.js";

const FRAMES = 90;
/** Runs of the workflow that is being opened, by id of the node that sampled. @type {Record<string, any>} */
let opened = {};

/** Nodes of all graphs of the workflow. @returns {any[]} */
function allNodes() {
  const root = rootOf(app);
  return [root, ...(root.subgraphs?.values() ?? [])].flatMap((graph) => graph._nodes);
}

/** A run, or null and a warning where it cannot be read; the other runs are shown. @param {any} metadata */
function readable(metadata) {
  try {
    return readRun(metadata);
  } catch (error) {
    console.warn("Dual Cache: cannot read a run from the metadata of this picture.", error);
    return null;
  }
}

/** @param {Record<string, any>} runs */
function restoreRuns(runs) {
  const reports = allNodes().filter((node) => node.comfyClass === REPORT), found = Object.entries(runs);
  for (const [sampler, metadata] of found) {
    const run = readable(metadata), source = nodeAt(app, sampler), owner = nodeAt(app, metadata?.node ?? "");
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
    opened = takeRuns(workflow);
  },
  afterConfigureGraph() {
    const runs = opened, tab = tabOf(app);
    opened = {};
    if (!Object.keys(runs).length) return;
    restoreRuns(runs);
    // ComfyUI sets the active workflow a little later, and the keys of nodes depend on it.
    let frames = 0;
    const wait = () => {
      if (tabOf(app) !== tab) restoreRuns(runs);
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
