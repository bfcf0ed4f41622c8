/** Our words in the editor's language, from `locales/<language>/main.json`, which ComfyUI serves with all packs' under `/i18n`. */

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

let translations = {};

const asked = api
  .fetchApi("/i18n")
  .then(async (answer) => (translations = await answer.json()))
  .catch(() => {}); // the keys then stand for the words

app.registerExtension({
  name: "LatentEncoder.Texts",
  // Before a graph is loaded, but beside what ComfyUI asks for itself: waiting here at once would hold up its start.
  setup: () => asked,
});

/**
 * @param {string} key of `latentEncoder` in main.json; where a language lacks it, English stands in.
 * @param {Record<string, unknown>} [values] for the `{name}`s in it.
 * @returns {string}
 */
export function text(key, values = {}) {
  const language = app.extensionManager?.setting.get("Comfy.Locale") ?? "en";
  const said = translations[language]?.latentEncoder?.[key] ?? translations.en?.latentEncoder?.[key] ?? key;
  return said.replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ""));
}
