"""OptimizeVAEForEncoding: the same latents by another way, told in the record; other VAEs stay as they are."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pictures
import pytest
from comfyui.folders import put
from comfyui.prompts import Prompt, encode, node, outcome, run, save
from comfyui.servers import Server
from comfyui.small_vae import NAME as OTHER_VAE
from PIL import Image
from safetensors.torch import load_file

TOLERANCE = 2e-5


def chain(image: str, vae: str, prefix: str, *, optimized: bool, encoder: dict[str, Any] | None = None) -> Prompt:
    """LoadImage, VAEEncode and SaveLatentToDisk, with the optimized VAE or the loaded one."""
    wanted = encoder or node("VAEEncode")
    return {
        "1": node("VAELoader", vae_name=vae),
        "2": node("OptimizeVAEForEncoding", vae=["1", 0]),
        "3": node("LoadImage", image=image),
        "4": node(wanted["class_type"], pixels=["3", 0], vae=["2" if optimized else "1", 0], **wanted["inputs"]),
        "5": save(["4", 0], f"{prefix}/{'fast' if optimized else 'stock'}"),
    }


def difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    one, other = (load_file(Path(record["path"]))["latent_tensor"] for record in (first, second))
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    return float((one - other).abs().max())


@pytest.mark.parametrize("size", [(96, 64), (203, 131), (64, 640)])
def test_the_latents_are_the_same(server: Server, prefix: str, size: tuple[int, int]) -> None:
    image, vae = put(server, f"{prefix}/a.png", pictures.png(*size)), server.host.demo_vae
    fast = run(server, chain(image, vae, prefix, optimized=True)).record
    stock = run(server, chain(image, vae, prefix, optimized=False)).record
    assert 0 < difference(fast, stock) < TOLERANCE
    assert (fast["optimized"], stock["optimized"]) == (True, None)
    assert fast["vae_name"] == stock["vae_name"] == vae
    assert fast["vae_sha256"] == stock["vae_sha256"] is not None


def test_encode_to_latent_file_takes_it_too(server: Server, prefix: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png())
    prompt = encode(image, server.host.demo_vae, filename_prefix=f"{prefix}/stock")
    stock = run(server, prompt).record
    prompt["3"] = node("OptimizeVAEForEncoding", vae=["1", 0])
    prompt["2"]["inputs"] |= {"vae": ["3", 0], "filename_prefix": f"{prefix}/fast"}
    fast = run(server, prompt).record
    assert 0 < difference(fast, stock) < TOLERANCE
    assert (fast["optimized"], stock["optimized"]) == (True, None)
    assert fast["vae_name"] == server.host.demo_vae


def test_the_given_vae_is_left_as_it_is(server: Server, prefix: str) -> None:
    """Before and after the optimized one has run, in one ComfyUI that keeps the VAE, it encodes to the bit the same."""
    image, vae = put(server, f"{prefix}/a.png", pictures.png()), server.host.demo_vae
    before = run(server, chain(image, vae, f"{prefix}/before", optimized=False)).record
    run(server, chain(image, vae, prefix, optimized=True))
    image = put(server, f"{prefix}/again.png", pictures.png())  # so that ComfyUI does not answer from its cache
    after = run(server, chain(image, vae, f"{prefix}/after", optimized=False)).record
    assert difference(before, after) == 0


def test_decoding_is_stock(server: Server, prefix: str) -> None:
    image, vae = put(server, f"{prefix}/a.png", pictures.png()), server.host.demo_vae
    prompt = chain(image, vae, prefix, optimized=True)
    for number, source in (("6", "1"), ("7", "2")):
        prompt[number] = node("VAEDecode", samples=["4", 0], vae=[source, 0])
        prompt[f"1{number}"] = node("SaveImage", images=[number, 0], filename_prefix=f"{prefix}/decoded{number}")
    outcome = run(server, prompt)
    assert outcome.success, outcome.text
    first, second = (server.output / prefix / f"decoded{number}_00001_.png" for number in ("6", "7"))
    assert Image.open(first).tobytes() == Image.open(second).tobytes()


def test_tiled_encoding(server: Server, prefix: str) -> None:
    encoder = node("VAEEncodeTiled", tile_size=128, overlap=32, temporal_size=64, temporal_overlap=8)
    image, vae = put(server, f"{prefix}/a.png", pictures.png(320, 200)), server.host.demo_vae
    fast = run(server, chain(image, vae, prefix, optimized=True, encoder=encoder)).record
    stock = run(server, chain(image, vae, prefix, optimized=False, encoder=encoder)).record
    assert 0 < difference(fast, stock) < TOLERANCE
    assert fast["optimized"] is True


def test_a_video_goes_the_stock_way(server: Server, prefix: str) -> None:
    image, vae = put(server, f"{prefix}/a.png", pictures.png()), server.host.demo_vae
    records = []
    for optimized in (True, False):
        prompt = chain(image, vae, prefix, optimized=optimized)
        prompt["8"] = node("RepeatImageBatch", image=["3", 0], amount=5)
        prompt["4"]["inputs"]["pixels"] = ["8", 0]
        records.append(run(server, prompt).record)
    assert records[0]["latent_shape"] == records[1]["latent_shape"]
    assert records[0]["latent_shape"][2] == 2
    assert difference(*records) == 0
    assert (records[0]["optimized"], records[1]["optimized"]) == (False, None)


@pytest.mark.parametrize(("vae", "kind"), [(OTHER_VAE, "TAESD"), ("pixel_space", "PixelspaceConversionVAE")])
def test_another_vae_stays_as_it_is(server: Server, prefix: str, vae: str, kind: str) -> None:
    image, said = put(server, f"{prefix}/a.png", pictures.png()), len(server.log())
    fast = run(server, chain(image, vae, prefix, optimized=True)).record
    assert re.search(rf"Latent Encoder: a VAE of kind {kind} stays as it is", server.log()[said:])
    stock = run(server, chain(image, vae, prefix, optimized=False)).record
    assert difference(fast, stock) == 0
    assert fast["optimized"] is None
    assert fast["vae_name"] == vae


def test_a_model_that_does_more_switches_it_off(server: Server, prefix: str) -> None:
    image, said = put(server, f"{prefix}/a.png", pictures.png()), len(server.log())
    records = []
    for optimized in (True, False):
        prompt = chain(image, server.host.demo_vae, prefix, optimized=optimized)
        prompt["9"] = node("ProbeVAE", vae=["1", 0], kind="shifted")
        prompt["2"]["inputs"]["vae"] = ["9", 0]
        prompt["4"]["inputs"]["vae"] = ["2" if optimized else "9", 0]
        records.append(run(server, prompt).record)
    assert difference(*records) == 0
    assert [record["optimized"] for record in records] == [False, None]
    assert "so it is off" in server.log()[said:]


def test_a_copy_with_another_model_encodes_with_that(server: Server, prefix: str) -> None:
    """ComfyUI's SelectVAEDevice makes one: an attribute of the VAE's would go on with the first model."""
    image, vae = put(server, f"{prefix}/a.png", pictures.png()), server.host.demo_vae
    prompt = chain(image, vae, f"{prefix}/copied", optimized=True)
    prompt["8"] = node("ProbeVAE", vae=["1", 0], kind="shifted")
    prompt["9"] = node("ProbeVAE", vae=["2", 0], kind="copied", other=["8", 0])
    prompt["4"]["inputs"]["vae"] = ["9", 0]
    copied = run(server, prompt).record
    stock = run(server, chain(image, vae, prefix, optimized=False)).record
    assert difference(copied, stock) == pytest.approx(0.1, abs=1e-5)
    assert copied["optimized"] is None


def test_it_can_be_interrupted(server: Server, prefix: str) -> None:
    side = 2048 if server.host.release >= (0, 33) else 1024  # the older one's demo VAE is of full width
    image = put(server, f"{prefix}/a.png", pictures.png(side, side))
    prompt = chain(image, server.host.demo_vae, prefix, optimized=True)
    run(server, chain(put(server, f"{prefix}/b.png", pictures.png()), server.host.demo_vae, prefix, optimized=True))
    prompt_id = server.client.submit(prompt)
    time.sleep(1.5)  # it is loaded, and encodes
    asked = time.monotonic()
    server.client.interrupt()
    result = outcome(server.client.wait(prompt_id, timeout=120))
    took = time.monotonic() - asked
    assert result.messages[-1][0] == "execution_interrupted"
    begin = time.monotonic()
    assert run(server, prompt).record["optimized"] is True
    assert took < 0.5 * (time.monotonic() - begin)


def test_twice_is_once(server: Server, prefix: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png())
    prompt = chain(image, server.host.demo_vae, prefix, optimized=True)
    prompt["9"] = node("OptimizeVAEForEncoding", vae=["2", 0])
    prompt["4"]["inputs"]["vae"] = ["9", 0]
    record = run(server, prompt).record
    assert record["optimized"] is True
    assert record["vae_name"] == server.host.demo_vae


def test_a_latent_that_was_changed_is_not_known(server: Server, prefix: str) -> None:
    """Not all that comes from an optimized VAE is still what it made."""
    image = put(server, f"{prefix}/a.png", pictures.png())
    prompt = chain(image, server.host.demo_vae, prefix, optimized=True)
    prompt["9"] = node("LatentMultiply", samples=["4", 0], multiplier=0.5)
    prompt["5"]["inputs"]["samples"] = ["9", 0]
    assert run(server, prompt).record["optimized"] is None
