/** A latent file that is dropped on the canvas, or opened, and has no workflow inside becomes a LoadLatentFromDisk. */

import { app } from "../../scripts/app.js";
import { kindOf, upload } from "./lib/latents.mjs";
import { addLoader } from "./lib/loader.mjs";
import { tellFailure } from "./lib/toast.mjs";

app.registerExtension({
  name: "LatentEncoder.DroppedLatent",

  setup() {
    const handleFile = app.handleFile;
    app.handleFile = async function (file, ...more) {
      if ((await kindOf(file)) !== "latent") return handleFile.call(this, file, ...more);
      const [x, y] = app.canvas.graph_mouse; // where it was dropped: ComfyUI notes that before it asks
      try {
        await addLoader(await upload(file), () => [x, y]);
      } catch (error) {
        tellFailure(file.name, error.message);
      }
    };
  },
});
