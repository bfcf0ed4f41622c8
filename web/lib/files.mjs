/**
 * Files in ComfyUI's own folders, as its `/view` names them.
 * @typedef {{filename: string, subfolder: string, type: "input"|"output"|"temp"}} ComfyFile
 */

import { api } from "../../../scripts/api.js";

const LARGEST_HEADER = 1e8; // bytes, as the safetensors library allows

/** The address at which ComfyUI serves a file. */
export function viewURL(file) {
  return api.apiURL(viewRoute(file));
}

/** Whether ComfyUI has a file; where it does not answer, it may. */
export async function exists(file) {
  const answer = await api.fetchApi(viewRoute(file), { method: "HEAD", cache: "no-store" }).catch(() => null);
  return answer?.status !== 404;
}

/** ComfyUI's annotated name: `sub/name.safetensors [output]`. */
export function annotated({ filename, subfolder, type }) {
  return `${subfolder ? `${subfolder}/` : ""}${filename} [${type}]`;
}

/** The file that an annotated name means; without annotation it is in `input`. */
export function parseAnnotated(name) {
  const [, path, type = "input"] = name.match(/^(.*?)(?: \[(input|output|temp)\])?$/s);
  const cut = path.lastIndexOf("/");
  return { filename: path.slice(cut + 1), subfolder: cut < 0 ? "" : path.slice(0, cut), type };
}

/** The file beside it with another suffix at its end, such as `.json`. */
export function beside(file, suffix) {
  return { ...only(file), filename: file.filename + suffix };
}

/** What `<file>.json` says of a latent file; null where it cannot be read. */
export async function fetchRecord(file) {
  try {
    const answer = await api.fetchApi(viewRoute(beside(file, ".json")), { cache: "no-store" });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

/** The record inside a latent file that has none beside it, as one that was moved or uploaded; null where there is none. */
export async function fetchInnerRecord(file) {
  const header = await latentHeader(async (start, end) => {
    const headers = { Range: `bytes=${start}-${end - 1}` };
    const answer = await api.fetchApi(viewRoute(file), { headers, cache: "no-store" });
    return answer.status === 206 ? answer.arrayBuffer() : new ArrayBuffer(0);
  });
  try {
    return JSON.parse(header.__metadata__.latent_record);
  } catch {
    return null;
  }
}

/**
 * The header of a safetensors file: its length as 8 bytes, little-endian, then JSON.
 * @param {(start: number, end: number) => Promise<ArrayBuffer>} read those bytes.
 * @returns {Promise<object|null>} null where it is no such file.
 */
export async function latentHeader(read) {
  try {
    const length = Number(new DataView(await read(0, 8)).getBigUint64(0, true));
    if (length > LARGEST_HEADER) return null;
    return JSON.parse(new TextDecoder().decode(await read(8, 8 + length)));
  } catch {
    return null;
  }
}

function viewRoute(file) {
  return `/view?${new URLSearchParams(only(file))}`;
}

function only({ filename, subfolder, type }) {
  return { filename, subfolder, type };
}
