"""One process for each STATE_DIR: a second one would run the same jobs once more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_NAME, PID_NAME = "process.lock", "process.pid"


class StateDirInUse(Exception):
    """Another process holds the folder; the message says which one."""


@contextmanager
def hold_state_dir(folder: Path) -> Iterator[None]:
    """Hold ``folder``, made if absent, for the block. The system gives it back whichever way this process ends.

    Raises:
        StateDirInUse: another process, or another block of this one, holds it.
        OSError: the folder cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    holder = folder / PID_NAME  # Windows lets nobody read a locked file
    try:
        held = FileLock(folder / LOCK_NAME).acquire(timeout=0)
    except Timeout as error:
        raise StateDirInUse(f"'{folder}' is in use by {_name(holder)}.") from error
    with held:
        holder.write_text(f"{os.getpid()}")
        yield


def _name(holder: Path) -> str:
    try:
        return f"process {int(holder.read_text())}"
    except (OSError, ValueError):
        return "another process"
