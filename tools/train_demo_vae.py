#!/usr/bin/env python3
"""Train a small VAE with the Qwen-Image / Wan 2.1 architecture and write it as ComfyUI reads it.

    python tools/train_demo_vae.py OUTPUT.safetensors [--pictures FOLDER] [--held-out PICTURE ...]
                                   [--phase1-minutes 7 | --phase1-steps N] [--phase2-minutes 65 | --phase2-steps N]
                                   [--seed 0]

The recipe, which made `assets/demo_vae.safetensors` in 72 minutes on two CPU cores:

- Only single frames are learned, so the network has 2-D convolutions and is exported as the 3-D one that the file holds
  (`demo_vae_network.py`, beside this file).
- Pictures: the still WebP files of the installed ComfyUI template media packages (about 410), each at up to 768 and up
  to 320 pixels. Batches of 16 crops of 64 x 64: the more varied of two, mirrored half the time, colour channels
  permuted in one of five. Held out, to measure with: scikit-image's astronaut, chelsea, coffee and rocket, or what
  `--held-out` names.
- Loss on pictures in [-1, 1]: 4 MSE + L1 + 0.001 KL(channel of the latent || N(0, 1)), which pulls the latents to unit
  variance. Noise of 0.03 is added to the latents before they are decoded. Gradients are clipped to norm 1.
- Start: weights N(0, 1/fan-in), biases 0, but for one channel before each head's norm (6 in the encoder, 4 in the
  decoder): the norm divides by the magnitude, which would be lost without a channel that hardly varies.
- Phase 1, 7 minutes: residual branches and attention are off, so only the chain of convolutions is trained. AdamW 2e-3.
- Phase 2, 65 minutes: the branches are on, the last convolution of each starting at zero. AdamW 1e-3 after 400 steps of
  warm-up, then a cosine down to nothing. An exponential moving average of the weights (0.998) is what is kept.

With PyTorch's own start and everything on at once it stays at 18 dB after 1,000 steps; phase 2 at 2e-3 without warm-up
falls back to 15 dB. Seeds make the pictures and the start repeatable; a budget in minutes depends on the machine.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from demo_vae_network import DemoVAE, save_exported
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

CROP = 64
BATCH = 16
SUFFIXES = {".webp", ".png", ".jpg", ".jpeg"}


# Pictures.


def template_pictures() -> list[Path]:
    """The WebP files of the installed ComfyUI template media packages."""
    found = []
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name.startswith("comfyui-workflow-templates-media"):
            found += [Path(str(file.locate())) for file in distribution.files or () if file.suffix == ".webp"]
    return sorted(found)


def read_pictures(paths: Iterable[Path]) -> list[Tensor]:
    """Each still picture at up to 768 and up to 320 pixels, as uint8 (3, height, width), but for those below a crop."""
    pictures = []
    for path in paths:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                continue
            rgb = image.convert("RGB")
        for side in (768, 320):
            rgb.thumbnail((side, side), Image.Resampling.LANCZOS)
            if min(rgb.size) >= CROP:
                pictures.append(torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous())
    return pictures


class Crops:
    """Batches of random crops of `pictures` (uint8), (batch, 3, 64, 64) in [-1, 1]. ValueError without pictures."""

    def __init__(self, pictures: list[Tensor], seed: int, batch_size: int = BATCH) -> None:
        if not pictures:
            raise ValueError("no picture to train on")
        self.pictures = pictures
        self.batch_size = batch_size
        self.random = np.random.default_rng(seed)

    def crop(self, picture: Tensor) -> Tensor:
        """A random place of the picture."""
        top, left = (int(self.random.integers(side - CROP + 1)) for side in picture.shape[1:])
        return picture[:, top : top + CROP, left : left + CROP] / 127.5 - 1

    def one(self) -> Tensor:
        """One crop as the recipe wants it."""
        picture = self.pictures[self.random.integers(len(self.pictures))]
        crop = max(self.crop(picture), self.crop(picture), key=lambda candidate: candidate.std().item())
        if self.random.random() < 0.5:
            crop = crop.flip(2)
        if self.random.random() < 0.2:
            crop = crop[torch.from_numpy(self.random.permutation(3))]
        return crop

    def batch(self) -> Tensor:
        """The next batch."""
        return torch.stack([self.one() for _ in range(self.batch_size)])


# Training.


@dataclass(frozen=True)
class Budget:
    """How long a phase runs: a number of steps where there is one, else minutes."""

    minutes: float
    steps: int | None = None

    def progress(self, step: int, seconds: float) -> float:
        """How much of it is used, from 0 to 1 and beyond."""
        if self.steps is not None:
            return step / self.steps if self.steps else 1.0
        return seconds / (60 * self.minutes) if self.minutes else 1.0


def loss_of(network: DemoVAE, pictures: Tensor) -> Tensor:
    """The loss of the recipe for pictures (batch, 3, height, width) in [-1, 1]."""
    latents = network.encode(pictures)
    decoded = network.decode(latents + 0.03 * torch.randn_like(latents))
    variance, mean = torch.var_mean(latents, dim=(0, 2, 3))
    pull = 0.5 * (variance + mean**2 - 1 - torch.log(variance + 1e-8)).mean()
    return 4 * F.mse_loss(decoded, pictures) + F.l1_loss(decoded, pictures) + 0.001 * pull


def train_phase(
    network: DemoVAE, crops: Crops, budget: Budget, rate: float, *, label: str, warm_up: int = 1, cosine: bool = False
) -> DemoVAE:
    """Train `network` in place, print progress every ten seconds, and return the moving average of its weights."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    start = shown = time.monotonic()
    step = 0
    while (progress := budget.progress(step, time.monotonic() - start)) < 1:
        factor = min(1.0, (step + 1) / warm_up) * (0.5 * (1 + math.cos(math.pi * progress)) if cosine else 1.0)
        for group in optimiser.param_groups:
            group["lr"] = rate * factor
        loss = loss_of(network, crops.batch())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        average.update_parameters(network)
        step += 1
        if step == 1 or time.monotonic() - shown > 10:
            shown = time.monotonic()
            minutes = (shown - start) / 60
            print(f"{label}: {progress:4.0%}  step {step}  {minutes:.1f} min  loss {loss.item():.4f}", flush=True)
    print(f"{label}: done after {step} steps, {(time.monotonic() - start) / 60:.1f} min", flush=True)
    averaged = average.module
    assert isinstance(averaged, DemoVAE)
    return averaged


def psnr(network: DemoVAE, picture: Tensor) -> float:
    """PSNR in dB of encode and decode for a uint8 picture (3, height, width), its centre in multiples of 8 pixels."""
    height, width = (side // 8 * 8 for side in picture.shape[1:])
    top, left = (picture.shape[1] - height) // 2, (picture.shape[2] - width) // 2
    wanted = picture[None, :, top : top + height, left : left + width] / 255
    with torch.no_grad():
        decoded = network.decode(network.encode(2 * wanted - 1))
    return -10 * math.log10(F.mse_loss((decoded / 2 + 0.5).clamp(0, 1), wanted).item())


def held_out_pictures(paths: Iterable[Path] | None) -> dict[str, Tensor]:
    """The pictures to measure with, by name, as uint8 (3, height, width): those of `paths`, or scikit-image's."""
    if paths is None:
        from skimage import data

        arrays = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    else:
        arrays = {path.stem: np.array(Image.open(path).convert("RGB")) for path in paths}
    return {name: torch.from_numpy(array.copy()).permute(2, 0, 1) for name, array in arrays.items()}


def train(crops: Crops, first: Budget, second: Budget, held_out: dict[str, Tensor]) -> DemoVAE:
    """Run both phases from a new start and return the network to keep."""

    def show(network: DemoVAE) -> None:
        print("held out: " + ", ".join(f"{name} {psnr(network, held_out[name]):.1f} dB" for name in held_out))

    network = DemoVAE()
    network.initialise()
    train_phase(network, crops, first, 2e-3, label="phase 1")
    show(network)
    network.grow_branches()
    kept = train_phase(network, crops, second, 1e-3, label="phase 2", warm_up=400, cosine=True)
    show(kept)
    return kept


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a small VAE with the Qwen-Image architecture.")
    parser.add_argument("output", type=Path, help="the safetensors file to write")
    parser.add_argument("--pictures", type=Path, help="folder of pictures (default: ComfyUI's template media packages)")
    parser.add_argument("--held-out", type=Path, nargs="*", help="pictures to measure with (default: scikit-image's)")
    parser.add_argument("--seed", type=int, default=0)
    for phase, minutes in (("phase1", 7.0), ("phase2", 65.0)):
        parser.add_argument(f"--{phase}-minutes", type=float, default=minutes, help="default: %(default)g")
        parser.add_argument(f"--{phase}-steps", type=int, help="a number of steps in place of minutes")
    options = parser.parse_args(arguments)

    folder = options.pictures
    paths = (
        template_pictures() if folder is None else sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    )
    pictures = read_pictures(paths)
    if not pictures:
        parser.error(
            "no pictures: pip install comfyui-workflow-templates-media-image, or name a folder with --pictures"
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)  # now, not after an hour
    held_out = held_out_pictures(options.held_out)

    torch.manual_seed(options.seed)
    print(f"{len(pictures)} pictures (each still one at two sizes)", flush=True)
    first = Budget(options.phase1_minutes, options.phase1_steps)
    second = Budget(options.phase2_minutes, options.phase2_steps)
    save_exported(train(Crops(pictures, options.seed), first, second, held_out), options.output)
    print(f"wrote {options.output}, {options.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
