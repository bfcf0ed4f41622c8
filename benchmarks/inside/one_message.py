"""A microservice as it is usually written: for each message the VAE is loaded again; ComfyUI's modules, too, where each
message has a process of its own.
"""

from __future__ import annotations

import time
from typing import Any

import host

answers = host.start()

import safetensors.torch  # noqa: E402
import torch  # noqa: E402

import nodes  # noqa: E402  ComfyUI's


def encode(vae: str, image: str, upscale_method: str, megapixels: float, output: str) -> dict[str, Any]:
    """Load the VAE, open, scale, encode, save; the seconds of all that."""
    begin = time.perf_counter()
    with torch.inference_mode():
        (loaded,) = nodes.VAELoader().load_vae(vae)
        picture = nodes.LoadImage().load_image(image)[0]
        scale = nodes.NODE_CLASS_MAPPINGS["ImageScaleToTotalPixels"]
        samples = loaded.encode(scale.execute(picture, upscale_method, megapixels, 1).args[0])
        safetensors.torch.save_file({"latent_tensor": samples.contiguous()}, output)
    return {"seconds": time.perf_counter() - begin}


host.serve(encode, answers)
