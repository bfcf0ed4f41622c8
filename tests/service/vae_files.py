"""VAE files of every family, with random numbers of a sensible size, in the layout of the original files.

Each is the same in every run. What only decodes is zero: the files hold it, and no test here decodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from comfyui import small_vae
from comfyui.servers import demo_vae
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]


def wan(width: int = 96, picture_channels: int = 3) -> Weights:
    """Wan 2.1 and Qwen-Image; of width 16 or 96."""
    weights = randomized(load_file(demo_vae(padded=width == 96)))
    first, last, bias = "encoder.conv1.weight", "decoder.head.2.weight", "decoder.head.2.bias"
    if picture_channels != 3:
        weights[first] = _random((width, picture_channels, 3, 3, 3), torch.Generator().manual_seed(1))
        weights[last] = weights[last].new_zeros(picture_channels, *weights[last].shape[1:])
        weights[bias] = weights[bias].new_zeros(picture_channels)
    return weights


def kl(latent_channels: int = 4, quant: bool = True, width: int = 128) -> Weights:
    """SD and SDXL (4 latent channels, quant convolutions); SD3 and Flux (16 and none)."""
    widths = [width, 2 * width, 4 * width, 4 * width]
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, inputs: int, outputs: int, size: int = 3) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs, size, size), (outputs,)

    def norm(name: str, channels: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (channels,)

    def block(name: str, inputs: int, outputs: int) -> None:
        norm(f"{name}.norm1", inputs)
        conv(f"{name}.conv1", inputs, outputs)
        norm(f"{name}.norm2", outputs)
        conv(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            conv(f"{name}.nin_shortcut", inputs, outputs, 1)

    def ends(part: str, inputs: int, deepest: int, last: int, outputs: int, conv_in: int) -> None:
        conv(f"{part}.conv_in", inputs, conv_in)
        for number in (1, 2):
            block(f"{part}.mid.block_{number}", deepest, deepest)
        norm(f"{part}.mid.attn_1.norm", deepest)
        for name in ("q", "k", "v", "proj_out"):
            conv(f"{part}.mid.attn_1.{name}", deepest, deepest, 1)
        norm(f"{part}.norm_out", last)
        conv(f"{part}.conv_out", last, outputs)

    ends("encoder", 3, widths[-1], widths[-1], 2 * latent_channels, widths[0])
    ends("decoder", latent_channels, widths[-1], widths[0], 3, widths[-1])
    for level, outputs in enumerate(widths):
        inputs, above = widths[max(level - 1, 0)], widths[min(level + 1, 3)]
        for number in range(2):
            block(f"encoder.down.{level}.block.{number}", outputs if number else inputs, outputs)
        for number in range(3):
            block(f"decoder.up.{level}.block.{number}", outputs if number else above, outputs)
        if level < 3:
            conv(f"encoder.down.{level}.downsample.conv", outputs, outputs)
        if level > 0:
            conv(f"decoder.up.{level}.upsample.conv", outputs, outputs)
    if quant:
        conv("quant_conv", 2 * latent_channels, 2 * latent_channels, 1)
        conv("post_quant_conv", latent_channels, latent_channels, 1)
    return randomized({key: torch.empty(shape, dtype=torch.float16) for key, shape in shapes.items()})


def kl_of_diffusers() -> Weights:
    """Flux's VAE with the keys of diffusers' own files."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    no_quant = {"use_quant_conv": False, "use_post_quant_conv": False}
    with torch.device("meta"):
        model = AutoencoderKL(
            **blocks, **no_quant, block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16
        )
    return randomized({key: torch.empty_like(value, device="cpu") for key, value in model.half().state_dict().items()})


def write_tiny(names: Sequence[str], vae_approx: Path) -> None:
    """TAESD's two files under each name, with quieter blocks than ``small_vae`` writes."""
    small_vae.write(vae_approx)
    for part in ("encoder", "decoder"):
        weights = load_file(vae_approx / f"{small_vae.NAME}_{part}.safetensors")
        quiet = {key: value * 0.1 if ".conv.4." in key else value for key, value in weights.items()}
        for name in names:
            write(quiet, vae_approx / f"{name}_{part}.safetensors")


def randomized(weights: Weights) -> Weights:
    """The same names, shapes and types, with numbers that keep a picture's size from layer to layer."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for key, value in weights.items():
        if key.startswith(("decoder.", "conv2.", "post_quant_conv.")):
            made[key] = torch.zeros_like(value)
        elif value.ndim > 1 and not key.endswith("gamma"):
            made[key] = _random(tuple(value.shape), generator).to(value.dtype)
        else:
            around = 1.0 if key.endswith("gamma") or ("norm" in key and key.endswith("weight")) else 0.0
            made[key] = (torch.randn(value.shape, generator=generator) * 0.1 + around).to(value.dtype)
    return made


def _random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """A convolution; of three slices in time a single picture meets one."""
    used = math.prod(shape[1:]) // (shape[2] if len(shape) == 5 else 1)
    return torch.randn(shape, generator=generator) / math.sqrt(used)


def write(weights: Weights, path: Path) -> Path:
    """Save them as safetensors; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in weights.items()}, path)
    return path
