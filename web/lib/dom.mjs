/** Elements of our own, and the stylesheet that they share. */

const STYLESHEET = new URL("../latent_encoder.css", import.meta.url).href;

document.head.append(el("link", { rel: "stylesheet", href: STYLESHEET }));

/**
 * Make an element.
 * @param {string} tag
 * @param {Record<string, unknown>} [props] `class`, attributes with a hyphen (`aria-label`, `data-x`), `onclick` and the
 *   like, else properties; what is null or undefined is left out.
 * @param {...(Node|string|null|undefined)} children
 * @returns {HTMLElement}
 */
export function el(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value == null) continue;
    if (name === "class") element.className = value;
    else if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child != null));
  return element;
}
