"""Files that are whole or absent: written under a temporary name, synced, then placed under the final one.

A reader never sees half a file, two writers never take the same new name, and a crash leaves nothing that looks done:
only names that begin with ``TEMPORARY_PREFIX``, which the next writer in that folder clears; in a large folder one
within ``SWEEP_SECONDS`` does.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from uuid import uuid4

if sys.platform != "win32":
    import fcntl

TEMPORARY_PREFIX = ".latent-encoder-"
STALE_SECONDS = 30.0  # the age of a leftover where no lock tells whether its writer lives
LOCK_TIMEOUT_SECONDS = 60.0
MANY_FILES, SWEEP_SECONDS = 100, 60.0  # to look through a folder takes some 0.4 us a name, so 40 ms for 100,000

# Windows denies access to a name whose file is being deleted.
_TAKEN = (FileExistsError, PermissionError) if sys.platform == "win32" else FileExistsError
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_CANNOT_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_LOCKS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL}
_swept_at: dict[Path, float] = {}  # large folders


class TemporaryFile:
    """A new locked file in ``folder``, open for writing; unless it is placed, it is gone at the end of the ``with``
    block.

    Attributes:
        descriptor: the open file's descriptor, until it is placed.
        path: its temporary name.

    Raises:
        OSError: the folder cannot be written, or is full.
    """

    def __init__(self, folder: Path) -> None:
        while True:
            self.path = folder / f"{TEMPORARY_PREFIX}{uuid4().hex}.tmp"
            with contextlib.suppress(FileExistsError):
                self.descriptor = _create_locked(self.path)
                return

    def __enter__(self) -> TemporaryFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _remove_locked(self.descriptor, self.path)

    def write(self, data: bytes | memoryview) -> None:
        """Append all of ``data``."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]

    def place_new(self, final: Path) -> bool:
        """Give the finished file its final name unless somebody has that name; the caller holds ``name_lock(final)``.

        Returns:
            False where ``final`` exists already.
        """
        self._release_on_windows()
        try:
            if sys.platform == "win32":
                os.rename(self.path, final)  # refuses an existing name there
            else:
                os.link(self.path, final)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            if os.path.lexists(final):
                return False
            os.rename(self.path, final)
        return True

    def place_over(self, final: Path) -> None:
        """Give the finished file its final name in place of what has it."""
        self._release_on_windows()
        os.replace(self.path, final)

    def _release_on_windows(self) -> None:
        if sys.platform == "win32" and self.descriptor >= 0:  # an open file cannot be renamed there
            os.close(self.descriptor)
            self.descriptor = -1


@contextmanager
def name_lock(final: Path) -> Iterator[None]:
    """Hold the right to change what stands under one name and beside it, against every other writer of this folder.

    Raises:
        OSError: the folder cannot be written.
        TimeoutError: somebody else held it for ``LOCK_TIMEOUT_SECONDS``.
    """
    name = hashlib.sha256(os.fsencode(final.name)).hexdigest()[:16]
    path = final.with_name(f"{TEMPORARY_PREFIX}{name}.lock")
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    while True:
        try:
            descriptor = _create_locked(path)
            break
        except _TAKEN:
            if not _remove_if_abandoned(path) and time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"another program holds {path.name}") from None
            time.sleep(0.005)
    try:
        yield
    finally:
        _remove_locked(descriptor, path)


def sync(descriptor: int) -> None:
    """Make a file survive a power cut."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync stops at the disk's own cache there
    else:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` survive a power cut where the file system can: Windows and some others cannot."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def sweep_before_save(folder: Path) -> None:
    """``sweep``; a folder of more than ``MANY_FILES`` at most once in ``SWEEP_SECONDS``."""
    now = time.monotonic()
    if now - _swept_at.get(folder, -SWEEP_SECONDS) >= SWEEP_SECONDS and _sweep(folder)[1] > MANY_FILES:
        _swept_at[folder] = now


def sweep(folder: Path) -> int:
    """Remove what writers that died have left in ``folder``; what a living one is writing stays.

    Returns:
        how many files went.
    """
    return _sweep(folder)[0]


def _sweep(folder: Path) -> tuple[int, int]:
    """As ``sweep``; also tells how many names the folder has."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    leftovers = [name for name in names if name.startswith(TEMPORARY_PREFIX)]
    return sum(_remove_if_abandoned(folder / name) for name in leftovers), len(names)


def _create_locked(path: Path) -> int:
    """A new file with its lock held; FileExistsError where the name is taken, or a sweeper has just taken the file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        if _try_lock(descriptor) is False or os.fstat(descriptor).st_nlink == 0:
            raise FileExistsError(errno.EEXIST, "swept while it was made", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove_locked(descriptor: int, path: Path) -> None:
    if sys.platform == "win32":
        if descriptor >= 0:
            os.close(descriptor)
        path.unlink(missing_ok=True)
    else:
        try:
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)  # after unlink: until then the lock says that the file is ours


def _try_lock(descriptor: int) -> bool | None:
    """True: locked; False: somebody else has it; None: this system knows no such locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _remove_if_abandoned(path: Path) -> bool:
    """Remove a leftover whose writer is dead; False where it lives, or the file is gone already."""
    try:
        if sys.platform == "win32":
            # Never opened: while we looked, its writer could not delete it. Nor can we, while its writer has it open.
            abandoned = _is_stale(path.stat())
            if abandoned:
                path.unlink()
            return abandoned
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        locked = _try_lock(descriptor)
        status = os.fstat(descriptor)
        # Under the lock, the name must still mean this file: it may have been removed and made anew.
        if not (_is_stale(status) if locked is None else locked) or not os.path.samestat(status, path.stat()):
            return False
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _is_stale(status: os.stat_result) -> bool:
    return time.time() - status.st_mtime > STALE_SECONDS
