"""The recipe of a scaling, and the size that comes of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_encoder.errors import LatentEncoderError
from latent_encoder.images import (
    UPSCALE_METHODS,
    check_recipe,
    scaled_size,
)


def stock(width: int, height: int, megapixels: float, steps: int) -> tuple[int, int]:
    """What the host's ImageScaleToTotalPixels does, in its documented formula."""
    factor = math.sqrt(megapixels * 1024 * 1024 / (width * height))
    return round(width * factor / steps) * steps, round(height * factor / steps) * steps


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.floats(0.01, 16), st.integers(1, 256))
def test_scaled_size_is_the_formula(width: int, height: int, megapixels: float, steps: int) -> None:
    wanted = stock(width, height, megapixels, steps)
    if min(wanted) < 8:
        with pytest.raises(LatentEncoderError) as caught:
            scaled_size(width, height, megapixels, steps)
        assert caught.value.code == "SCALING_FAILED"
        return
    assert scaled_size(width, height, megapixels, steps) == wanted
    assert all(side % steps == 0 for side in wanted)


@pytest.mark.parametrize(
    ("width", "height", "megapixels", "steps", "size"),
    [
        (1024, 1024, 1.0, 1, (1024, 1024)),
        (512, 512, 1.0, 1, (1024, 1024)),
        (4000, 3000, 1.0, 1, (1182, 887)),
        (1920, 1080, 0.25, 1, (683, 384)),
        (1920, 1080, 1.0, 64, (1344, 768)),
        (1, 1, 0.01, 1, (102, 102)),
    ],
)
def test_sizes_worked_out(width: int, height: int, megapixels: float, steps: int, size: tuple[int, int]) -> None:
    assert scaled_size(width, height, megapixels, steps) == size


@pytest.mark.parametrize(
    ("width", "height", "megapixels", "steps"),
    [(1, 4000, 0.01, 1), (4000, 1, 0.2, 1), (20_000, 1, 1.0, 1), (100, 3000, 0.01, 256), (1, 30_000, 1.0, 1)],
)
def test_a_side_too_short(width: int, height: int, megapixels: float, steps: int) -> None:
    with pytest.raises(LatentEncoderError) as caught:
        scaled_size(width, height, megapixels, steps)
    assert caught.value.code == "SCALING_FAILED" and f"{width} x {height}" in caught.value.message


@pytest.mark.parametrize("megapixels", [0, -1, 1e9, math.nan, math.inf, -math.inf, 0.0099, 16.01])
def test_megapixels_out_of_range(megapixels: float) -> None:
    with pytest.raises(LatentEncoderError) as caught:
        check_recipe("lanczos", megapixels, 1)
    assert caught.value.code == "INVALID_REQUEST" and "megapixels" in caught.value.message


@pytest.mark.parametrize("steps", [0, -1, 257, 10**9])
def test_steps_out_of_range(steps: int) -> None:
    with pytest.raises(LatentEncoderError) as caught:
        check_recipe("lanczos", 1.0, steps)
    assert caught.value.code == "INVALID_REQUEST" and "resolution_steps" in caught.value.message


def test_recipes() -> None:
    for method in UPSCALE_METHODS:
        for megapixels in (0.01, 1.0, 16.0):
            check_recipe(method, megapixels, 1)
    check_recipe("area", 1, 256)
    for method in ("Lanczos", "", "nearest"):
        with pytest.raises(LatentEncoderError) as caught:
            check_recipe(method, 1.0, 1)
        assert caught.value.code == "INVALID_REQUEST" and "upscale_method" in caught.value.message
