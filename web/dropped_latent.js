/** A latent file that is dropped on the canvas, or opened, and has no workflow inside becomes a LoadLatentFromDisk. */

import { app } from "../../scripts/app.js";
import { kindOf, upload } from "./lib/latents.mjs";
import { addLoader } from "./lib/loader.mjs";
import { tellFailure } from "./lib/toast.mjs";

const STEP = 40; // pixels between nodes of files that are dropped at once

let dropped = { files: [], place: null }; // the last drop; ComfyUI hands its files on without the place

app.registerExtension({
  name: "LatentEncoder.DroppedLatent",

  setup() {
    document.addEventListener("drop", noteDrop, true);
    const handleFile = app.handleFile;
    app.handleFile = async function (file, ...more) {
      if ((await kindOf(file)) !== "latent") return handleFile.call(this, file, ...more);
      try {
        await addLoader(await upload(file), () => placeOf(file));
      } catch (error) {
        tellFailure(file.name, error.message);
      }
    };
  },
});

function noteDrop(event) {
  dropped = { files: [...(event.dataTransfer?.files ?? [])], place: app.canvas.convertEventToCanvasOffset(event) };
}

/** Where a file was dropped, one beside the other; the middle of what is in view for a file that was opened. */
function placeOf({ name, size, lastModified }) {
  const index = dropped.files.findIndex(
    (file) => file.name === name && file.size === size && file.lastModified === lastModified,
  );
  if (index >= 0) return dropped.place.map((value) => value + index * STEP);
  const [x, y, width, height] = app.canvas.ds.visible_area;
  return [x + width / 2, y + height / 2];
}
