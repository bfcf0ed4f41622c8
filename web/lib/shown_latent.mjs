/**
 * A latent file as nodes show it.
 * @typedef {import("./files.mjs").ComfyFile & {preview: boolean, record: object|null, gone: boolean}} ShownLatent
 *   whether it has a thumbnail, what is known of it, and whether it was moved or deleted.
 */

import { el } from "./dom.mjs";
import { annotated, beside, exists, fetchInnerRecord, fetchRecord, viewURL } from "./files.mjs";
import { latentListing } from "./listing.mjs";
import { recordTable } from "./record.mjs";
import { text } from "./texts.mjs";

const PREVIEW = ".webp";
const NOTHING = { choices: [], previews: [], records: [] };

/** The file beside a latent that shows it. */
export function previewOf(file) {
  return beside(file, PREVIEW);
}

/**
 * The file as it is now. Not every file is listed that can be loaded: no symbolic link, and none of the temporary folder.
 * @param {import("./files.mjs").ComfyFile & {preview?: boolean}} file of one that is not listed the caller says whether
 *   it has a thumbnail.
 * @returns {Promise<ShownLatent>}
 */
export async function readLatent(file) {
  const { choices, previews, records } = await latentListing().catch(() => NOTHING);
  const name = annotated(file);
  const isListed = choices.includes(name);
  if (!isListed && !(await exists(file))) return { ...file, preview: false, record: null, gone: true };
  const preview = isListed ? previews.includes(name) : Boolean(file.preview);
  const outer = !isListed || records.includes(name) ? await fetchRecord(file) : null;
  return { ...file, preview, record: outer ?? (await fetchInnerRecord(file)), gone: false };
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
