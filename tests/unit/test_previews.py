"""Thumbnails."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from latent_encoder.previews import MAX_SIDE, webp_preview


def opened(picture: torch.Tensor) -> Image.Image:
    image = Image.open(io.BytesIO(webp_preview(picture)))
    image.load()
    assert image.format == "WEBP" and max(image.size) <= MAX_SIDE
    return image.convert("RGB")


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (1024, 768, (256, 192)),
        (768, 1024, (192, 256)),
        (256, 256, (256, 256)),
        (257, 100, (256, 100)),
        (100, 50, (100, 50)),
        (1, 1, (1, 1)),
        (1, 4000, (1, 256)),
        (4000, 1, (256, 1)),
    ],
)
def test_sizes(width: int, height: int, size: tuple[int, int]) -> None:
    found = opened(torch.rand(1, height, width, 3)).size
    assert all(abs(a - b) <= 1 for a, b in zip(found, size, strict=True)), found


def test_it_shows_the_first_picture() -> None:
    """Red on the left, blue on the right; the second picture and the alpha channel are not shown."""
    picture = torch.zeros(2, 64, 128, 4)
    picture[0, :, :64, 0] = 1
    picture[0, :, 64:, 2] = 1
    picture[1] = 1
    image = opened(picture)
    for x, colour in ((20, (255, 0, 0)), (108, (0, 0, 255))):
        found = image.getpixel((x, 32))
        assert isinstance(found, tuple)
        assert all(abs(a - b) < 40 for a, b in zip(found, colour, strict=True)), found


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_layouts(dtype: torch.dtype) -> None:
    whole = torch.rand(1, 3, 40, 60).to(dtype).requires_grad_()
    assert opened(whole.detach().permute(0, 2, 3, 1)[:, ::2]).size == (60, 20)


def test_values_out_of_range() -> None:
    picture = torch.full((1, 16, 16, 3), 7.0)
    picture[:, :8] = -7
    image = opened(picture)
    assert image.getpixel((8, 2)) < (20, 20, 20) and image.getpixel((8, 14)) > (235, 235, 235)  # type: ignore[operator]
    picture[0, 0, 0] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    assert opened(picture).size == (16, 16)
