/** A failed node says in words what failed and what to do, until it runs again. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { el } from "./lib/dom.mjs";
import { findNode } from "./lib/graph.mjs";
import { ENCODE_NODE, LOAD_NODE, OPTIMIZE_NODE, PUBLISH_NODE, SAVE_NODE } from "./lib/nodes.mjs";
import { FAILURE, panelOf } from "./lib/panel.mjs";
import { whenBack, whenOpen } from "./lib/runs.mjs";
import { text } from "./lib/texts.mjs";
import { tellFailure } from "./lib/toast.mjs";

const OURS = new Set([ENCODE_NODE, LOAD_NODE, OPTIMIZE_NODE, PUBLISH_NODE, SAVE_NODE]);
const DIALOG_AFTER = 500; // milliseconds in which ComfyUI opens its own dialog, if it does

const failures = new WeakMap(); // by node: {shown, detail}
let running = null; // the prompt whose nodes run now: `executing` does not say it

app.registerExtension({
  name: "LatentEncoder.FailedNode",

  setup() {
    api.addEventListener("execution_start", ({ detail }) => (running = detail.prompt_id));
    api.addEventListener("executing", ({ detail: id }) => {
      if (id != null && running) whenOpen(running, () => findNode(id)?.latentEncoderPanel?.show(FAILURE, null));
    });
    api.addEventListener("execution_error", ({ detail }) => {
      // What fails inside our expansion bears our node's name, too.
      if (OURS.has(detail.node_type)) whenOpen(detail.prompt_id, () => tell(detail));
    });
  },

  /** ComfyUI builds the nodes anew when one comes back to a tab, and for each step of undo. */
  nodeCreated(node) {
    if (!OURS.has(node.comfyClass)) return;
    const { onRemoved } = node;
    node.onRemoved = function (...given) {
      onRemoved?.apply(this, given);
      const failure = failures.get(node);
      if (failure?.shown.parentNode) whenBack(() => show(failure.detail));
    };
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

/** Show it on the node; and, where ComfyUI opens no dialog that says it already, in a corner, for one may look elsewhere. */
function tell(detail) {
  const failed = show(detail);
  if (failed?.failure.code) setTimeout(() => toast(failed), DIALOG_AFTER);
}

/** @returns {{node: object, failure: ReturnType<typeof parseFailure>}|null} null: the node is gone, or another. */
function show(detail) {
  const { node_id, node_type, exception_type, exception_message } = detail;
  const node = findNode(node_id);
  if (node?.type !== node_type) return null;
  const failure = parseFailure(exception_message ?? "");
  const { code, message, hint } = failure;
  const shown = el(
    "section",
    { class: "latent-encoder-failure", role: "alert" },
    el("p", { class: "latent-encoder-code" }, code ?? text("failed")),
    el("p", { class: "latent-encoder-message" }, message || exception_type),
    hint ? el("p", { class: "latent-encoder-hint" }, hint) : null,
  );
  panelOf(node).show(FAILURE, shown);
  failures.set(node, { shown, detail });
  return { node, failure };
}

function toast({ node, failure: { code, message, hint } }) {
  const dialogs = [...document.querySelectorAll("[role=dialog]")];
  if (dialogs.some((dialog) => dialog.textContent.includes(message))) return;
  tellFailure(`${node.title}: ${code}`, `${message} ${hint}`);
}
