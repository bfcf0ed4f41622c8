"""What stands in a test server's folders."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from comfyui.servers import Server


def put(server: Server, name: str, data: bytes) -> str:
    """Write a file into the server's input folder, as a user would copy it there; returns ``name``."""
    path = server.input / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name


def snapshot(server: Server) -> dict[str, int]:
    """Every file and folder under output and temp, by path, with its inode: what a refused prompt must not change."""
    found = [path for root in (server.output, server.temp) if root.is_dir() for path in sorted(root.rglob("*"))]
    return {str(path): path.lstat().st_ino for path in found}


def latents_in(folder: Path) -> list[Path]:
    """The latent files of a folder, without sidecars and previews."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".latent", ".pt", ".npy"))


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own in the place of ``folder``; the test is skipped where it may not be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no 'mount' command here to make a full or read-only disk with")
    if done.returncode:
        pytest.skip(f"a file system may not be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
