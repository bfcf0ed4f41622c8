/** Latent files outside ComfyUI's folders: told from other files, and taken in. */

import { api } from "../../../scripts/api.js";
import { annotated, latentHeader } from "./files.mjs";
import { text } from "./texts.mjs";

export const SUFFIXES = [".safetensors", ".latent", ".pt", ".npy"];

const TENSOR = "latent_tensor"; // what ComfyUI's own SaveLatent calls it too

/**
 * What a dropped file is to us.
 * @param {File} file
 * @returns {Promise<"latent"|"workflow"|"other">} `workflow`: a latent that has one inside, or a prompt; `other`: no
 *   latent. What a `.pt` or `.npy` holds only the server can tell.
 */
export async function kindOf(file) {
  const suffix = SUFFIXES.find((end) => file.name.toLowerCase().endsWith(end));
  if (!suffix) return "other";
  if (suffix === ".pt" || suffix === ".npy") return "latent";
  const header = await latentHeader((start, end) => file.slice(start, end).arrayBuffer());
  if (!header || !(TENSOR in header || `${TENSOR}.0` in header)) return "other";
  const { workflow, prompt } = header.__metadata__ ?? {};
  return workflow || prompt ? "workflow" : "latent";
}

/**
 * Put a file into ComfyUI's input folder; of another file of that name there ComfyUI keeps both.
 * @param {File} file
 * @returns {Promise<string>} its annotated name.
 * @throws {Error} with words for the user.
 */
export async function upload(file) {
  const body = new FormData();
  body.append("image", file); // ComfyUI's only upload is named after pictures and takes any file
  body.append("type", "input");
  const answer = await api.fetchApi("/upload/image", { method: "POST", body });
  if (!answer.ok) throw new Error(text(answer.status === 413 ? "tooLarge" : "uploadFailed", { name: file.name }));
  const { name, subfolder, type } = await answer.json();
  return annotated({ filename: name, subfolder, type });
}
