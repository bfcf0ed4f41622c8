"""Real numbers: pictures go through a trained VAE into a latent file and back, at the quality that is stated for it."""

from __future__ import annotations

import io
import math

import numpy as np
import pictures
import pytest
import skimage.data
from comfyui.folders import put
from comfyui.prompts import encode, node, run
from comfyui.servers import Server, extra_models
from PIL import Image

STATED = {"astronaut": 29.8, "chelsea": 32.5, "coffee": 28.1, "rocket": 29.0}
"""PSNR in dB, as the model's card has it, of pictures that the VAE never saw."""


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures, in dB."""
    assert one.size == other.size
    difference = np.asarray(one.convert("RGB"), np.float64) - np.asarray(other.convert("RGB"), np.float64)
    return 10 * math.log10(255**2 / (difference**2).mean())


def there_and_back(server: Server, prefix: str, picture: Image.Image, vae: str) -> float:
    """Encode to a file, load the file, decode it; the PSNR against the picture, whose size is left as it is."""
    image = put(server, f"{prefix}/a.png", pictures.encode(picture))
    megapixels = picture.width * picture.height / 1024**2
    record = run(server, encode(image, vae, filename_prefix=f"{prefix}/a", megapixels=megapixels)).record
    assert record["scaled_size"] == list(picture.size)
    prompt = {
        "1": node("VAELoader", vae_name=vae),
        "2": node("LoadLatentFromDisk", latent_file=f"{prefix}/{record['filename']} [output]", vae=["1", 0]),
        "3": node("VAEDecode", samples=["2", 0], vae=["1", 0]),
        "4": node("SaveImage", images=["3", 0], filename_prefix=f"{prefix}/decoded"),
    }
    decoded = run(server, prompt)
    assert decoded.success, decoded.text
    [item] = decoded.all("images")
    return psnr(picture, Image.open(io.BytesIO(server.client.view(item))))


def photograph(name: str, multiple: int, longest: int = 10_000) -> Image.Image:
    """A photograph of scikit-image's, cropped so that no VAE has to crop it."""
    picture = Image.fromarray(getattr(skimage.data, name)())
    picture.thumbnail((longest, longest))
    return picture.crop((0, 0, picture.width // multiple * multiple, picture.height // multiple * multiple))


SMALLEST = "chelsea"  # at full width, on two cores, it takes half a minute, and each other one takes longer


@pytest.mark.parametrize(
    "name", [name if name == SMALLEST else pytest.param(name, marks=pytest.mark.full_width) for name in STATED]
)
def test_demo_vae_at_its_stated_psnr(server: Server, prefix: str, name: str) -> None:
    found = there_and_back(server, prefix, photograph(name, 8), server.host.demo_vae)
    print(f"\n{server.host}: {name} {found:.2f} dB, stated {STATED[name]}")
    assert found == pytest.approx(STATED[name], abs=0.1)


def test_taef2(server: Server, prefix: str) -> None:
    if not server.host.knows_taef2:
        pytest.skip("this ComfyUI does not know taef2")
    if not (extra_models() / "vae_approx" / "taef2_encoder.pth").is_file():
        pytest.skip("the taef2 weights are not here: name their models folder in LATENT_ENCODER_TEST_MODELS")
    picture = photograph("astronaut", 16, longest=256)
    assert there_and_back(server, prefix, picture, "taef2") > 26
    picture = photograph("coffee", 1)
    image = put(server, f"{prefix}/b.png", pictures.encode(picture))
    record = run(server, encode(image, "taef2", filename_prefix=f"{prefix}/b", resolution_steps=16)).record
    width, height = record["scaled_size"]
    assert record["latent_shape"] == [1, 128, height // 16, width // 16]
    assert record["downscale"] == 16
