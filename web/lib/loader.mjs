/** LoadLatentFromDisk nodes: making one, and having it load a file. */

import { app } from "../../../scripts/app.js";
import { markChanged } from "./graph.mjs";
import { FILE_WIDGET, latentListing } from "./listing.mjs";
import { LOAD_NODE } from "./nodes.mjs";

/**
 * Have a node load a file that the server has now.
 * @param {string} name annotated.
 * @throws {Error} with words for the user.
 */
export async function chooseFile(node, name) {
  await setFile(node, name);
  markChanged();
}

/**
 * Add a node that loads a file to the graph that is open, and select it.
 * @param {string} name annotated.
 * @param {(size: [number, number]) => [number, number]|null} place where it stands; null: nowhere.
 * @throws {Error} with words for the user.
 */
export async function addLoader(name, place) {
  const node = window.LiteGraph.createNode(LOAD_NODE);
  await setFile(node, name);
  const at = place(node.size);
  if (!at) return;
  node.pos = at;
  app.canvas.graph.add(node);
  app.canvas.selectNodes([node]);
  markChanged();
}

async function setFile(node, name) {
  const { choices } = await latentListing({ fresh: true });
  const widget = node.widgets.find((each) => each.name === FILE_WIDGET);
  widget.options.values = choices;
  widget.value = name;
  widget.callback?.(name);
}
