"""The files of a folder and its subfolders, quickly: each folder is read anew only after it changed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

_SETTLED_NS = 2_000_000_000  # a folder that changed less than this ago may change again under the same time stamp


@dataclass(frozen=True)
class ListedFile:
    """A file's name relative to the root, with ``/`` between its parts, and its time of change in nanoseconds."""

    name: str
    mtime_ns: int


@dataclass(frozen=True)
class _Folder:
    mtime_ns: int
    read_ns: int
    files: list[tuple[str, int]]
    subfolders: list[str]


_known: dict[str, _Folder] = {}


def list_files(root: str | Path, suffixes: tuple[str, ...], skip: Collection[str] = ()) -> list[ListedFile]:
    """The regular files under ``root`` whose lower-case name ends in one of ``suffixes``, newest first.

    Hidden names and symbolic links are left out, and so are the folders in ``skip`` (absolute paths). A folder that
    is not there has no files. A file changed in place, without a new name, may keep its old place in the order.
    """
    files = list(_walk(str(root), "", frozenset(map(os.path.abspath, skip))))
    chosen = [file for file in files if file.name.lower().endswith(suffixes)]
    return sorted(chosen, key=lambda file: (-file.mtime_ns, file.name))


def _walk(path: str, prefix: str, skip: frozenset[str]) -> Iterator[ListedFile]:
    try:
        folder = _read_folder(path)
    except OSError:
        return
    for name, mtime_ns in folder.files:
        yield ListedFile(prefix + name, mtime_ns)
    for name in folder.subfolders:
        subfolder = os.path.join(path, name)
        if os.path.abspath(subfolder) not in skip:
            yield from _walk(subfolder, f"{prefix}{name}/", skip)


def _read_folder(path: str) -> _Folder:
    mtime_ns = os.stat(path).st_mtime_ns
    known = _known.get(path)
    if known and known.mtime_ns == mtime_ns and known.read_ns - mtime_ns > _SETTLED_NS:
        return known
    read_ns = time.time_ns()
    files, subfolders = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            with contextlib.suppress(FileNotFoundError):  # gone since the folder was opened
                if entry.is_dir(follow_symlinks=False):
                    subfolders.append(entry.name)
                elif entry.is_file(follow_symlinks=False):
                    files.append((entry.name, entry.stat(follow_symlinks=False).st_mtime_ns))
    folder = _known[path] = _Folder(mtime_ns, read_ns, files, sorted(subfolders))
    return folder
