/** Words in the corner of the editor. */

import { app } from "../../../scripts/app.js";

const SHOWN_FOR = 15000; // milliseconds

/** Say that something failed. */
export function tellFailure(summary, detail) {
  app.extensionManager.toast.add({ severity: "error", summary, detail, life: SHOWN_FOR });
}
