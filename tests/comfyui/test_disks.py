"""Disks that are full or cannot be written: refused with a code, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pictures
import pytest
from comfyui.folders import mounted, put
from comfyui.prompts import encode, run, save_probe
from comfyui.servers import Server
from comfyui.small_vae import NAME as SMALL_VAE

from latent_encoder.latent_file import load_latent

FORMATS = ("safetensors", "latent", "pt", "npy")


@pytest.mark.parametrize("if_exists", ["number", "overwrite", "fail"])
@pytest.mark.parametrize("file_format", FORMATS)
def test_full_disk(server: Server, prefix: str, file_format: str, if_exists: str) -> None:
    """A latent of 16 MB on a disk of 1 MB."""
    with mounted(server.output / prefix, "size=1m") as folder:
        refused = run(server, save_probe("large", f"{prefix}/a", file_format=file_format, if_exists=if_exists))
        assert refused.code == "DISK_FULL", refused.text
        assert list(folder.iterdir()) == []
        assert run(server, save_probe("plain", f"{prefix}/b", file_format=file_format)).record


def test_full_disk_keeps_the_file_that_was_to_be_overwritten(server: Server, prefix: str) -> None:
    with mounted(server.output / prefix, "size=1m") as folder:
        kept = run(server, save_probe("plain", f"{prefix}/a", if_exists="overwrite")).record
        refused = run(server, save_probe("large", f"{prefix}/a", if_exists="overwrite"))
        assert refused.code == "DISK_FULL", refused.text
        loaded = load_latent(Path(kept["path"]))
        assert loaded.verified
        assert loaded.record["file_sha256"] == kept["file_sha256"]
        assert sorted(path.name for path in folder.iterdir()) == ["a.safetensors", "a.safetensors.json"]


def test_room_for_the_latent_but_not_for_its_sidecar(server: Server, prefix: str) -> None:
    """Whatever the free space is, a save is whole with its sidecar, or refused and leaves nothing."""
    with mounted(server.output / prefix, "size=256k") as folder:
        filler = folder / "filler"
        for free in range(8, 40, 4):  # kB; the latent has 12, and each further file takes 4
            filler.write_bytes(b"\0" * (256 - free) * 1024)
            result = run(server, save_probe("plain", f"{prefix}/a", if_exists="overwrite"))
            names = {path.name for path in folder.iterdir()} - {"filler"}
            if result.success:
                assert names == {"a.safetensors", "a.safetensors.json"}
                assert load_latent(folder / "a.safetensors").verified
                return
            assert result.code == "DISK_FULL", result.text
            assert names == set()
        pytest.fail("40 kB of free space were not enough")


def test_read_only_folder(server: Server, prefix: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png())
    with mounted(server.output / prefix, "ro,size=1m") as folder:
        for prompt in (save_probe("plain", f"{prefix}/a"), save_probe("plain", f"{prefix}/new/a")):
            refused = run(server, prompt)
            assert refused.code == "OUTPUT_DIR_NOT_WRITABLE", refused.text
        refused = run(server, encode(image, SMALL_VAE, filename_prefix=f"{prefix}/a"))
        assert refused.code == "OUTPUT_DIR_NOT_WRITABLE", refused.text
        assert list(folder.iterdir()) == []


def test_a_file_in_the_place_of_a_folder(server: Server, prefix: str) -> None:
    (server.output / prefix).write_bytes(b"")
    refused = run(server, save_probe("plain", f"{prefix}/a"))
    assert refused.code == "OUTPUT_DIR_NOT_WRITABLE", refused.text
