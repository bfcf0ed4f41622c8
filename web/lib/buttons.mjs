/** Buttons, and what several of them do with a file. */

import { el } from "./dom.mjs";
import { viewURL } from "./files.mjs";
import { text } from "./texts.mjs";

/** A button with these words. */
export function button(words, onclick, props = {}) {
  return el("button", { type: "button", class: "latent-encoder-button", onclick, ...props }, words);
}

/**
 * A button that copies words. Where the browser lets no page copy (plain http at another address than localhost), the
 * words stand there to be selected.
 * @param {string} words of the button.
 * @param {string} copied what is copied.
 */
export function copyButton(words, copied) {
  const shown = button(words, async () => {
    try {
      await navigator.clipboard.writeText(copied);
      shown.textContent = text("copied");
      setTimeout(() => (shown.textContent = words), 1500);
    } catch {
      const field = el("input", { class: "latent-encoder-field", readOnly: true, value: copied, "aria-label": words });
      shown.replaceWith(field);
      field.select();
    }
  });
  return shown;
}

/** Have the browser save a file. */
export function download(file) {
  el("a", { href: viewURL(file), download: file.filename }).click();
}
