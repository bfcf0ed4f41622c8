"""Numbers that cannot be meant, and pictures that become too narrow: refused before the VAE is loaded."""

from __future__ import annotations

from typing import Any

import pictures
import pytest
from comfyui.folders import put, snapshot
from comfyui.prompts import Outcome, encode, run
from comfyui.servers import Server
from comfyui.small_vae import NAME as SMALL_VAE

NAN, INFINITY = float("nan"), float("inf")  # Python's JSON carries them, and so do ComfyUI's


def refused(server: Server, prefix: str, size: tuple[int, int] = (128, 96), **inputs: Any) -> Outcome:
    """Send a good picture with these inputs; what came of it, when nothing was written and no VAE was loaded."""
    image = put(server, f"{prefix}/a.png", pictures.png(*size))
    before = snapshot(server)
    outcome = run(server, encode(image, "spare_vae.safetensors", filename_prefix=f"{prefix}/a", **inputs))
    assert not outcome.success
    assert snapshot(server) == before
    assert "spare_vae.safetensors" not in server.state()["vae_loads"]
    return outcome


@pytest.mark.parametrize(
    "megapixels", [0, -1, 0.009, 16.1, 1e9, 1e308, NAN, INFINITY, -INFINITY, "nan", "1e9"], ids=str
)
def test_megapixels(server: Server, prefix: str, megapixels: float | str) -> None:
    outcome = refused(server, prefix, megapixels=megapixels)
    assert outcome.code == "INVALID_REQUEST", outcome.text
    assert "megapixels" in outcome.text


def test_megapixels_that_are_no_number(server: Server, prefix: str) -> None:
    """ComfyUI turns the value into a number before our node sees it, and says so in its own words where it cannot."""
    assert "invalid_input_type" in refused(server, prefix, megapixels="many").text


@pytest.mark.parametrize("steps", [0, -8, 257, 10**12])
def test_resolution_steps(server: Server, prefix: str, steps: int) -> None:
    outcome = refused(server, prefix, resolution_steps=steps)
    assert outcome.code == "INVALID_REQUEST", outcome.text
    assert "resolution_steps" in outcome.text


def test_resolution_steps_on_a_host_that_has_none(server: Server, prefix: str) -> None:
    if server.host.has_resolution_steps:
        pytest.skip("this ComfyUI has resolution_steps")
    outcome = refused(server, prefix, resolution_steps=16)
    assert outcome.code == "INVALID_REQUEST", outcome.text
    assert "resolution_steps" in outcome.text


@pytest.mark.parametrize("method", ["", "Lanczos", "bislerp", "../lanczos"])
def test_upscale_method(server: Server, prefix: str, method: str) -> None:
    assert refused(server, prefix, upscale_method=method).code == "INVALID_REQUEST"


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (2, 9000)], ids=str)
def test_side_below_eight_pixels(server: Server, prefix: str, size: tuple[int, int]) -> None:
    outcome = refused(server, prefix, size, megapixels=0.05)
    assert outcome.code == "SCALING_FAILED", outcome.text


def test_smallest_side_that_encodes(server: Server, prefix: str) -> None:
    """8 pixels are one number of the latent."""
    image = put(server, f"{prefix}/a.png", pictures.png(8, 1312))
    prompt = encode(image, SMALL_VAE, filename_prefix=f"{prefix}/a", megapixels=8 * 1312 / 1024**2)
    record = run(server, prompt).record
    assert record["scaled_size"] == [8, 1312]
    assert record["latent_shape"] == [1, 4, 164, 1]
