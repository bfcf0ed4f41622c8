"""One process for each STATE_DIR: a second one would run the same jobs once more."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK_NAME = "process.lock"
_LOCKED_BYTE = 1 << 20  # Windows lets nobody read a locked byte, and the number of the process stands at the beginning


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
    path = folder / LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            _lock(descriptor)
        except (BlockingIOError, PermissionError) as error:
            raise StateDirInUse(f"'{folder}' is in use by {_holder(descriptor)}.") from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(descriptor: int) -> str:
    with suppress(OSError, ValueError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        return f"process {int(os.read(descriptor, 32))}"
    return "another process"
