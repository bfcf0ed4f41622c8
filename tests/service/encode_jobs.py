"""Jobs for an engine, and the latents that come of them."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from safetensors.torch import load

from latent_encoder.images import check_image
from latent_encoder.service.engines.base import EncodedLatent, EncodeJob, Picture


def job(data: bytes, vae: str, **changes: Any) -> EncodeJob:
    """The job of encoding a picture, at 0.02 megapixels; ``changes`` replaces the fields."""
    picture = Picture(data, "picture.png", hashlib.sha256(data).hexdigest(), check_image(data))
    fields: dict[str, Any] = {
        "picture": picture,
        "request_id": None,
        "vae_name": vae,
        "upscale_method": "lanczos",
        "megapixels": 0.02,
        "resolution_steps": 1,
        "file_format": "safetensors",
    }
    return EncodeJob(**fields | changes)


def samples(encoded: EncodedLatent) -> torch.Tensor:
    """The latent in a safetensors file's bytes."""
    return load(encoded.content)["latent_tensor"]
