"""Odd pictures that encode, broken ones that are refused, and one that is replaced while it is read."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pictures
import pytest
from comfyui.folders import put, snapshot
from comfyui.prompts import encode, outcome, run
from comfyui.servers import Server
from comfyui.small_vae import NAME as SMALL_VAE

from latent_encoder.latent_file import load_latent


@pytest.mark.parametrize("name", pictures.good())
def test_odd_picture_encodes(server: Server, prefix: str, name: str) -> None:
    picture = pictures.good()[name]
    image = put(server, f"{prefix}/{picture.filename}", picture.data)
    prompt = encode(image, SMALL_VAE, filename_prefix=f"{prefix}/a", megapixels=picture.megapixels)
    record = run(server, prompt).record
    width, height = record["scaled_size"]
    assert record["original_size"] == list(picture.size)
    assert record["image_sha256"] == hashlib.sha256(picture.data).hexdigest()
    assert (width > height) == (picture.size[0] > picture.size[1])
    assert record["latent_shape"] == [1, 4, height // 8, width // 8]
    assert load_latent(Path(record["path"])).verified


@pytest.mark.parametrize("name", pictures.bad())
def test_broken_picture_is_refused(server: Server, prefix: str, name: str) -> None:
    picture = pictures.bad()[name]
    image = put(server, f"{prefix}/{picture.filename}", picture.data)
    before, start = snapshot(server), time.monotonic()
    refused = run(server, encode(image, "spare_vae.safetensors", filename_prefix=f"{prefix}/a"))
    assert refused.code == picture.code, refused.text
    assert snapshot(server) == before
    assert "spare_vae.safetensors" not in server.state()["vae_loads"]
    assert time.monotonic() - start < 5


def test_missing_picture(server: Server, prefix: str) -> None:
    before = snapshot(server)
    for name in (f"{prefix}/none.png", f"{prefix}.png", f"{prefix}.png [temp]"):
        refused = run(server, encode(name, "spare_vae.safetensors", filename_prefix=f"{prefix}/a"))
        assert refused.code == "IMAGE_NOT_FOUND", refused.text
    assert snapshot(server) == before


def test_a_folder_is_no_picture(server: Server, prefix: str) -> None:
    (server.input / prefix / "folder.png").mkdir(parents=True)
    before = snapshot(server)
    refused = run(server, encode(f"{prefix}/folder.png", "spare_vae.safetensors", filename_prefix=f"{prefix}/a"))
    assert refused.code == "IMAGE_INVALID", refused.text
    assert snapshot(server) == before


def test_unknown_vae_is_refused_in_comfyuis_own_words(server: Server, prefix: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png())
    before = snapshot(server)
    refused = run(server, encode(image, "no_such_vae.safetensors", filename_prefix=f"{prefix}/a"))
    assert not refused.success
    assert "value_not_in_list" in refused.text
    assert "no_such_vae.safetensors" in refused.text
    assert snapshot(server) == before


def test_a_failed_picture_does_not_spoil_the_next(server: Server, prefix: str) -> None:
    bad = put(server, f"{prefix}/bad.png", pictures.bad()["cut-png"].data)
    good = put(server, f"{prefix}/good.png", pictures.png())
    assert run(server, encode(bad, SMALL_VAE, filename_prefix=f"{prefix}/a")).code == "IMAGE_INVALID"
    assert run(server, encode(good, SMALL_VAE, filename_prefix=f"{prefix}/a")).record


class Swapper(threading.Thread):
    """Puts two files' bytes under one name in turn, as fast as it can."""

    def __init__(self, path: Path, contents: list[bytes], in_place: bool) -> None:
        super().__init__(daemon=True)
        self.path, self.contents, self.in_place = path, contents, in_place
        self.done = threading.Event()

    def run(self) -> None:
        other = self.path.with_suffix(".other")
        while not self.done.is_set():
            for data in self.contents:
                if self.in_place:
                    self.path.write_bytes(data)
                else:
                    other.write_bytes(data)
                    os.replace(other, self.path)
                time.sleep(0.0007)


@pytest.mark.parametrize("in_place", [False, True], ids=["renamed", "in-place"])
def test_picture_replaced_while_it_is_read(server: Server, prefix: str, in_place: bool) -> None:
    """The record's checksum is that of what was encoded, or the node fails: never one's with the other's latent."""
    data = [pictures.png(192, 192, seed) for seed in (1, 2)]
    inputs = {"filename_prefix": f"{prefix}/a", "megapixels": 0.01, "preview": False}
    wanted = {}
    for n, content in enumerate(data):
        record = run(server, encode(put(server, f"{prefix}/{n}.png", content), SMALL_VAE, **inputs)).record
        wanted[record["image_sha256"]] = load_latent(Path(record["path"])).latent["samples"]
    image = put(server, f"{prefix}/swapped.png", data[0])
    swapper = Swapper(server.input / image, data, in_place)
    swapper.start()
    try:
        ids = [server.client.submit(encode(image, SMALL_VAE, **inputs)) for _ in range(24)]
        outcomes = [outcome(server.client.wait(prompt_id, timeout=120)) for prompt_id in ids]
    finally:
        swapper.done.set()
        swapper.join()
    encoded = [result.record for result in outcomes if result.success]
    assert {result.code for result in outcomes if not result.success} <= ({"IMAGE_INVALID"} if in_place else set())
    assert {record["image_sha256"] for record in encoded} <= wanted.keys()
    for record in encoded:
        samples = load_latent(Path(record["path"])).latent["samples"]
        assert samples.equal(wanted[record["image_sha256"]])
    if not in_place:
        assert len({record["image_sha256"] for record in encoded}) == 2, "the swap was never seen"
