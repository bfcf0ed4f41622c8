/** EncodeToLatentFile and SaveLatentToDisk show what they have saved, after a run and when the workflow is opened again. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { button, copyButton, download } from "./lib/buttons.mjs";
import { el } from "./lib/dom.mjs";
import { annotated } from "./lib/files.mjs";
import { findNode, graphId, markChanged, placeBeside } from "./lib/graph.mjs";
import { addLoader } from "./lib/loader.mjs";
import { panelOf } from "./lib/panel.mjs";
import { tellMissed, whenOpen, tabOfOutput } from "./lib/runs.mjs";
import { describe, previewOf, readLatent } from "./lib/shown_latent.mjs";
import { text } from "./lib/texts.mjs";

const NODES = new Set(["EncodeToLatentFile", "SaveLatentToDisk"]);
const PROPERTY = "latent_encoder_files"; // what a saved workflow keeps: no absolute path, no record
const SECTION = "saved";

const lastRun = new Map(); // by workflow and node: the prompt whose files the node shows

app.registerExtension({
  name: "LatentEncoder.SavedLatent",

  setup() {
    api.addEventListener("executed", ({ detail }) => {
      if (!detail.output?.latents) return; // null where ComfyUI answers from its cache
      // ComfyUI's own listeners, which note the tab, may come after this one.
      setTimeout(() => whenOpen(tabOfOutput(detail), () => take(detail)));
    });
  },

  loadedGraphNode: (node) => void restore(node),
  afterConfigureGraph: () => void tellMissed(),
});

/** Keep the files of one message with its node, and show them. */
function take({ display_node, node: id, prompt_id, output }) {
  const node = findNode(display_node ?? id);
  if (!NODES.has(node?.type)) return;
  const previews = new Set((output.latent_previews ?? []).map(annotated));
  const told = output.latents.map((file, index) => ({
    ...file,
    preview: previews.has(annotated(previewOf(file))),
    record: output.latent_record?.[index] ?? null,
  }));
  const run = `${graphId()} ${display_node ?? id}`;
  const more = lastRun.get(run) === prompt_id; // a list makes a node run several times, with a message for each
  lastRun.set(run, prompt_id);
  const files = more ? [...(node.latentEncoderFiles ?? []), ...told] : told;
  keep(node, files);
  show(node, files, files.length - 1);
}

function keep(node, files) {
  node.latentEncoderFiles = files;
  node.properties[PROPERTY] = files.map(({ filename, subfolder, type, preview }) => ({
    filename,
    subfolder,
    type,
    preview,
  }));
  markChanged();
}

/** Show again what a workflow's node has kept; what the files are is read from the disk. */
async function restore(node) {
  const kept = node.properties?.[PROPERTY];
  if (!NODES.has(node.type) || !Array.isArray(kept) || !kept.length) return;
  const files = await Promise.all(kept.map(readLatent));
  if (node.latentEncoderFiles) return; // a run was faster
  node.latentEncoderFiles = files;
  show(node, files, files.length - 1);
}

/** Show one of the files, with the way to the others. */
function show(node, files, index) {
  const turn = (to, focused) => {
    show(node, files, to);
    panelOf(node).element.querySelector(`[data-turn=${focused}]`)?.focus();
  };
  const content = el(
    "section",
    { class: "latent-encoder-saved", "aria-label": text("saved") },
    files.length > 1 ? pager(index, files.length, turn) : null,
    describe(files[index]),
    buttons(node, files[index]),
  );
  panelOf(node).show(SECTION, content);
}

function pager(index, count, turn) {
  const previous = { "data-turn": "previous", "aria-label": text("previous"), title: text("previous") };
  const next = { "data-turn": "next", "aria-label": text("next"), title: text("next") };
  return el(
    "div",
    { class: "latent-encoder-pager" },
    button("‹", () => turn((index + count - 1) % count, "previous"), previous),
    el("span", { "aria-live": "polite" }, text("position", { index: index + 1, count })),
    button("›", () => turn((index + 1) % count, "next"), next),
  );
}

function buttons(node, file) {
  if (file.gone) return null;
  return el(
    "div",
    { class: "latent-encoder-buttons" },
    file.record?.path ? copyButton(text("copyPath"), file.record.path) : null,
    button(text("download"), () => download(file)),
    file.type === "temp"
      ? null // LoadLatentFromDisk does not list ComfyUI's temporary folder
      : button(text("loadThis"), () => addLoader(annotated(file), (size) => placeBeside(node, size))),
  );
}
