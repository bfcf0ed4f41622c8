/** The part of a node in which we show things: one DOM widget, which both kinds of node rendering lay out. */

import { el } from "./dom.mjs";
import { keepSize } from "./graph.mjs";

export const FAILURE = "failed"; // the section of what went wrong

const WIDGET = "latent_encoder";
const SETTLED_AFTER = 300; // milliseconds: the new node rendering gives a node its height once it is laid out
const MARGIN = 8; // ComfyUI keeps it clear around the element
const PICTURE = "$$canvas-image-preview"; // ComfyUI's widget for a node's picture: 1.27 lets it fill the node's rest

/**
 * A node's panel. While it shows nothing the node has no widget of ours.
 * @returns {{element: HTMLElement, show(section: string, content: HTMLElement|null): void}} `show` puts the content
 *   into the named section, in the order in which sections were first named; null empties it.
 */
export function panelOf(node) {
  node.latentEncoderPanel ??= makePanel(node);
  return node.latentEncoderPanel;
}

function makePanel(node) {
  const content = el("div", { class: "latent-encoder-content" });
  const element = el("div", { class: "latent-encoder-panel" }, content);
  const sections = new Map();
  let widget = null;
  let height = 0; // of the content; 0 while ComfyUI has not laid it out, as for a node out of view
  let fitted = 0; // the node's height as we have made it

  new ResizeObserver(() => {
    if (!widget || !content.offsetHeight || content.offsetHeight === height) return;
    height = content.offsetHeight;
    fit();
  }).observe(content);

  /** Make the node as tall as its widgets need; smaller again where nobody else has made it taller. */
  function fit() {
    const before = [...node.size];
    const [width, needed] = node.computeSize();
    if (node.size[1] < needed || node.size[1] === fitted) {
      fitted = needed;
      node.setSize([Math.max(node.size[0], width), needed]);
    }
    node.setDirtyCanvas(true, true);
    const now = [...node.size];
    keepSize(node, before);
    setTimeout(() => keepSize(node, now), SETTLED_AFTER);
  }

  function addWidget() {
    widget = node.addDOMWidget(WIDGET, WIDGET, element, {
      serialize: false,
      hideOnZoom: false,
      margin: MARGIN,
      getMinHeight: () => height + 2 * MARGIN,
      getMaxHeight: () => height + 2 * MARGIN,
    });
    widget.serialize = false; // its place among widgets_values would be a widget's of a later version
    const picture = node.widgets.findIndex(({ name }) => name === PICTURE);
    if (picture >= 0) node.widgets.splice(picture, 0, node.widgets.pop());
  }

  function removeWidget() {
    node.removeWidget(widget);
    widget = null;
    height = 0;
  }

  function show(name, shown) {
    if (!shown && !sections.has(name)) return;
    if (!sections.has(name)) sections.set(name, content.appendChild(el("div")));
    sections.get(name).replaceChildren(...(shown ? [shown] : []));
    const wanted = [...sections.values()].some((section) => section.firstChild);
    if (wanted && !widget) addWidget();
    if (!wanted && widget) removeWidget();
    fit();
  }
  return { element, show };
}
