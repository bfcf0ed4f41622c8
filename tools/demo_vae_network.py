"""The network behind `assets/demo_vae.safetensors`, and the way between it and the file.

The file holds a Qwen-Image / Wan 2.1 VAE, which handles video with causal 3-D convolutions. On a
single frame each kernel meets only zeros with all but its last time slice, so the network here has 2-D convolutions. On
export each kernel becomes the last time slice of a 3-D one, whose other slices are zero. The time convolutions, which a
single frame never passes, get the identity in their last slice and so pass the newest frame on (those that double the
frames get it twice, once for each half of their outputs).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

LATENT_CHANNELS = 16
STAGES = (1, 2, 4, 4)  # channels of each stage, in widths
# What has the same shape here and in the file: biases, and what the architecture itself applies frame by frame.
PLANE_KEYS = (".bias", ".resample.1.weight", ".to_qkv.weight", ".proj.weight", ".norm.gamma")


# The network. Names and positions of the modules are those of the file, so that keys need no translation.


class RMSNorm(nn.Module):
    """Divide each pixel's channels by their root mean square, then scale by `gamma` (channels, 1, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * (math.sqrt(x.shape[1]) * self.gamma)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut; with `branch` False the shortcut alone."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.branch = True
        self.residual = nn.Sequential(
            RMSNorm(channels_in),
            nn.SiLU(),
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            RMSNorm(channels_out),
            nn.SiLU(),
            nn.Identity(),  # dropout in the original, which keeps its place in the numbering
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
        )
        self.shortcut = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = self.shortcut(x)
        return shortcut + self.residual(x) if self.branch else shortcut


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, one head, beside the identity; with `branch` False the identity alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = True
        self.norm = RMSNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.branch:
            return x
        qkv = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (batch, pixels, 3 * channels)
        mixed: Tensor = F.scaled_dot_product_attention(*qkv.chunk(3, dim=2))
        change: Tensor = self.proj(mixed.transpose(1, 2).reshape(x.shape))
        return x + change


class Resample(nn.Module):
    """Halve or double both sides. `time_parts` is how many identities its time convolution gets in the file."""

    def __init__(self, first: nn.Module, convolution: nn.Conv2d, time_parts: int) -> None:
        super().__init__()
        self.time_parts = time_parts
        self.resample = nn.Sequential(first, convolution)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.resample(x)
        return y


def down(channels: int, time_parts: int) -> Resample:
    """Halve both sides."""
    return Resample(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2), time_parts)


def up(channels: int, time_parts: int) -> Resample:
    """Double both sides and halve the channels."""
    return Resample(nn.Upsample(scale_factor=2.0), nn.Conv2d(channels, channels // 2, 3, padding=1), time_parts)


def middle(channels: int) -> nn.Sequential:
    """The innermost blocks of either half."""
    return nn.Sequential(ResidualBlock(channels, channels), AttentionBlock(channels), ResidualBlock(channels, channels))


def head(channels_in: int, channels_out: int) -> nn.Sequential:
    """The last convolution of either half, with its norm."""
    return nn.Sequential(RMSNorm(channels_in), nn.SiLU(), nn.Conv2d(channels_in, channels_out, 3, padding=1))


class Encoder(nn.Module):
    """(batch, 3, height, width) -> (batch, 32, height / 8, width / 8)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = width
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1)
        blocks: list[nn.Module] = []
        for stage, factor in enumerate(STAGES):
            for _ in range(2):
                blocks.append(ResidualBlock(channels, factor * width))
                channels = factor * width
            if stage < len(STAGES) - 1:
                blocks.append(down(channels, time_parts=0 if stage == 0 else 1))
        self.downsamples = nn.Sequential(*blocks)
        self.middle = middle(channels)
        self.head = head(channels, 2 * LATENT_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.middle(self.downsamples(self.conv1(x))))
        return y


class Decoder(nn.Module):
    """(batch, 16, height, width) -> (batch, 3, 8 * height, 8 * width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = STAGES[-1] * width
        self.conv1 = nn.Conv2d(LATENT_CHANNELS, channels, 3, padding=1)
        self.middle = middle(channels)
        blocks: list[nn.Module] = []
        for stage, factor in enumerate(reversed(STAGES)):
            for _ in range(3):
                blocks.append(ResidualBlock(channels, factor * width))
                channels = factor * width
            if stage < len(STAGES) - 1:
                blocks.append(up(channels, time_parts=2 if stage < 2 else 0))
                channels //= 2
        self.upsamples = nn.Sequential(*blocks)
        self.head = head(channels, 3)

    def forward(self, z: Tensor) -> Tensor:
        y: Tensor = self.head(self.upsamples(self.middle(self.conv1(z))))
        return y


class DemoVAE(nn.Module):
    """The VAE on single frames.

    Pictures are (batch, 3, height, width) in [-1, 1], sides multiples of 8; latents (batch, 16, height / 8, width / 8).
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encoder = Encoder(width)
        self.conv1 = nn.Conv2d(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1)
        self.conv2 = nn.Conv2d(LATENT_CHANNELS, LATENT_CHANNELS, 1)
        self.decoder = Decoder(width)

    def encode(self, pictures: Tensor) -> Tensor:
        """The mean of the latent; the other half of the encoder's output, a log variance, is not trained."""
        latent: Tensor = self.conv1(self.encoder(pictures))[:, :LATENT_CHANNELS]
        return latent

    def decode(self, latents: Tensor) -> Tensor:
        """The pictures, not clamped."""
        pictures: Tensor = self.decoder(self.conv2(latents))
        return pictures

    def blocks(self) -> Iterator[ResidualBlock | AttentionBlock]:
        """Everything that has a branch to switch."""
        return (block for block in self.modules() if isinstance(block, ResidualBlock | AttentionBlock))

    def initialise(self) -> None:
        """Set the weights that phase 1 starts from, and switch the branches off."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                fan_in = module.weight[0].numel()
                nn.init.normal_(module.weight, std=fan_in**-0.5)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            for blocks, bias in ((self.encoder.downsamples, 6.0), (self.decoder.upsamples, 4.0)):
                last = [module for module in blocks if isinstance(module, Resample)][-1].resample[1]
                assert isinstance(last, nn.Conv2d) and last.bias is not None
                last.bias[0] = bias
        for block in self.blocks():
            block.branch = False

    def grow_branches(self) -> None:
        """Switch the branches on without a change to what the network computes."""
        for block in self.blocks():
            block.branch = True
            last = block.proj if isinstance(block, AttentionBlock) else block.residual[6]
            assert isinstance(last, nn.Conv2d) and last.bias is not None
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)


# Between the network and the file.


def export_weights(network: DemoVAE, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """The tensors of the file: 3-D kernels that give on a single frame what `network` gives."""
    exported = {}
    for key, value in network.state_dict().items():
        if key.endswith(".gamma") and not key.endswith(PLANE_KEYS):
            value = value.unsqueeze(-1)
        elif not key.endswith(PLANE_KEYS):
            earlier = value.new_zeros(*value.shape[:2], value.shape[-1] - 1, *value.shape[2:])
            value = torch.cat([earlier, value.unsqueeze(2)], dim=2)
        exported[key] = value.to(dtype).contiguous()
    for name, module in network.named_modules():
        if isinstance(module, Resample) and module.time_parts:
            convolution = module.resample[1]
            assert isinstance(convolution, nn.Conv2d)
            channels = convolution.in_channels
            kernel = torch.zeros(module.time_parts * channels, channels, 3, 1, 1, dtype=dtype)
            kernel[:, :, -1, 0, 0] = torch.eye(channels, dtype=dtype).repeat(module.time_parts, 1)
            exported[f"{name}.time_conv.weight"] = kernel
            exported[f"{name}.time_conv.bias"] = torch.zeros(module.time_parts * channels, dtype=dtype)
    return exported


def import_weights(exported: dict[str, Tensor]) -> DemoVAE:
    """The network of a file's tensors, in float32; its width is read from them.

    What only several frames would meet (earlier time slices, time convolutions) is dropped.
    Raises KeyError or RuntimeError where the tensors are not those of this architecture.
    """
    network = DemoVAE(exported["decoder.head.0.gamma"].shape[0])
    state = {}
    for key, value in exported.items():
        if ".time_conv." in key:
            continue
        if key.endswith(".gamma"):
            value = value.reshape(-1, 1, 1)
        elif value.ndim == 5:
            value = value[:, :, -1]
        state[key] = value.float()
    network.load_state_dict(state)
    return network


def load_network(path: Path) -> DemoVAE:
    """The network of a file that this tool wrote (or of any VAE of this architecture), in float32."""
    return import_weights(load_file(path))


def save_exported(network: DemoVAE, path: Path) -> None:
    """Write the file under a temporary name first: `path` is whole or it is not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # Not `save_file`, which leaves a file that only its owner may read.
        temporary.write_bytes(save(export_weights(network), metadata={"format": "pt"}))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
