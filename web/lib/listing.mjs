/** The latent files that LoadLatentFromDisk offers, as the server sees them now. */

import { api } from "../../../scripts/api.js";
import { LOAD_NODE } from "./nodes.mjs";

export const FILE_WIDGET = "latent_file";

const SHARED_FOR = 1000; // milliseconds: a workflow with many nodes asks once
let last = { at: -Infinity, answer: null };

/**
 * @returns {Promise<{choices: string[], previews: string[], records: string[]}>} annotated names, newest first:
 *   all, those with a thumbnail, and those with a record.
 * @throws {Error} where the server does not answer.
 */
export function latentListing({ fresh = false } = {}) {
  if (fresh || performance.now() - last.at > SHARED_FOR) {
    const asked = { at: performance.now(), answer: ask() };
    asked.answer.catch(() => (asked.at = -Infinity)); // who asks next asks anew
    last = asked;
  }
  return last.answer;
}

async function ask() {
  const answer = await api.fetchApi(`/object_info/${LOAD_NODE}`);
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  const [choices, options] = (await answer.json())[LOAD_NODE].input.required[FILE_WIDGET];
  return {
    choices: Array.isArray(choices) ? choices : options.options, // the second is 0.33's
    previews: options.previews ?? [],
    records: options.records ?? [],
  };
}
