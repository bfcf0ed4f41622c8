/** PublishLatentToKafka shows where its message stands. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { copyButton } from "./lib/buttons.mjs";
import { el } from "./lib/dom.mjs";
import { findNode, keepResult } from "./lib/graph.mjs";
import { PUBLISH_NODE } from "./lib/nodes.mjs";
import { panelOf } from "./lib/panel.mjs";
import { table } from "./lib/record.mjs";
import { whenOpen } from "./lib/runs.mjs";
import { text } from "./lib/texts.mjs";

const PROPERTY = "latent_encoder_published"; // what a saved workflow keeps: the place and the time, no key
const SECTION = "published";

app.registerExtension({
  name: "LatentEncoder.Published",

  setup() {
    api.addEventListener("executed", ({ detail }) => {
      if (detail.output?.kafka) whenOpen(detail.prompt_id, () => take(detail));
    });
  },

  loadedGraphNode(node) {
    const kept = node.properties?.[PROPERTY];
    if (node.type === PUBLISH_NODE && kept?.published) show(node, kept);
  },
});

/** Keep where the last message stands with its node, and show it. */
function take({ display_node, node: id, output }) {
  const node = findNode(display_node ?? id);
  if (node?.type !== PUBLISH_NODE) return;
  const message = output.kafka.at(-1);
  const { published, timestamp } = message;
  keepResult(node, PROPERTY, { published, timestamp });
  show(node, message);
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
