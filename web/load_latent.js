/** LoadLatentFromDisk: shows the chosen file, lets one look for another, and takes files that are dropped on it. */

import { app } from "../../scripts/app.js";
import { button } from "./lib/buttons.mjs";
import { el } from "./lib/dom.mjs";
import { parseAnnotated } from "./lib/files.mjs";
import { kindOf, upload } from "./lib/latents.mjs";
import { FILE_WIDGET, latentListing, LOAD_NODE } from "./lib/listing.mjs";
import { chooseFile } from "./lib/loader.mjs";
import { panelOf } from "./lib/panel.mjs";
import { pickLatent } from "./lib/picker.mjs";
import { describe, note, readLatent } from "./lib/shown_latent.mjs";
import { text } from "./lib/texts.mjs";
import { tellFailure } from "./lib/toast.mjs";

const SECTION = "chosen";

app.registerExtension({
  name: "LatentEncoder.LoadLatent",

  nodeCreated(node) {
    if (node.comfyClass !== LOAD_NODE) return;
    const widget = fileWidget(node);
    const changed = widget.callback;
    widget.callback = function (...said) {
      void showChosen(node);
      return changed?.apply(this, said);
    };
    node.onDragOver = ({ dataTransfer }) => [...(dataTransfer?.items ?? [])].some(({ kind }) => kind === "file");
    node.onDragDrop = async ({ dataTransfer }) => {
      const [file] = dataTransfer?.files ?? [];
      if (!file || (await kindOf(file)) === "other") return false; // ComfyUI may know what it is
      await take(node, file);
      return true;
    };
    void showChosen(node);
  },

  loadedGraphNode(node) {
    if (node.type === LOAD_NODE) void showChosen(node);
  },
});

async function choose(node) {
  const choice = await pickLatent(await latentListing({ fresh: true }), fileWidget(node).value);
  if (choice instanceof File) await take(node, choice);
  else if (choice) await chooseFile(node, choice);
  panelOf(node).element.querySelector("[data-choose]")?.focus();
}

/** Upload a file of the user's disk and choose it. */
async function take(node, file) {
  try {
    await chooseFile(node, await upload(file));
  } catch (error) {
    tellFailure(node.title, error.message);
  }
}

/** Show what the node would load, and the way to another file. */
async function showChosen(node) {
  const name = fileWidget(node).value;
  const file = name ? await readLatent(parseAnnotated(name)) : null;
  if (fileWidget(node).value !== name) return; // another one since
  const content = el(
    "section",
    { class: "latent-encoder-saved", "aria-label": text("chosen") },
    file ? describe(file) : note(text("noLatents")),
    el(
      "div",
      { class: "latent-encoder-buttons" },
      button(text("choose"), () => void choose(node), { "data-choose": "" }),
    ),
  );
  const { element, show } = panelOf(node);
  const hadFocus = element.querySelector("[data-choose]")?.matches(":focus");
  show(SECTION, content);
  if (hadFocus) element.querySelector("[data-choose]").focus();
}

function fileWidget(node) {
  return node.widgets.find(({ name }) => name === FILE_WIDGET);
}
