"""What the tests of latent files on disk share: a small latent, its record, and the codes of refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from unit.odd_latents import Nested, random_tensor

from latent_encoder.errors import LatentEncoderError
from latent_encoder.latent_file import load_latent, save_latent

FORMATS = ("safetensors", "latent", "pt", "npy")
SAMPLES = random_tensor("float32", (1, 4, 6, 8))
LATENT = {"samples": SAMPLES}
RECORD = {
    "request_id": "r1",
    "vae_name": "qwen_image_vae.safetensors",
    "vae_sha256": "a" * 64,
    "image_name": "größe 猫.png",
    "image_sha256": "b" * 64,
    "original_size": (1024, 768),
    "scaled_size": (1000, 750),
    "megapixels": 0.7,
    "created_at": "2026-01-02T03:04:05+02:00",
}
NOT_IN_HEADER = {"path", "filename", "subfolder", "type", "file_bytes", "file_sha256"}


def sidecar_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refusal(path: Path) -> str:
    """The code with which a file is refused."""
    with pytest.raises(LatentEncoderError) as caught:
        load_latent(path, nested=Nested)
    return caught.value.code


def refused_save(folder: Path, latent: dict[str, Any] | None = None, stem: str = "a", **options: Any) -> str:
    """The code with which a save is refused; nothing new is left in the folder."""
    before = names_in(folder) if folder.is_dir() else set()
    with pytest.raises(LatentEncoderError) as caught:
        save_latent(latent or LATENT, folder, stem, **options)
    assert (names_in(folder) if folder.is_dir() else set()) == before
    return caught.value.code
