/** A dialog in which a latent file is looked for, by its name and its thumbnail. */

import { button } from "./buttons.mjs";
import { el } from "./dom.mjs";
import { parseAnnotated, viewURL } from "./files.mjs";
import { SUFFIXES } from "./latents.mjs";
import { previewOf } from "./shown_latent.mjs";
import { text } from "./texts.mjs";

const AT_ONCE = 120; // files that are laid out; more follow where one comes to their end

/**
 * Let the user choose.
 * @param {{choices: string[], previews: string[]}} listing annotated names, in the order in which they are shown.
 * @param {string} current the one that is chosen now.
 * @returns {Promise<string|File|null>} the name; or a file of the user's disk, to be uploaded; null: neither.
 */
export function pickLatent({ choices, previews }, current) {
  let chosen = null;
  const finish = (choice) => {
    chosen = choice;
    dialog.close();
  };
  const files = fileList(new Set(previews), current, finish);
  const fromDisk = el("input", { type: "file", accept: SUFFIXES.join(), onchange: () => finish(fromDisk.files[0]) });
  const count = el("p", { class: "latent-encoder-note", "aria-live": "polite" });
  const find = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    const found = choices.filter((name) => words.every((word) => name.toLowerCase().includes(word)));
    count.textContent = text("position", { index: found.length, count: choices.length });
    files.show(found);
  };
  const search = el("input", {
    type: "search",
    class: "latent-encoder-field",
    placeholder: text("search"),
    "aria-label": text("search"),
    oninput: find,
  });
  const dialog = el(
    "dialog",
    { class: "latent-encoder-picker", "aria-label": text("choose") },
    el(
      "div",
      { class: "latent-encoder-picker-bar" },
      search,
      button(text("upload"), () => fromDisk.click()),
      button(text("close"), () => dialog.close()),
    ),
    count,
    files.element,
  );
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation(); // ComfyUI's own keys mean the graph
    if (event.target === search && event.key === "Enter") {
      event.preventDefault(); // else the same key would press the button that has the focus once the dialog is closed
      files.element.querySelector("button")?.click();
    } else if (event.target !== search || event.key === "ArrowDown") moveFocus(files.element, event);
  });
  document.body.append(dialog);
  find();
  dialog.showModal();
  search.focus();
  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      files.show([]);
      dialog.remove();
      done(chosen);
    });
  });
}

/** The files as buttons; of a long list the rest is laid out as one comes to it. */
function fileList(pictured, current, choose) {
  const element = el("ul", { class: "latent-encoder-files" });
  const end = new IntersectionObserver((seen) => seen.some(({ isIntersecting }) => isIntersecting) && addMore());
  let shown = [];

  function addMore() {
    end.disconnect();
    const from = element.childElementCount;
    element.append(...shown.slice(from, from + AT_ONCE).map(entry));
    if (element.childElementCount < shown.length) end.observe(element.lastElementChild);
  }

  function entry(name) {
    const props = { title: name, "aria-current": name === current ? "true" : null };
    const file = parseAnnotated(name);
    const picture = pictured.has(name)
      ? el("img", { loading: "lazy", alt: "", src: viewURL(previewOf(file)) })
      : el("span", { class: "latent-encoder-no-picture", "aria-hidden": "true" }, file.filename.split(".").at(-1));
    const choice = button(name, () => choose(name), props);
    choice.prepend(picture);
    return el("li", {}, choice);
  }

  function show(names) {
    end.disconnect();
    shown = names;
    element.replaceChildren();
    element.scrollTop = 0;
    addMore();
  }
  return { element, show };
}

/** Arrow keys lead from button to button, and from the search field to the first. */
function moveFocus(list, event) {
  const buttons = [...list.querySelectorAll("button")];
  const index = buttons.indexOf(document.activeElement);
  const columns = buttons.filter(({ offsetTop }) => offsetTop === buttons[0].offsetTop).length;
  const down = index < 0 ? 1 : columns;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: down }[event.key];
  const to = step && buttons[index + step];
  if (!to) return;
  event.preventDefault();
  to.focus();
}
