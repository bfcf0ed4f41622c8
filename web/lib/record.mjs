/** What a record says of a latent file, as a table of words. */

import { el } from "./dom.mjs";
import { text } from "./texts.mjs";

const CHECKSUM_DIGITS = 12;

/**
 * @param {Record<string, unknown>} record a LatentRecord; what is not known is left out.
 * @returns {HTMLElement} a `<dl>`.
 */
export function recordTable(record) {
  const { file_bytes, latent_shape, latent_dtype, vae_name, file_sha256 } = record;
  return table([
    ["size", file_bytes == null ? null : bytes(file_bytes)],
    ["shape", latent_shape?.join(" × ")],
    ["dtype", latent_dtype],
    ["vae", vae_name],
    ["checksum", file_sha256?.slice(0, CHECKSUM_DIGITS), file_sha256],
  ]);
}

/**
 * @param {Array<[string, unknown, string?]>} rows a text's key, what to show, and its title; null shows no row.
 * @returns {HTMLElement} a `<dl>`.
 */
export function table(rows) {
  const cells = rows
    .filter(([, value]) => value != null)
    .flatMap(([key, value, title]) => [
      el("dt", {}, text(key)),
      el("dd", { title: title ?? String(value), "data-field": key }, String(value)),
    ]);
  return el("dl", { class: "latent-encoder-table" }, ...cells);
}

function bytes(count) {
  const units = ["byte", "kilobyte", "megabyte", "gigabyte"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(count, 1)) / 3));
  const digits = power ? 1 : 0;
  const format = new Intl.NumberFormat("en", {
    style: "unit",
    unit: units[power],
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
  return format.format(count / 1000 ** power);
}
