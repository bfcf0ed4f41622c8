"""The remembered sha256 of a file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from latent_encoder.checksum import file_sha256


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (5 << 20) + 3])
def test_it_is_the_sha256(size: int, tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    path.write_bytes(os.urandom(size))
    assert file_sha256(path) == file_sha256(str(path)) == sha256(path)


def test_each_kind_of_change_is_seen(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"one")
    assert file_sha256(path) == sha256(path)
    path.write_bytes(b"longer")
    assert file_sha256(path) == sha256(path)
    before = path.stat().st_mtime_ns
    path.write_bytes(b"LONGER")
    os.utime(path, ns=(before + 10, before + 10))
    assert file_sha256(path) == sha256(path), "the same size at another time"
    other.write_bytes(b"OTHER!")
    os.utime(other, ns=(before + 10, before + 10))
    os.replace(other, path)
    assert file_sha256(path) == sha256(path), "the same size and time, another file"


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    """Told by contents that change while name, inode, size and time stay."""
    path = tmp_path / "a"
    path.write_bytes(b"weights")
    status = path.stat()
    digest = file_sha256(path)
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_ino == status.st_ino
    assert file_sha256(path) == digest
    os.utime(path, ns=(1, 1))
    assert file_sha256(path) == sha256(path) != digest


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(OSError):
            file_sha256(path)
