"""SIGTERM, SIGINT and a terminal that is closed (SIGHUP), for the doors that serve until one of them comes.

Light to import: a worker handles them before its heavy imports.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Signals:
    """The signals that have come.

    Attributes:
        count: how many.
        came: set by the first.
    """

    def __init__(self) -> None:
        self.count = 0
        self.came = threading.Event()

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.came.set()


@contextmanager
def handled_signals() -> Iterator[Signals]:
    """Count the signals of this block; to be entered in the main thread."""
    signals = Signals()
    wanted = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # ignored under nohup
        wanted.append(signal.SIGHUP)
    before = {number: signal.signal(number, signals.handle) for number in wanted}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
