"""Which pictures a command line means, and the relative name that each has in a run of many."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from latent_encoder.errors import LatentEncoderError
from latent_encoder.images import SUFFIXES

STDIN = "-"
SHOWN_CLASHES = 5


class NamedPicture(NamedTuple):
    """A picture's file, and its relative path with ``/``, which names its latent."""

    file: str
    name: str


def is_one_picture(named: Sequence[str]) -> bool:
    """Whether the command line names one picture alone, be it there or not."""
    return len(named) == 1 and named[0] != STDIN and not _is_glob(named[0]) and not os.path.isdir(named[0])


def find_pictures(named: Sequence[str], stdin: BinaryIO) -> list[NamedPicture]:
    """Every picture that the command line means, in its order; the files of a folder are sorted. None stands twice.

    Args:
        named: pictures, folders, globs, and ``-`` for the names on ``stdin``, one a line or each ended by a null byte.

    Raises:
        LatentEncoderError: INVALID_REQUEST where two pictures would share a latent file, a glob fits nothing or a
            folder cannot be read.
    """
    found: dict[str, NamedPicture] = {}
    clashes = []
    for picture in _expand(named, stdin):
        first = found.setdefault(_key(picture.name), picture)
        if first is not picture and os.path.abspath(first.file) != os.path.abspath(picture.file):
            clashes.append(f"'{first.file}' and '{picture.file}'")
    if clashes:
        more = f", and {len(clashes) - SHOWN_CLASHES:,} more" if len(clashes) > SHOWN_CLASHES else ""
        raise LatentEncoderError(
            "INVALID_REQUEST",
            f"Two pictures would share a latent file: {', '.join(clashes[:SHOWN_CLASHES])}{more}.",
            "Name the folder that holds them both, or encode them in runs with an OUTPUT_DIR of their own.",
        )
    return list(found.values())


def _expand(named: Sequence[str], stdin: BinaryIO) -> Iterator[NamedPicture]:
    here = os.path.join(os.getcwd(), "")
    for name in named:
        if name == STDIN:
            yield from (_relative_to(here, line) for line in _names_on(stdin))
        elif _is_glob(name):
            yield from (_relative_to(here, file) for file in _fitting(name))
        elif os.path.isdir(name):
            yield from _walk(name)
        else:
            yield _relative_to(here, name)


def _relative_to(here: str, file: str) -> NamedPicture:
    """Named by its path from the working directory, or by its base name outside of it."""
    path = os.path.abspath(file)
    name = path[len(here) :] if path.startswith(here) else os.path.basename(path)
    return NamedPicture(file, name.replace(os.sep, "/"))


def _walk(folder: str) -> Iterator[NamedPicture]:
    """The pictures under a folder, by their suffix; hidden ones are left out, links to folders not followed."""
    root = os.path.join(folder, "")
    for place, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                file = os.path.join(place, name)
                yield NamedPicture(file, file[len(root) :].replace(os.sep, "/"))


def _refuse(error: OSError) -> None:
    raise LatentEncoderError("INVALID_REQUEST", f"The folder '{error.filename}' cannot be read ({error.strerror}).")


def _is_glob(name: str) -> bool:
    return any(sign in name for sign in "*?[") and not os.path.lexists(name)


def _fitting(pattern: str) -> list[str]:
    files = sorted(file for file in glob.glob(pattern, recursive=True) if not os.path.isdir(file))
    if not files:
        raise LatentEncoderError("INVALID_REQUEST", f"No file fits '{pattern}'.", "Check the pattern and its folder.")
    return files


def _names_on(stdin: BinaryIO) -> Iterator[str]:
    text = stdin.read()
    lines = text.split(b"\0") if b"\0" in text else text.splitlines()
    return (os.fsdecode(line) for line in lines if line.strip())


def _key(name: str) -> str:
    """What tells two files apart on this system's usual file system."""
    return name.casefold() if sys.platform in ("win32", "darwin") else name
