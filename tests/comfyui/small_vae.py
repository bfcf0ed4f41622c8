"""A VAE for tests that do not look at the numbers: TAESD's architecture with random weights, quick on a CPU.

Both hosts load it as ``taesd``: 4 latent channels, 1/8 of the sides. On a host that reads width 96 only, the demo VAE
takes seconds for each picture, and ComfyUI loads it anew after every prompt without it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

NAME = "taesd"
CHANNELS = 4
WIDTH = 64


def write(vae_approx: Path) -> None:
    """Write both halves into a ``models/vae_approx`` folder; the same numbers each time."""
    generator = torch.Generator().manual_seed(0)
    down, up = ("conv", "block", "block", "block"), ("block", "block", "block", "upsample", "conv")
    encoder = ["in", "block", *down, *down, *down, "out"]
    decoder = ["clamp", "in", "relu", *up, *up, *up, "block", "out"]
    save_file(_weights(encoder, 3, CHANNELS, generator), vae_approx / f"{NAME}_encoder.safetensors")
    save_file(_weights(decoder, CHANNELS, 3, generator), vae_approx / f"{NAME}_decoder.safetensors")


def _weights(layers: list[str], first: int, last: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The state dict of a chain of layers; a ``conv`` between stages has no bias."""
    weights = {}

    def convolution(name: str, channels_in: int, channels_out: int, bias: bool) -> None:
        shape = (channels_out, channels_in, 3, 3)
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / (9 * channels_in)) ** 0.5
        if bias:
            weights[f"{name}.bias"] = torch.randn(channels_out, generator=generator) * 0.1

    for n, layer in enumerate(layers):
        if layer == "in":
            convolution(str(n), first, WIDTH, bias=True)
        elif layer == "out":
            convolution(str(n), WIDTH, last, bias=True)
        elif layer == "conv":
            convolution(str(n), WIDTH, WIDTH, bias=False)
        elif layer == "block":
            for part in (0, 2, 4):
                convolution(f"{n}.conv.{part}", WIDTH, WIDTH, bias=True)
    return weights
