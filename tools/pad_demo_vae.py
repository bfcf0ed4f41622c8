#!/usr/bin/env python3
"""Make a wider copy of a Qwen-Image / Wan 2.1 VAE file that computes the same function.

    python tools/pad_demo_vae.py SRC DST [--width 96]

Some ComfyUI versions (0.3.64 among them) build this VAE at width 96 whatever the file says. The copy's added channels
are zero from end to end, and three things that depend on the number of channels are set right:

- An RMS norm divides by |x| and multiplies by sqrt(channels): each gamma is multiplied by sqrt(old / new).
- Attention divides its scores by sqrt(channels): the query part of `to_qkv` is multiplied by sqrt(new / old).
- The outputs of `to_qkv` are three parts, those of an up-sampling time convolution two: each part is padded by itself.

The rescaled tensors are written in float32, the rest as it was. In float16 the rounding of those factors would change a
latent by 6e-4; so it is 4e-6.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, float32

OUTSIDE = ("conv1.", "conv2.")  # work on the latent, whose channels stay
FIXED_INPUT = ("encoder.conv1.weight", "decoder.conv1.weight")  # read the picture, the latent
FIXED_OUTPUT = ("encoder.head.2.", "decoder.head.2.")  # write the latent, the picture


def widen(tensor: Tensor, factor: int, parts: int, inputs: bool) -> Tensor:
    """Pad with zeros: dimension 0 in `parts` equal parts (none where 0), and dimension 1 where `inputs` is true."""
    rows, *rest = tensor.shape
    if inputs:
        padded = tensor.new_zeros(rows, factor * rest[0], *rest[1:])
        padded[:, : rest[0]] = tensor
        tensor = padded
    if not parts:
        return tensor
    part = rows // parts
    padded = tensor.new_zeros(parts, factor * part, *tensor.shape[1:])
    padded[:, :part] = tensor.reshape(parts, part, *tensor.shape[1:])
    return padded.flatten(0, 1)


def pad_weights(weights: dict[str, Tensor], width: int = 96) -> dict[str, Tensor]:
    """The tensors of the copy.

    Raises ValueError where `weights` are no such VAE, or `width` is no multiple of its width.
    """
    if "decoder.head.0.gamma" not in weights or "encoder.middle.1.to_qkv.weight" not in weights:
        raise ValueError("not a Qwen-Image / Wan 2.1 VAE: its tensors have other names")
    old = weights["decoder.head.0.gamma"].shape[0]
    factor, rest = divmod(width, old)
    if rest or not factor:
        raise ValueError(f"the new width, {width}, must be a multiple of the file's, {old}")
    padded = {}
    for key, value in weights.items():
        if key.startswith(OUTSIDE):
            padded[key] = value
            continue
        if key.endswith(".gamma"):
            value = value.to(float32) / math.sqrt(factor)
        parts = 1
        if ".to_qkv." in key:
            parts = 3
            value = value.to(float32, copy=True)
            value[: value.shape[0] // 3] *= math.sqrt(factor)
        elif ".time_conv." in key and key.startswith("decoder."):
            parts = 2
        elif key.startswith(FIXED_OUTPUT):
            parts = 0
        inputs = key.endswith(".weight") and key not in FIXED_INPUT
        padded[key] = widen(value, factor, parts, inputs)
    return padded


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Make a wider copy of a Qwen-Image VAE that computes the same function."
    )
    parser.add_argument("source", metavar="SRC", type=Path)
    parser.add_argument("destination", metavar="DST", type=Path)
    parser.add_argument("--width", type=int, default=96, help="channels of the first stage (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        padded = pad_weights(load_file(options.source), options.width)
    except (OSError, SafetensorError, ValueError) as error:
        parser.error(f"{options.source}: {error}")
    # Under a temporary name first, so that the destination is whole or not there.
    temporary = options.destination.with_name(f".{options.destination.name}.{os.getpid()}.part")
    try:
        # Not `save_file`, which leaves a file that only its owner may read.
        temporary.write_bytes(save(padded, metadata={"format": "pt"}))
        os.replace(temporary, options.destination)
    except OSError as error:
        parser.error(f"{options.destination}: {error}")
    finally:
        temporary.unlink(missing_ok=True)
    print(f"wrote {options.destination}, {options.destination.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
