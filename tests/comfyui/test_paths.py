"""Attacks through every field that becomes a path: nothing outside ComfyUI's folders is read or written."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pictures
import pytest
from comfyui.folders import put, snapshot
from comfyui.prompts import Outcome, encode, load, run, save_probe
from comfyui.servers import Server

NOT_ALLOWED = {
    "absolute": "/etc/passwd",
    "absolute-picture": "/tmp/a.png",
    "parent": "../a.png",
    "parent-that-stays-inside": "sub/../a.png",
    "parent-at-the-end": "sub/..",
    "deep-parents": "a/b/../../../../../../etc/passwd",
    "backslash": "sub\\a.png",
    "backslash-parent": "..\\..\\a.png",
    "drive": "C:\\Windows\\win.ini",
    "drive-slash": "C:/Windows/win.ini",
    "unc": "//server/share/a.png",
    "null-byte": "a\0.png",
    "newline": "a\n.png",
    "300-characters": "a" * 300,
    "300-characters-in-a-folder": "a" * 300 + "/a.png",
    "device": "/dev/zero",
    "proc": "/proc/self/environ",
}
ANNOTATED = {
    "absolute": "/etc/passwd [input]",
    "parent": "../a.png [output]",
    "parent-of-temp": "../../a.png [temp]",
    "null-byte": "a\0.png [output]",
}
FIELDS = ("image", "filename_prefix", "filename_prefix-save", "latent_file")


def attack(server: Server, field: str, value: str, prefix: str) -> Outcome:
    """Send ``value`` in that field of the node that has it."""
    if field == "image":
        return run(server, encode(value, "spare_vae.safetensors", filename_prefix=f"{prefix}/a"))
    if field == "latent_file":
        return run(server, load(value))
    if field == "filename_prefix":
        return run(
            server,
            encode(put(server, f"{prefix}/ok.png", pictures.png()), "spare_vae.safetensors", filename_prefix=value),
        )
    return run(server, save_probe("plain", value))


def names_around(server: Server) -> set[str]:
    """What stands beside and above the server's folders."""
    return {str(path) for folder in (server.folder, server.folder.parent) for path in folder.iterdir()}


@pytest.mark.parametrize("attack_name", NOT_ALLOWED)
@pytest.mark.parametrize("field", FIELDS)
def test_path_is_refused(server: Server, prefix: str, field: str, attack_name: str) -> None:
    put(server, "a.png", pictures.png())
    before, around = snapshot(server), names_around(server)
    refused = attack(server, field, NOT_ALLOWED[attack_name], prefix)
    assert refused.code == "PATH_NOT_ALLOWED", refused.text
    assert snapshot(server) == before
    assert names_around(server) == around
    assert "spare_vae.safetensors" not in server.state()["vae_loads"]


@pytest.mark.parametrize("attack_name", ANNOTATED)
@pytest.mark.parametrize("field", ["image", "latent_file"])
def test_annotated_path_is_refused(server: Server, prefix: str, field: str, attack_name: str) -> None:
    refused = attack(server, field, ANNOTATED[attack_name], prefix)
    assert refused.code == "PATH_NOT_ALLOWED", refused.text


@pytest.mark.parametrize("field", FIELDS)
def test_empty_name(server: Server, prefix: str, field: str) -> None:
    before = snapshot(server)
    for value in ("", " "):
        refused = attack(server, field, value, prefix)
        assert refused.code == "INVALID_REQUEST", refused.text
    assert snapshot(server) == before


@pytest.mark.parametrize("folder", ["input", "output"])
def test_symlink_to_a_file_outside(server: Server, prefix: str, tmp_path: Path, folder: str) -> None:
    root = getattr(server, folder) / prefix
    root.mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(pictures.png())
    (tmp_path / "secret.safetensors").write_bytes(
        Path(run(server, save_probe("plain", f"{prefix}_x/a")).record["path"]).read_bytes()
    )
    for name in ("secret.png", "secret.safetensors"):
        (root / name).symlink_to(tmp_path / name)
    (root / "folder").symlink_to(tmp_path, target_is_directory=True)
    (root / "zero.png").symlink_to("/dev/zero")
    (root / "zero.safetensors").symlink_to("/dev/zero")
    for name in ("secret.png", "folder/secret.png", "zero.png"):
        refused = attack(server, "image", f"{prefix}/{name} [{folder}]", f"{prefix}_out")
        assert refused.code == "PATH_NOT_ALLOWED", refused.text
    for name in ("secret.safetensors", "folder/secret.safetensors", "zero.safetensors"):
        refused = attack(server, "latent_file", f"{prefix}/{name} [{folder}]", f"{prefix}_out")
        assert refused.code == "PATH_NOT_ALLOWED", refused.text


@pytest.mark.parametrize("if_exists", ["number", "overwrite", "fail"])
def test_prefix_through_a_symlink_to_a_folder_outside(
    server: Server, prefix: str, tmp_path: Path, if_exists: str
) -> None:
    (server.output / prefix).mkdir()
    (server.output / prefix / "out").symlink_to(tmp_path, target_is_directory=True)
    refused = run(server, save_probe("plain", f"{prefix}/out/a", if_exists=if_exists))
    assert refused.code == "PATH_NOT_ALLOWED", refused.text
    assert list(tmp_path.iterdir()) == []


def test_overwriting_a_symlink_leaves_its_target_alone(server: Server, prefix: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    folder = server.output / prefix
    folder.mkdir()
    for name in ("a.safetensors", "a.safetensors.json", "a.safetensors.webp"):
        (folder / name).symlink_to(target)
    for if_exists in ("fail", "overwrite"):
        run(server, save_probe("plain", f"{prefix}/a", if_exists=if_exists))
        assert target.read_bytes() == b"precious"


def test_pipes_and_devices_are_not_read(server: Server, prefix: str) -> None:
    folder = server.input / prefix
    folder.mkdir()
    for suffix in ("png", "safetensors", "pt"):
        os.mkfifo(folder / f"pipe.{suffix}")
    refused = attack(server, "image", f"{prefix}/pipe.png", prefix)
    assert refused.code == "IMAGE_INVALID", refused.text
    for suffix in ("safetensors", "pt"):
        refused = attack(server, "latent_file", f"{prefix}/pipe.{suffix} [input]", prefix)
        assert refused.code == "LATENT_INVALID", refused.text


def test_device_file_in_the_input_folder(server: Server, prefix: str) -> None:
    folder = server.input / prefix
    folder.mkdir()
    try:
        for name in ("zero.png", "zero.safetensors"):
            os.mknod(folder / name, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError as error:
        pytest.skip(f"a device file may not be made here: {error}")
    assert attack(server, "image", f"{prefix}/zero.png", prefix).code == "IMAGE_INVALID"
    assert attack(server, "latent_file", f"{prefix}/zero.safetensors [input]", prefix).code == "LATENT_INVALID"


def test_name_that_becomes_too_long_with_its_number(server: Server, prefix: str) -> None:
    before = snapshot(server)
    for if_exists in ("number", "overwrite", "fail"):
        refused = run(server, save_probe("plain", f"{'a' * 245}", if_exists=if_exists))
        assert refused.code == "PATH_NOT_ALLOWED", refused.text
    assert snapshot(server) == before


def test_latent_file_of_another_kind(server: Server, prefix: str) -> None:
    """A text or model file under output or input is not handed out as a latent."""
    put(server, f"{prefix}/notes.txt", b"secret")
    refused = run(server, load(f"{prefix}/notes.txt [input]"))
    assert refused.code == "FORMAT_UNSUPPORTED", refused.text
    assert "secret" not in refused.text
