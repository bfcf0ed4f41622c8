/** A failed node says in words what failed and what to do, until it runs again. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { el } from "./lib/dom.mjs";
import { findNode } from "./lib/graph.mjs";
import { panelOf } from "./lib/panel.mjs";
import { whenOpen, tabOfPrompt } from "./lib/runs.mjs";
import { text } from "./lib/texts.mjs";
import { tellFailure } from "./lib/toast.mjs";

const OURS = new Set(["EncodeToLatentFile", "SaveLatentToDisk", "LoadLatentFromDisk", "PublishLatentToKafka"]);
const SECTION = "failed";
const DIALOG_AFTER = 500; // milliseconds in which ComfyUI opens its own dialog, if it does

app.registerExtension({
  name: "LatentEncoder.FailedNode",

  setup() {
    api.addEventListener("execution_error", async ({ detail }) => {
      const failure = parseFailure(detail.exception_message ?? "");
      if (!failure.code && !OURS.has(detail.node_type)) return;
      whenOpen(await tabOfPrompt(detail.prompt_id), () => show(detail, failure));
    });
    api.addEventListener("executing", ({ detail: id }) => {
      if (id != null) findNode(id)?.latentEncoderPanel?.show(SECTION, null);
    });
  },
});

/**
 * The parts of a failed node's message. ComfyUI may put words before the code; what has no code is ComfyUI's own.
 * @returns {{code: string|null, message: string, hint: string}}
 */
function parseFailure(said) {
  const [, code, rest] = said.match(/\[([A-Z][A-Z_]+)\] ([^]*)/) ?? [null, null, said];
  const lines = rest.trim().split("\n");
  const hint = code && lines.length > 1 ? lines.pop() : "";
  return { code, message: lines.join("\n"), hint };
}

/** Show it on the node; and in a corner, for a node out of view, where ComfyUI's own dialog does not say it already. */
function show({ node_id, node_type, exception_type }, { code, message, hint }) {
  const node = findNode(node_id);
  if (node?.type !== node_type) return; // deleted since, or another
  const content = el(
    "section",
    { class: "latent-encoder-failure", role: "alert" },
    el("p", { class: "latent-encoder-code" }, code ?? text("failed")),
    el("p", { class: "latent-encoder-message" }, message || exception_type),
    hint ? el("p", { class: "latent-encoder-hint" }, hint) : null,
  );
  panelOf(node).show(SECTION, content);
  if (code) setTimeout(() => toast(node, code, `${message} ${hint}`, message), DIALOG_AFTER);
}

function toast(node, code, detail, message) {
  const dialogs = [...document.querySelectorAll("[role=dialog]")];
  if (dialogs.some((dialog) => dialog.textContent.includes(message))) return;
  tellFailure(`${node.title}: ${code}`, detail);
}
