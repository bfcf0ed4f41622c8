"""Copies of the exact bytes that were checked, for a host that reads pictures from files.

What lies under the user's file name may be replaced while a prompt runs; its copy here may not.
"""

from __future__ import annotations

import contextlib
import re
import weakref
from pathlib import Path

from .atomic_file import TemporaryFile, sweep
from .errors import from_os_error

KEPT = 16

_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
_OURS = re.compile(r"[0-9a-f]{64}(\.[a-z0-9]{1,8})?")  # others may save into this folder, too


class StagedPictures:
    """The copies in one folder: all those of the running prompt, and the newest ``KEPT`` of earlier ones."""

    def __init__(self) -> None:
        self._prompt: weakref.ref[object] | None = None
        self._in_use: set[str] = set()

    def stage(self, folder: Path, data: bytes, sha256: str, suffix: str, prompt: object) -> Path:
        """Write ``data`` as ``<sha256><suffix>`` into ``folder``, always anew, and clear out what earlier prompts left.

        Args:
            suffix: the suffix of the user's file, by which a host may choose its decoder; left out where it is an odd
                one.
            prompt: the object that stands for the running prompt; another one means that the earlier prompt is over.

        Raises:
            LatentEncoderError: DISK_FULL or OUTPUT_DIR_NOT_WRITABLE.
        """
        if self._prompt is None or self._prompt() is not prompt:
            self._prompt = weakref.ref(prompt)
            self._in_use.clear()
        suffix = suffix.lower()
        final = folder / (sha256 + (suffix if _SUFFIX.fullmatch(suffix) else ""))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
            with TemporaryFile(folder) as file:
                file.write(data)
                file.place_over(final)
            self._in_use.add(final.name)
            self._clear(folder)
        except OSError as error:
            raise from_os_error(error, folder) from error
        return final

    def _clear(self, folder: Path) -> None:
        times = {}
        for path in folder.iterdir():
            if _OURS.fullmatch(path.name) and path.name not in self._in_use:
                with contextlib.suppress(FileNotFoundError):  # another server that shares the folder
                    times[path] = path.stat().st_mtime_ns
        for path in sorted(times, key=lambda path: times[path], reverse=True)[KEPT:]:
            path.unlink(missing_ok=True)
