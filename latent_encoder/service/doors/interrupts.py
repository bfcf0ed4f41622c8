"""Ctrl-C, SIGTERM, a closed terminal: the first lets what is in hand be finished, the second stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from latent_encoder.service.engines.base import Call

NOTICE_AT_ONCE = b"\nStopping.\n"
NOTICE = b"\nStopping once the pictures in hand are done; Ctrl-C again stops at once.\n"


class Interrupts:
    """Whether somebody wants this run to end.

    Attributes:
        stopping: set by the first signal while something is in hand; nothing more is begun then.
    """

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._in_hand = self._ignored = False
        self._calls: set[Call] = set()

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle these signals in this block; to be entered in the main thread.

        Raises:
            KeyboardInterrupt: in the main thread, for a signal while nothing is in hand, and for a second one.
        """
        wanted = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))
        signals = [number for number in wanted if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._handle) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def work_in_hand(self) -> Iterator[None]:
        """In this block the first signal sets ``stopping`` and no more."""
        self._in_hand = True
        try:
            yield
        finally:
            self._in_hand = False

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """In this block, and after it, signals do nothing: it gives back what must not be left behind."""
        self._ignored = True
        yield

    @contextmanager
    def call(self) -> Iterator[Call]:
        """A call that ``cancel_calls`` reaches."""
        call = Call()
        self._calls.add(call)
        try:
            yield call
        finally:
            self._calls.discard(call)

    def cancel_calls(self) -> None:
        """Tell the engine that nobody waits any longer."""
        for call in list(self._calls):
            call.cancel()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._ignored:
            return
        if self.stopping.is_set() or not self._in_hand:
            os.write(2, NOTICE_AT_ONCE)
            raise KeyboardInterrupt
        self.stopping.set()
        os.write(2, NOTICE)  # a stream may be in the middle of a write just now
