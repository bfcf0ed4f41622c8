"""The sha256 of files that seldom change, such as model weights: computed once, then remembered."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_known: dict[tuple[str, int, int, int], str] = {}


def file_sha256(path: str | Path) -> str:
    """The file's sha256 in hex, remembered for as long as its path, inode, size and time of change stay the same.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        key = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in _known:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            _known[key] = digest.hexdigest()
    return _known[key]
