/** The graph that is open. */

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const DRAFT_AFTER = 200; // milliseconds: a list of files comes in many messages

let draft = null;

/**
 * The node that the server means.
 * @param {string|number} executionId `5`, or `7:5` for node 5 in the subgraph node 7.
 */
export function findNode(executionId) {
  let graph = rootGraph();
  let node = null;
  for (const id of String(executionId).split(":")) {
    node = graph?.getNodeById(/^\d+$/.test(id) ? Number(id) : id) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

/** All nodes of that type, in subgraphs too. */
export function nodesOf(type) {
  const graphs = [rootGraph(), ...(rootGraph().subgraphs?.values() ?? [])];
  return graphs.flatMap(({ nodes }) => nodes.filter((node) => node.type === type));
}

/** The id of the workflow that is open. */
export function graphId() {
  return rootGraph().id;
}

/** Tell the editor that the user has changed the graph by a button of ours. */
export function markChanged() {
  app.graph.change();
  const tracker = changeTracker();
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

/**
 * Keep with a node what a run has put out. A run is no edit: it makes no step to undo, does not mark the workflow as
 * modified, and "Run (On Change)" does not run again for it. So each state that ComfyUI compares the graph with, or can
 * go back to, is told of it as well.
 */
export function keepResult(node, property, value) {
  node.properties[property] = value;
  for (const kept of statesOf(node)) kept.properties = { ...kept.properties, [property]: value };
  keepDraft();
}

/** Have a size of a node that we have made, and no user, count as no edit either. */
export function keepSize(node, before) {
  for (const kept of statesOf(node)) {
    if (kept.size?.[0] === before[0] && kept.size[1] === before[1]) kept.size = [...node.size];
  }
}

/** The node in each state of the open workflow that ComfyUI has kept. */
function statesOf(node) {
  const { initialState, activeState, undoQueue = [], redoQueue = [] } = changeTracker() ?? {};
  return [initialState, activeState, ...undoQueue, ...redoQueue].flatMap((state) => {
    const isRoot = node.graph === rootGraph();
    const graph = isRoot ? state : state?.definitions?.subgraphs?.find(({ id }) => id === node.graph?.id);
    // 0.33 counts in strings and writes numbers.
    return graph?.nodes?.find(({ id, type }) => String(id) === String(node.id) && type === node.type) ?? [];
  });
}

/** Have the browser keep the graph over a reload. With "Run (On Change)" ComfyUI 0.3.64 would take this for a change. */
function keepDraft() {
  clearTimeout(draft);
  draft = setTimeout(() => {
    if (app.extensionManager?.queueSettings?.mode !== "change")
      api.dispatchCustomEvent("graphChanged", changeTracker()?.activeState);
  }, DRAFT_AFTER);
}

/**
 * Where a new node of that size stands clear of others: to the right of a node, below what is in the way.
 * @returns {[number, number]|null} null: the node is not in the graph that is open.
 */
export function placeBeside(node, [width, height]) {
  if (node.graph !== app.canvas.graph) return null;
  const gap = 40;
  const bar = window.LiteGraph.NODE_TITLE_HEIGHT;
  const x = node.pos[0] + node.size[0] + gap;
  let y = node.pos[1];
  const inTheWay = ({ pos, size }) =>
    pos[0] < x + width && x < pos[0] + size[0] && pos[1] - bar < y + height && y - bar < pos[1] + size[1];
  for (let other; (other = node.graph.nodes.find(inTheWay)); ) y = other.pos[1] + other.size[1] + bar + gap;
  return [x, y];
}

function changeTracker() {
  return app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
}

function rootGraph() {
  return app.rootGraph ?? app.graph;
}
