"""Names that only one encode at a time uses, so that a server's temp folder holds one picture and one latent for each.

A name is ``<worker>-<number>``. Who uses a number holds the lock of ``<folder>/<worker>-<number>.lock``; the operating
system gives it back when a process ends, however it ends.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from latent_encoder.errors import LatentEncoderError, from_os_error
from latent_encoder.service.engines.base import Call

WAIT_SECONDS = 0.1
LONGEST_WORKER = 64


def worker_name(worker_id: str | None, state_dir: Path) -> str:
    """The worker's id, or this host's name and a mark of the state folder; safe as a part of a file name.

    The locks lie in the state folder, so they keep apart only those who share it.
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "_", worker_id or socket.gethostname())[:LONGEST_WORKER]
    name = name.lstrip("._-") or "worker"
    return name if worker_id else f"{name}-{hashlib.sha256(os.fsencode(os.path.abspath(state_dir))).hexdigest()[:6]}"


def lock_lowest(folder: Path, stem: str) -> tuple[FileLock, int]:
    """Lock the file ``<stem><number>.lock`` with the lowest number that is free.

    Raises:
        LatentEncoderError: DISK_FULL or OUTPUT_DIR_NOT_WRITABLE.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = 0
        while True:
            lock = FileLock(folder / f"{stem}{number}.lock", thread_local=False)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                number += 1
                continue
            return lock, number
    except OSError as error:
        raise from_os_error(error, folder) from error


class Slots:
    """The names of one process: up to ``count``, each locked when it is first needed and kept until ``close``."""

    def __init__(self, folder: Path, worker: str, count: int) -> None:
        self._folder, self._worker, self._count = folder, worker, count
        self._locks: list[FileLock] = []
        self._free: list[str] = []
        self._changed = threading.Condition()
        self._closed = False

    @contextmanager
    def hold(self, call: Call) -> Iterator[str]:
        """A name for the ``with`` block's time; waits until one is free.

        Raises:
            LatentEncoderError: INTERRUPTED, TIMEOUT; ENGINE_UNAVAILABLE once it is closed; DISK_FULL or
                OUTPUT_DIR_NOT_WRITABLE.
        """
        name = self._take(call)
        try:
            yield name
        finally:
            with self._changed:
                self._free.append(name)
                self._changed.notify()

    def close(self) -> None:
        """Give the locks back."""
        with self._changed:
            self._closed = True
            for lock in self._locks:
                lock.release()
            self._locks.clear()
            self._changed.notify_all()

    def _take(self, call: Call) -> str:
        with self._changed:
            while True:
                call.check()
                if self._closed:
                    raise LatentEncoderError("ENGINE_UNAVAILABLE", "The engine is closed.")
                if self._free:
                    return self._free.pop()
                if len(self._locks) < self._count:
                    lock, number = lock_lowest(self._folder, f"{self._worker}-")
                    self._locks.append(lock)
                    return f"{self._worker}-{number}"
                self._changed.wait(WAIT_SECONDS)
