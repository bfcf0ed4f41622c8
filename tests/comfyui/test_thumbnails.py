"""The small pictures beside latents whose picture is not at hand, and what the editor's picker is told of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui.folders import put
from comfyui.prompts import Outcome, by_hand, load, node, run, save, save_probe
from comfyui.servers import Server
from PIL import Image
from service import vae_files
from skimage import data

PHOTO = data.astronaut()


def saved_by_hand(server: Server, prefix: str, vae: str, **inputs: Any) -> Outcome:
    """LoadImage -> ImageScaleToTotalPixels -> VAEEncode -> SaveLatentToDisk with its preview on."""
    path = server.input / prefix / "astronaut.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PHOTO).save(path)
    steps = 16 if vae == "taef2" else 1  # and 0.33 alone knows either
    prompt = by_hand(f"{prefix}/astronaut.png", vae, "unused", megapixels=0.05, steps=steps)
    return run(server, {**prompt, "5": save(["4", 0], f"{prefix}/latent", preview=True, **inputs)})


def thumbnail(outcome: Outcome) -> Image.Image:
    """The WebP that the node speaks of, which is the one beside the file."""
    path = Path(outcome.record["path"])
    assert outcome.all("latent_previews") == [
        {"filename": f"{path.name}.webp", **{key: outcome.record[key] for key in ("subfolder", "type")}}
    ]
    image = Image.open(f"{path}.webp")
    assert image.format == "WEBP"
    return image


def likeness(image: Image.Image) -> float:
    """The correlation of its brightness with the photograph's, at the thumbnail's size."""
    small = Image.fromarray(PHOTO).convert("L").resize(image.size, Image.Resampling.BOX)
    return float(np.corrcoef(np.asarray(image.convert("L")).ravel(), np.asarray(small).ravel())[0, 1])


def test_of_a_wan_latent_from_its_own_numbers(server: Server, prefix: str) -> None:
    outcome = saved_by_hand(server, prefix, server.host.demo_vae)
    height, width = outcome.record["latent_shape"][-2:]
    # The demo VAE's channels mean other colours than Wan's, so its thumbnail is only known to be one.
    assert thumbnail(outcome).size == (width, height)


@pytest.mark.parametrize("vae", ["taef2", "pixel_space"])
def test_it_looks_like_the_picture(server: Server, prefix: str, vae: str) -> None:
    if vae == "taef2" and not server.host.knows_taef2:
        pytest.skip("this ComfyUI does not know taef2")
    if vae == "taef2" and not (server.folder / "models" / "vae_approx" / "taef2_encoder.pth").exists():
        pytest.skip("no file of taef2 is found")
    assert likeness(thumbnail(saved_by_hand(server, prefix, vae))) > 0.8


def test_none_where_nobody_can_tell_the_colours(server: Server, prefix: str) -> None:
    outcome = run(server, save_probe("plain", f"{prefix}/latent", preview=True))
    assert not Path(outcome.record["path"] + ".webp").exists()
    assert outcome.all("latent_previews") == []


def test_none_where_sd_and_sdxl_look_alike(server: Server, prefix: str) -> None:
    name = "four_channels.safetensors"
    vae_files.write(vae_files.kl(), server.folder / "models" / "vae" / name)
    outcome = saved_by_hand(server, prefix, name)
    assert outcome.record["latent_channels"] == 4
    assert outcome.all("latent_previews") == []


def test_none_where_it_is_switched_off(server: Server, prefix: str) -> None:
    record = saved_by_hand(server, prefix, server.host.demo_vae, if_exists="overwrite").record
    assert Path(record["path"] + ".webp").exists()
    prompt = by_hand(f"{prefix}/astronaut.png", server.host.demo_vae, "unused", megapixels=0.05)
    outcome = run(server, {**prompt, "5": save(["4", 0], f"{prefix}/latent", preview=False, if_exists="overwrite")})
    assert outcome.all("latent_previews") == []
    assert not Path(record["path"] + ".webp").exists()


def test_the_picker_knows_which_latents_have_one(server: Server, prefix: str) -> None:
    with_preview = saved_by_hand(server, prefix, server.host.demo_vae).record["filename"]
    put(server, f"{prefix}/bare.npy", b"not even a latent")
    bare, full = f"{prefix}/bare.npy [input]", f"{prefix}/{with_preview} [output]"
    _, options = server.client.object_info("LoadLatentFromDisk")["LoadLatentFromDisk"]["input"]["required"][
        "latent_file"
    ]
    assert full in options["previews"] and full in options["records"]
    assert bare not in options["previews"] + options["records"]


def test_a_wan_latent_of_other_channels_has_none(server: Server, prefix: str) -> None:
    """What is saved need not be what that VAE made: its shape is looked at too."""
    first = saved_by_hand(server, prefix, server.host.demo_vae).record
    prompt = {
        **load(f"{prefix}/{first['filename']} [output]"),
        "4": node("VAELoader", vae_name="pixel_space"),
        "5": save(["2", 0], f"{prefix}/again", preview=True),
    }
    assert run(server, prompt).all("latent_previews") == []
