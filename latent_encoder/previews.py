"""Thumbnails of the pictures behind latents."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MAX_SIDE = 256


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
