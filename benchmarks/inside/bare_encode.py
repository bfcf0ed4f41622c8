"""Times the bare ``vae.encode`` of a picture that ComfyUI's own nodes have loaded and scaled."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import host

answers = host.start()

import torch  # noqa: E402

import nodes  # noqa: E402  ComfyUI's

_vaes: dict[str, Any] = {}


def encode(vae: str, image: str, upscale_method: str, megapixels: float, resolution_steps: int) -> dict[str, Any]:
    """The seconds of one ``vae.encode``, and the sha256 of the latent's bytes."""
    with torch.inference_mode():  # as ComfyUI's executor
        if vae not in _vaes:
            (_vaes[vae],) = nodes.VAELoader().load_vae(vae)
        picture = nodes.LoadImage().load_image(image)[0]
        scaled = nodes.NODE_CLASS_MAPPINGS["ImageScaleToTotalPixels"].execute(
            picture, upscale_method, megapixels, resolution_steps
        )
        pixels = scaled.args[0]
        begin = time.perf_counter()
        samples = _vaes[vae].encode(pixels)
        seconds = time.perf_counter() - begin
    digest = hashlib.sha256(samples.contiguous().numpy().tobytes()).hexdigest()
    return {"seconds": seconds, "sha256": digest, "shape": list(samples.shape), "dtype": str(_vaes[vae].vae_dtype)}


host.serve(encode, answers)
