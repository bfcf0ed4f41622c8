/**
 * A latent file as nodes show it.
 * @typedef {import("./files.mjs").ComfyFile & {preview: boolean, record: object|null, gone: boolean}} ShownLatent
 *   whether it has a thumbnail, what is known of it, and whether it was moved or deleted.
 */

import { el } from "./dom.mjs";
import { annotated, beside, fetchInnerRecord, fetchRecord, viewURL } from "./files.mjs";
import { latentListing } from "./listing.mjs";
import { recordTable } from "./record.mjs";
import { text } from "./texts.mjs";

const PREVIEW = ".webp";

/** The file beside a latent that shows it. */
export function previewOf(file) {
  return beside(file, PREVIEW);
}

/**
 * The file as it is now.
 * @param {import("./files.mjs").ComfyFile & {preview?: boolean}} file of the temporary folder, which is not listed, the
 *   caller says whether it has a thumbnail.
 * @returns {Promise<ShownLatent>}
 */
export async function readLatent(file) {
  const { choices, previews, records } = await latentListing();
  const name = annotated(file);
  if (file.type === "temp") {
    const record = await fetchRecord(file);
    return { ...file, record, gone: record === null };
  }
  const gone = !choices.includes(name);
  const outer = records.includes(name) ? await fetchRecord(file) : null;
  return { ...file, preview: previews.includes(name), record: outer ?? (gone ? null : await fetchInnerRecord(file)), gone };
}

/**
 * Its thumbnail, name and record; or that it is gone.
 * @param {ShownLatent} file
 * @returns {Node}
 */
export function describe(file) {
  const name = annotated(file);
  if (file.gone) return note(text("gone", { name }));
  const alt = text("thumbnail", { name: file.filename });
  return el(
    "div",
    {},
    file.preview ? el("img", { class: "latent-encoder-thumbnail", src: thumbnailURL(file), alt }) : null,
    el("p", { class: "latent-encoder-name", title: name }, file.filename),
    file.record ? recordTable(file.record) : note(text("noRecord")),
  );
}

/** A sentence in the place of what is not there. */
export function note(words) {
  return el("p", { class: "latent-encoder-note" }, words);
}

/** The thumbnail's address: a file that was overwritten is another picture. */
function thumbnailURL(file) {
  const version = file.record?.file_sha256;
  return viewURL(previewOf(file)) + (version ? `&v=${version.slice(0, 12)}` : "");
}
