"""Jobs for an engine, and a look at what came of them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pictures
import pytest
import torch
from comfyui.small_vae import NAME as SMALL_VAE
from safetensors.torch import load

from latent_encoder.errors import LatentEncoderError
from latent_encoder.images import check_image
from latent_encoder.service.engines.base import Call, EncodedLatent, EncodeJob, Engine, Picture

SMALL = 0.02
SLOW = 4.0
"""Megapixels of a picture that the demo VAE takes seconds for."""


def picture(data: bytes | None = None, name: str = "photo.png", seed: int = 0) -> Picture:
    """A checked picture; another one for each seed."""
    data = pictures.png(seed=seed) if data is None else data
    return Picture(data, name, hashlib.sha256(data).hexdigest(), check_image(data))


def job(source: Picture | None = None, **values: Any) -> EncodeJob:
    """A small job for the small VAE."""
    usual: dict[str, Any] = {
        "picture": source or picture(),
        "request_id": "request-1",
        "vae_name": SMALL_VAE,
        "upscale_method": "lanczos",
        "megapixels": SMALL,
        "resolution_steps": 1,
        "file_format": "safetensors",
    }
    return EncodeJob(**usual | values)


def assert_is_of(encoded: EncodedLatent, wanted: EncodeJob) -> None:
    """The bytes are a latent file, and the record says of which picture and recipe."""
    record = encoded.record
    expected = {
        "request_id": wanted.request_id,
        "vae_name": wanted.vae_name,
        "upscale_method": wanted.upscale_method,
        "megapixels": wanted.megapixels,
        "resolution_steps": wanted.resolution_steps,
        "file_format": wanted.file_format,
        "image_name": wanted.picture.name,
        "image_sha256": wanted.picture.sha256,
        "original_size": [wanted.picture.info.width, wanted.picture.info.height],
        "engine": "comfyui",
        **dict.fromkeys(("path", "filename", "subfolder", "type", "file_bytes", "file_sha256")),
    }
    assert {key: record[key] for key in expected} == expected
    assert list(samples(encoded).shape) == record["latent_shape"]


def failure(engine: Engine, wanted: EncodeJob, call: Call | None = None) -> LatentEncoderError:
    """The error that this job ends with."""
    with pytest.raises(LatentEncoderError) as caught:
        engine.encode(wanted, call or Call(60))
    return caught.value


def until(condition: Callable[[], Any], seconds: float = 30.0, pause: float = 0.05) -> Any:
    """What ``condition`` returns, once it is true; a failure after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not true within {seconds:g} s"
        time.sleep(pause)
    return found


def is_up(engine: Engine) -> bool:
    """Whether the engine says that it can take work."""
    try:
        engine.check()
    except LatentEncoderError:
        return False
    return True


def files_in(folder: Path) -> set[str]:
    """The names of all files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def job_of_bytes(data: bytes, vae: str, **values: Any) -> EncodeJob:
    """The job of encoding a picture's bytes with that VAE."""
    return job(picture(data), vae_name=vae, **values)


def samples(encoded: EncodedLatent) -> torch.Tensor:
    """The latent in a safetensors file's bytes."""
    return load(encoded.content)["latent_tensor"]
