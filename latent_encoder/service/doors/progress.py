"""How far a long run is: a bar on a terminal, elsewhere a line of the log now and then."""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

from latent_encoder.models import EncodeResponse

LINE_SECONDS = 10.0
LINE_FORMAT = "{n_fmt} of {total_fmt} pictures, {rate_noinv_fmt}, {remaining} left{postfix}"

logger = logging.getLogger(__name__)


class Progress:
    """Counts the answers and moves the bar."""

    def __init__(self, total: int, bar: Any, on_terminal: bool) -> None:
        self.total = total
        self.done = self.failed = self.reused = 0
        self._bar = bar
        self._on_terminal = on_terminal
        self._start = time.monotonic()

    def add(self, response: EncodeResponse) -> None:
        """One more picture has its answer."""
        self.done += 1
        self.failed += response.status == "error"
        self.reused += bool(response.metadata.get("reused"))
        if self.failed:
            self._bar.set_postfix_str(f"{self.failed:,} failed", refresh=False)
        self._bar.update()

    @contextmanager
    def aside(self, stream: TextIO) -> Iterator[None]:
        """Take the bar away while the block writes to ``stream``, where that is a terminal, too."""
        shared = self._on_terminal and stream.isatty()
        if shared:
            self._bar.clear()
        yield
        if shared:
            self._bar.refresh()

    def summary(self) -> str:
        """All in one line."""
        encoded = self.done - self.failed - self.reused
        text = f"{encoded:,} encoded, {self.reused:,} already there, {self.failed:,} failed"
        left = f", {self.total - self.done:,} not begun" if self.done < self.total else ""
        return f"{self.total:,} pictures: {text}{left}, in {time.monotonic() - self._start:.1f} s"


@contextmanager
def show_progress(total: int, *, quiet: bool = False, line_seconds: float = LINE_SECONDS) -> Iterator[Progress]:
    """Show how many of ``total`` pictures are done, the rate and the time left, while the block runs.

    Args:
        quiet: only count.
        line_seconds: between two lines, where stderr is no terminal.
    """
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    on_terminal = sys.stderr.isatty() and not quiet
    look: dict[str, Any] = {"unit": "img", "dynamic_ncols": True}
    if not on_terminal:
        seconds = {"mininterval": line_seconds, "maxinterval": line_seconds, "delay": line_seconds}
        look = {"unit": " pictures", "file": _LogLines(), "bar_format": LINE_FORMAT, "miniters": 1, "leave": False}
        look |= seconds
    with ExitStack() as stack:
        if on_terminal:
            stack.enter_context(logging_redirect_tqdm())  # log lines go above the bar
        yield Progress(total, stack.enter_context(tqdm(total=total, disable=quiet, **look)), on_terminal)


class _LogLines(io.TextIOBase):
    """Logs what tqdm would write over and over into one line."""

    def write(self, text: str) -> int:
        line = text.strip("\r\n ")
        if line:
            logger.info(line)
        return len(text)
