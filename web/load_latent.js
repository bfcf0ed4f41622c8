/** LoadLatentFromDisk: shows the chosen file, lets one look for another, and takes files that are dropped on it. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { button } from "./lib/buttons.mjs";
import { el } from "./lib/dom.mjs";
import { parseAnnotated } from "./lib/files.mjs";
import { nodesOf } from "./lib/graph.mjs";
import { kindOf, upload } from "./lib/latents.mjs";
import { FILE_WIDGET, latentListing } from "./lib/listing.mjs";
import { chooseFile } from "./lib/loader.mjs";
import { LOAD_NODE } from "./lib/nodes.mjs";
import { FAILURE, panelOf } from "./lib/panel.mjs";
import { pickLatent } from "./lib/picker.mjs";
import { describe, note, readLatent } from "./lib/shown_latent.mjs";
import { text } from "./lib/texts.mjs";
import { tellFailure } from "./lib/toast.mjs";

const SECTION = "chosen";

app.registerExtension({
  name: "LatentEncoder.LoadLatent",

  setup() {
    // Its file may have been made, or made anew, by what has just run; a listing from before does not know it.
    api.addEventListener("execution_success", () => {
      const nodes = nodesOf(LOAD_NODE);
      if (nodes.length) latentListing({ fresh: true }).catch(() => {});
      nodes.forEach(showChosen);
    });
  },

  nodeCreated(node) {
    if (node.comfyClass !== LOAD_NODE) return;
    const widget = fileWidget(node);
    const changed = widget.callback;
    widget.callback = function (...said) {
      panelOf(node).show(FAILURE, null); // it was of the file before
      void showChosen(node);
      return changed?.apply(this, said);
    };
    node.onDragOver = ({ dataTransfer }) => [...(dataTransfer?.items ?? [])].some(({ kind }) => kind === "file");
    node.onDragDrop = async ({ dataTransfer }) => {
      const [file] = dataTransfer?.files ?? [];
      if (!file) return false;
      if ((await kindOf(file)) !== "other") await take(node, file);
      else await app.handleFile(file); // here: once we have waited, the browser has emptied the event for ComfyUI
      return true;
    };
    setTimeout(() => void showChosen(node)); // once it has its size and its values
  },

  loadedGraphNode(node) {
    if (node.type === LOAD_NODE) void showChosen(node);
  },
});

async function choose(node) {
  await orSay(node, async () => {
    const choice = await pickLatent(await latentListing({ fresh: true }), fileWidget(node).value);
    if (choice instanceof File) await take(node, choice);
    else if (choice) await chooseFile(node, choice);
  });
  panelOf(node).element.querySelector("[data-choose]")?.focus();
}

/** Upload a file of the user's disk and choose it. */
function take(node, file) {
  return orSay(node, async () => chooseFile(node, await upload(file)));
}

async function orSay(node, act) {
  try {
    await act();
  } catch (error) {
    tellFailure(node.title, error.message);
  }
}

/** Show what the node would load, and the way to another file. */
async function showChosen(node) {
  const name = fileWidget(node).value;
  const isShown = panelOf(node).element.querySelector("[data-choose]");
  if (name && !isShown) show(node, note(name)); // the button is there whatever becomes of the file
  const file = name ? await readLatent(parseAnnotated(name)) : null;
  if (fileWidget(node).value !== name) return; // another since
  if (!file) show(node, note(text("noLatents")));
  else show(node, file.gone ? note(text("notThere", { name })) : describe(file));
}

function show(node, shown) {
  const content = el(
    "section",
    { class: "latent-encoder-saved", "aria-label": text("chosen") },
    shown,
    el(
      "div",
      { class: "latent-encoder-buttons" },
      button(text("choose"), () => void choose(node), { "data-choose": "" }),
    ),
  );
  const panel = panelOf(node);
  const hadFocus = panel.element.querySelector("[data-choose]")?.matches(":focus");
  panel.show(SECTION, content);
  if (hadFocus) panel.element.querySelector("[data-choose]").focus();
}

function fileWidget(node) {
  return node.widgets.find(({ name }) => name === FILE_WIDGET);
}
