/** The graph that is open. */

import { app } from "../../../scripts/app.js";

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

/** The id of the workflow that is open. */
export function graphId() {
  return rootGraph().id;
}

/** Tell the editor that a node's properties were changed, so that they are kept over a reload. */
export function markChanged() {
  app.graph.change();
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

/** Where a new node of that size stands clear of others: to the right of a node, below what is in the way. */
export function placeBeside(node, [width, height]) {
  const gap = 40;
  const bar = window.LiteGraph.NODE_TITLE_HEIGHT;
  const x = node.pos[0] + node.size[0] + gap;
  let y = node.pos[1];
  const inTheWay = ({ pos, size }) =>
    pos[0] < x + width && x < pos[0] + size[0] && pos[1] - bar < y + height && y - bar < pos[1] + size[1];
  for (let other; (other = node.graph.nodes.find(inTheWay)); ) y = other.pos[1] + other.size[1] + bar + gap;
  return [x, y];
}

function rootGraph() {
  return app.rootGraph ?? app.graph;
}
