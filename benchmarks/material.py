"""What the measurements work on: ComfyUI's folders, VAEs and pictures."""

from __future__ import annotations

import random
import runpy
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

RANDOM_VAE, DEMO_VAE = "random_96.safetensors", "demo_vae.safetensors"
PICTURE_SIDE = 1024


def base_directory(folder: Path, pack: Path | None = None) -> None:
    """Make a base directory for ComfyUI, with this pack linked into it or without."""
    for name in ("custom_nodes", "models/vae", "input", "output"):
        (folder / name).mkdir(parents=True)
    if pack:
        (folder / "custom_nodes" / "latent-encoder").symlink_to(pack)


def add_demo_vae(folder: Path, repository: Path) -> None:
    """Put the small VAE, of Qwen-Image's architecture, into a base directory."""
    (folder / "models" / "vae" / DEMO_VAE).symlink_to(repository / "assets" / DEMO_VAE)


def add_random_vae(folder: Path, repository: Path) -> None:
    """Put a Qwen-Image VAE of its full width into a base directory: bfloat16, random weights of a usual size."""
    pad = runpy.run_path(str(repository / "tools" / "pad_demo_vae.py"))["pad_weights"]
    generator = torch.Generator().manual_seed(0)

    def random_like(key: str, value: torch.Tensor) -> torch.Tensor:
        if key.endswith(".gamma"):
            return torch.ones_like(value)
        if key.endswith(".bias"):
            return torch.zeros_like(value)
        return torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5

    weights = pad(load_file(repository / "assets" / DEMO_VAE), 96)
    weights = {key: random_like(key, value).to(torch.bfloat16) for key, value in weights.items()}
    save_file(weights, folder / "models" / "vae" / RANDOM_VAE)


def write_pictures(folder: Path) -> Iterator[str]:
    """Names of PNG files in ``folder``, made one by one: crops of photographs, enlarged to the size of a camera's."""
    choose = random.Random(0)
    while True:
        for photograph in _photographs():
            side = choose.randint(200, min(photograph.size))
            left, top = (choose.randint(0, size - side) for size in photograph.size)
            crop = photograph.crop((left, top, left + side, top + side))
            name = f"{time.time_ns()}.png"
            crop.resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS).save(folder / name)
            yield name


def write_photographs(folder: Path, count: int) -> dict[str, tuple[int, int]]:
    """Photographs of several sizes, as PNG, JPEG and WebP; their sizes by their names in ``folder``."""
    folder.mkdir(parents=True)
    sources = _photographs()
    sizes = {}
    for number in range(count):
        name = f"{number:02}.{('png', 'jpg', 'webp')[number % 3]}"
        sizes[name] = 640 + 40 * number, 480 + 24 * number
        sources[number % len(sources)].resize(sizes[name], Image.Resampling.LANCZOS).save(folder / name)
    return sizes


def write_soft_picture(path: Path, seed: int, size: tuple[int, int]) -> Path:
    """A picture of soft colours and some noise, which compresses as a photograph does; returns ``path``."""
    chance = np.random.default_rng(seed)
    coarse = Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    pixels = pixels + chance.integers(-6, 7, pixels.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def _photographs() -> list[Image.Image]:
    from skimage import data

    return [Image.fromarray(photograph()) for photograph in (data.astronaut, data.coffee, data.chelsea)]
