"""Copies of checked pictures for the host: the exact bytes, few of them, none that the running prompt needs gone."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from latent_encoder.atomic_file import TEMPORARY_PREFIX
from latent_encoder.errors import LatentEncoderError
from latent_encoder.staged_pictures import KEPT, StagedPictures


class Prompt:
    """Stands for a running prompt."""


def stage(pictures: StagedPictures, folder: Path, data: bytes, prompt: object, suffix: str = ".png") -> Path:
    return pictures.stage(folder, data, hashlib.sha256(data).hexdigest(), suffix, prompt)


def test_the_exact_bytes_under_their_checksum(tmp_path: Path) -> None:
    folder, prompt, pictures = tmp_path / "new" / "folder", Prompt(), StagedPictures()
    path = stage(pictures, folder, b"picture", prompt)
    assert path == folder / (hashlib.sha256(b"picture").hexdigest() + ".png")
    assert path.read_bytes() == b"picture" and [*folder.iterdir()] == [path]


def test_it_is_written_anew(tmp_path: Path) -> None:
    """Somebody may have changed the copy meanwhile."""
    pictures, prompt = StagedPictures(), Prompt()
    stage(pictures, tmp_path, b"picture", prompt).write_bytes(b"changed")
    assert stage(pictures, tmp_path, b"picture", prompt).read_bytes() == b"picture"


@pytest.mark.parametrize(
    ("suffix", "kept"),
    [
        (".png", ".png"),
        (".JPG", ".jpg"),
        (".tiff", ".tiff"),
        ("", ""),
        (".", ""),
        (".p/g", ""),
        (".../x", ""),
        (".pn\0g", ""),
        (". png", ""),
        (".tar.gz", ""),
        (".png\n", ""),
        (".ünïcode", ""),
        (".verylongsuffix", ""),
    ],
)
def test_suffixes(suffix: str, kept: str, tmp_path: Path) -> None:
    path = stage(StagedPictures(), tmp_path, b"x", Prompt(), suffix)
    assert path.name == hashlib.sha256(b"x").hexdigest() + kept and path.parent == tmp_path


def test_all_of_a_prompt_and_few_of_earlier_ones(tmp_path: Path) -> None:
    pictures, first, second = StagedPictures(), Prompt(), Prompt()
    earlier = [stage(pictures, tmp_path, b"a%d" % n, first) for n in range(KEPT + 10)]
    assert all(path.exists() for path in earlier), "a long prompt loses none of its pictures"
    for age, path in enumerate(reversed(earlier)):
        os.utime(path, (1e9 - age,) * 2)
    running = [stage(pictures, tmp_path, b"b%d" % n, second) for n in range(KEPT + 5)]
    assert all(path.exists() for path in running)
    assert [path.exists() for path in earlier] == [False] * 10 + [True] * KEPT, "the newest are kept"
    again = stage(pictures, tmp_path, b"a0", second)
    assert again.read_bytes() == b"a0"


def test_a_prompt_that_is_gone_is_over(tmp_path: Path) -> None:
    pictures = StagedPictures()
    for number in range(3 * KEPT):
        stage(pictures, tmp_path, b"%d" % number, Prompt())
    assert len([*tmp_path.iterdir()]) == KEPT + 1


def test_leftovers_of_a_crash_are_cleared(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY_PREFIX}dead.tmp").write_bytes(b"half")
    path = stage(StagedPictures(), tmp_path, b"x", Prompt())
    if sys.platform != "win32":
        assert [*tmp_path.iterdir()] == [path]


def test_a_full_disk(small_disk: Path) -> None:
    pictures, prompt = StagedPictures(), Prompt()
    kept = stage(pictures, small_disk, b"small", prompt)
    with pytest.raises(LatentEncoderError) as caught:
        stage(pictures, small_disk, bytes(2 << 20), prompt)
    assert caught.value.code == "DISK_FULL" and [*small_disk.iterdir()] == [kept]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LatentEncoderError) as caught:
        stage(StagedPictures(), tmp_path / "file", b"x", Prompt())
    assert caught.value.code == "OUTPUT_DIR_NOT_WRITABLE"


def test_what_others_keep_there_stays(tmp_path: Path) -> None:
    """A latent saved into this folder of temp, or a service's upload, is not ours to remove."""
    pictures = StagedPictures()
    foreign = [tmp_path / f"worker-{n}.png" for n in range(2 * KEPT)]
    for path in foreign:
        path.write_bytes(b"theirs")
    (tmp_path / "a folder").mkdir()
    for n in range(2 * KEPT):
        stage(pictures, tmp_path, str(n).encode(), Prompt())
    assert all(path.is_file() for path in foreign) and (tmp_path / "a folder").is_dir()
    assert len([*tmp_path.iterdir()]) <= len(foreign) + 1 + KEPT + 1
