"""Which pictures a command line means, and the relative name that each has in a run of many."""

from __future__ import annotations

import codecs
import glob
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from latent_encoder.errors import LatentEncoderError
from latent_encoder.images import SUFFIXES

STDIN = "-"
SHOWN_CLASHES = 5


logger = logging.getLogger(__name__)


class NamedPicture(NamedTuple):
    """A picture's file, and its relative path with ``/``, which names its latent."""

    file: str
    name: str


def is_one_picture(named: Sequence[str]) -> bool:
    """Whether the command line names one picture alone, be it there or not."""
    return len(named) == 1 and named[0] != STDIN and not _is_glob(named[0]) and not os.path.isdir(named[0])


def find_pictures(named: Sequence[str], stdin: BinaryIO) -> list[NamedPicture]:
    """Every picture that the command line means, in its order; the files of a folder are sorted. One that is named
    twice stands once, and a line of the log says so.

    Args:
        named: pictures, folders, globs, and ``-`` for the names on ``stdin``, one a line or each ended by a null byte.

    Raises:
        LatentEncoderError: INVALID_REQUEST where two pictures would share a latent file, a glob fits nothing or a
            folder holds no picture or cannot be read.
    """
    found: dict[str, NamedPicture] = {}
    clashes, again = [], []
    for picture in expand(named, stdin):
        first = found.setdefault(_key(picture.name), picture)
        if first is picture:
            continue
        if os.path.abspath(first.file) != os.path.abspath(picture.file):
            clashes.append(f"'{first.file}' and '{picture.file}'")
        else:
            again.append(picture.file)
    if clashes:
        more = _and_more(len(clashes) - SHOWN_CLASHES)
        raise LatentEncoderError(
            "INVALID_REQUEST",
            f"Two pictures would share a latent file: {', '.join(clashes[:SHOWN_CLASHES])}{more}.",
            "Name the folder that holds them both, or encode them in runs with an OUTPUT_DIR of their own.",
        )
    if again:
        logger.warning("Named more than once, encoded once: '%s'%s.", again[0], _and_more(len(again) - 1))
    return list(found.values())


def _and_more(count: int) -> str:
    return f", and {count:,} more" if count > 0 else ""


def expand(named: Sequence[str], stdin: BinaryIO) -> Iterator[NamedPicture]:
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
    end = "/" if file.endswith(("/", os.sep)) else ""  # no picture's name, as its answer says
    return NamedPicture(file, name.replace(os.sep, "/") + end)


def _walk(folder: str) -> Iterator[NamedPicture]:
    """The pictures under a folder, by their suffix; hidden ones are left out, links to folders not followed."""
    root, count = os.path.join(folder, ""), 0
    for place, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                file = os.path.join(place, name)
                count += 1
                yield NamedPicture(file, file[len(root) :].replace(os.sep, "/"))
    if not count:
        suffixes = ", ".join(SUFFIXES)
        raise LatentEncoderError("INVALID_REQUEST", f"The folder '{folder}' holds no picture ({suffixes}).", "")


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
    text = stdin.read().removeprefix(codecs.BOM_UTF8)
    lines = text.split(b"\0") if b"\0" in text else text.splitlines()
    return (os.fsdecode(line) for line in lines if line.strip())


def _key(name: str) -> str:
    """What tells two files apart on this system's usual file system."""
    return name.casefold() if sys.platform in ("win32", "darwin") else name
