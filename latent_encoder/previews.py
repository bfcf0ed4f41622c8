"""Thumbnails: of the picture behind a latent, or of the latent itself."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MAX_SIDE = 256


def colors_of_latent(
    latent: torch.Tensor, factors: Sequence[Sequence[float]], bias: Sequence[float] | None
) -> torch.Tensor:
    """Roughly what a latent's first frame shows: one linear map from its channels to red, green and blue.

    Args:
        latent: shape (batch, channels, [frames,] height, width), scaled as the diffusion model sees it.
        factors: three numbers for each channel.

    Returns:
        floats in [0, 1] of shape (batch, height, width, 3).
    """
    import torch

    frame = latent[:, :, 0] if latent.ndim == 5 else latent
    colors = torch.nn.functional.linear(
        frame.movedim(1, -1), torch.tensor(factors).T, None if bias is None else torch.tensor(bias)
    )
    return ((colors + 1) / 2).clamp(0, 1)


def webp_preview(picture: torch.Tensor) -> bytes:
    """A WebP file of at most ``MAX_SIDE`` pixels a side.

    Args:
        picture: floats in [0, 1] of shape (batch, height, width, channels); the first picture and its first three
            channels are shown.
    """
    import torch
    from PIL import Image

    pixels = picture[:1, :, :, :3].movedim(-1, 1).float().cpu()
    height, width = pixels.shape[-2:]
    factor = min(1.0, MAX_SIDE / max(height, width))
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    small = torch.nn.functional.interpolate(pixels, size=size, mode="area")[0].movedim(0, -1)
    data = io.BytesIO()
    Image.fromarray((small.clamp(0, 1) * 255).round().to(torch.uint8).numpy()).save(data, "WEBP", quality=80, method=0)
    return data.getvalue()
