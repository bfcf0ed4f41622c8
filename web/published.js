/** PublishLatentToKafka shows where its message stands. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { copyButton } from "./lib/buttons.mjs";
import { el } from "./lib/dom.mjs";
import { findNode, markChanged } from "./lib/graph.mjs";
import { panelOf } from "./lib/panel.mjs";
import { table } from "./lib/record.mjs";
import { whenOpen, tabOfOutput } from "./lib/runs.mjs";
import { text } from "./lib/texts.mjs";

const NODE = "PublishLatentToKafka";
const PROPERTY = "latent_encoder_published"; // what a saved workflow keeps
const SECTION = "published";

app.registerExtension({
  name: "LatentEncoder.Published",

  setup() {
    api.addEventListener("executed", ({ detail }) => {
      if (!detail.output?.kafka) return;
      // ComfyUI's own listeners, which note the tab, may come after this one.
      setTimeout(() => whenOpen(tabOfOutput(detail), () => take(detail)));
    });
  },

  loadedGraphNode(node) {
    const kept = node.properties?.[PROPERTY];
    if (node.type === NODE && kept?.published) show(node, kept);
  },
});

/** Keep where the last message stands with its node, and show it. */
function take({ display_node, node: id, output }) {
  const node = findNode(display_node ?? id);
  if (node?.type !== NODE) return;
  const { published, payload, key, timestamp } = output.kafka.at(-1);
  const kept = { published, payload, key, timestamp };
  node.properties[PROPERTY] = kept;
  show(node, kept);
  markChanged();
}

function show(node, { published, payload, key, timestamp }) {
  const content = el(
    "section",
    { class: "latent-encoder-published", "aria-label": text("published") },
    el("p", { class: "latent-encoder-name" }, published),
    table([
      ["payload", payload],
      ["key", key],
      ["sentAt", timestamp > 0 ? new Date(timestamp).toLocaleString() : null],
    ]),
    el("div", { class: "latent-encoder-buttons" }, copyButton(text("copyPlace"), published)),
  );
  panelOf(node).show(SECTION, content);
}
