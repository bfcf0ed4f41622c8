/** LoadLatentFromDisk nodes: making one, and having it load a file. */

import { app } from "../../../scripts/app.js";
import { markChanged } from "./graph.mjs";
import { FILE_WIDGET, latentListing, LOAD_NODE } from "./listing.mjs";

/**
 * Have a node load a file that the server has now.
 * @param {string} name annotated.
 */
export async function chooseFile(node, name) {
  const { choices } = await latentListing({ fresh: true });
  const widget = node.widgets.find((each) => each.name === FILE_WIDGET);
  widget.options.values = choices;
  widget.value = name;
  widget.callback?.(name);
  markChanged();
}

/**
 * Add a node that loads a file to the graph that is open, and select it.
 * @param {string} name annotated.
 * @param {(size: [number, number]) => [number, number]} place where it stands.
 */
export async function addLoader(name, place) {
  const node = window.LiteGraph.createNode(LOAD_NODE);
  const { graph } = app.canvas;
  await chooseFile(node, name);
  node.pos = place(node.size);
  graph.add(node);
  app.canvas.selectNodes([node]);
  markChanged();
}
