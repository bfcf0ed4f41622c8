"""Times the bare ``vae.encode`` of a picture that ComfyUI's own nodes have loaded and scaled."""

from __future__ import annotations

import time
from typing import Any

import host

answers = host.start()

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import nodes  # noqa: E402  ComfyUI's

_vaes: dict[str, Any] = {}


def encode(vae: str, image: str, megapixels: float, latent: str) -> float:
    """The seconds of one ``vae.encode``, whose latent is written to a file."""
    with torch.inference_mode():  # as ComfyUI's executor
        if vae not in _vaes:
            (_vaes[vae],) = nodes.VAELoader().load_vae(vae)
        picture = nodes.LoadImage().load_image(image)[0]
        scaled = nodes.NODE_CLASS_MAPPINGS["ImageScaleToTotalPixels"].execute(picture, "lanczos", megapixels, 1)
        pixels = scaled.args[0]
        begin = time.perf_counter()
        samples = _vaes[vae].encode(pixels)
        seconds = time.perf_counter() - begin
    save_file({"latent_tensor": samples.contiguous()}, latent)
    return seconds


host.serve(encode, answers)
