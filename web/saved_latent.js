/** EncodeToLatentFile and SaveLatentToDisk show what they have saved, after a run and when the workflow is opened again. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { button, copyButton, download } from "./lib/buttons.mjs";
import { el } from "./lib/dom.mjs";
import { annotated } from "./lib/files.mjs";
import { findNode, graphId, keepResult, placeBeside } from "./lib/graph.mjs";
import { addLoader } from "./lib/loader.mjs";
import { ENCODE_NODE, SAVE_NODE } from "./lib/nodes.mjs";
import { panelOf } from "./lib/panel.mjs";
import { tellMissed, whenOpen } from "./lib/runs.mjs";
import { describe, previewOf, readLatent } from "./lib/shown_latent.mjs";
import { text } from "./lib/texts.mjs";
import { tellFailure } from "./lib/toast.mjs";

const NODES = new Set([ENCODE_NODE, SAVE_NODE]);
const PROPERTY = "latent_encoder_files"; // what a saved workflow keeps: no absolute path, no record
const MOST_KEPT = 100; // files of one node: the workflow stands in each of them, and in each picture
const SECTION = "saved";

const lastRuns = new Map(); // by workflow and node: {prompt_id, files}

app.registerExtension({
  name: "LatentEncoder.SavedLatent",

  setup() {
    api.addEventListener("executed", ({ detail }) => {
      // null where ComfyUI answers from its cache
      if (detail.output?.latents) whenOpen(detail.prompt_id, () => take(detail));
    });
  },

  loadedGraphNode(node) {
    const kept = node.properties?.[PROPERTY];
    if (NODES.has(node.type) && Array.isArray(kept) && kept.length) void show(node, kept, kept.length - 1);
  },

  afterConfigureGraph: () => void tellMissed(),
});

/** Keep the files of one message with its node, and show the last. */
function take({ display_node, node: id, prompt_id, output }) {
  const node = findNode(display_node ?? id);
  if (!NODES.has(node?.type)) return;
  const run = `${graphId()} ${display_node ?? id}`;
  const last = lastRuns.get(run);
  const before = last?.prompt_id === prompt_id ? last.files : []; // for a list a node runs, and tells, several times
  const files = [...before, ...toldFiles(output)];
  lastRuns.set(run, { prompt_id, files });
  const kept = files.map(({ filename, subfolder, type, preview }) => ({ filename, subfolder, type, preview }));
  keepResult(node, PROPERTY, kept.slice(-MOST_KEPT));
  void show(node, files, files.length - 1);
}

/** @returns {import("./lib/shown_latent.mjs").ShownLatent[]} */
function toldFiles({ latents, latent_previews = [], latent_record = [] }) {
  const previews = new Set(latent_previews.map(annotated));
  return latents.map((file, index) => ({
    ...file,
    preview: previews.has(annotated(previewOf(file))),
    record: latent_record[index] ?? null,
    gone: false,
  }));
}

/** Show one of the files, with the way to the others. What the run has not told of it is read from the disk. */
async function show(node, files, index) {
  const asked = (node.latentEncoderAsked = {});
  const file = "record" in files[index] ? files[index] : await readLatent(files[index]);
  if (node.latentEncoderAsked !== asked) return; // for another one since
  const turn = async (to, focused) => {
    await show(node, files, to);
    panelOf(node).element.querySelector(`[data-turn=${focused}]`)?.focus();
  };
  const content = el(
    "section",
    { class: "latent-encoder-saved", "aria-label": text("saved") },
    files.length > 1 ? pager(index, files.length, turn) : null,
    describe(file),
    buttons(node, file),
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
      : button(text("loadThis"), () => void load(node, file)),
  );
}

/** Add a node that loads the file. */
async function load(node, file) {
  try {
    await addLoader(annotated(file), (size) => placeBeside(node, size));
  } catch (error) {
    tellFailure(node.title, error.message);
  }
}
