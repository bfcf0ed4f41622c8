"""What stops consumption: an engine, a disk or a folder of pictures that is away. Nothing is dead-lettered for that."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from latent_encoder.errors import LatentEncoderError
from latent_encoder.models import EncodeRequest, EncodeResponse
from latent_encoder.service.readiness import Readiness

from .assignment import Partition, Work

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings

ENGINE_AWAY = ("ENGINE_UNAVAILABLE", "NODES_MISSING")
PICTURE_AWAY = ("IMAGE_NOT_FOUND", "IMAGE_INVALID")
FIRST_SECONDS, LONGEST_SECONDS = 1.0, 15.0

MOST_LOSSES_BESIDE = 3
"""A picture that was with the engine so often when it was lost is tried alone before anything else goes on."""

logger = logging.getLogger(__name__)


def is_away(request: EncodeRequest | None, response: EncodeResponse, settings: Settings) -> bool:
    """Whether a request failed because of what every other one needs, too."""
    code = response.error_code
    if code == "DISK_FULL" or code in ENGINE_AWAY:  # the engine may be back by now: it was away all the same
        return True
    if code == "OUTPUT_DIR_NOT_WRITABLE":  # a folder of its own may be wrong for it alone
        return request is None or request.output_dir is None
    if code in PICTURE_AWAY and request is not None:
        # os.path's isdir and realpath also answer for what cannot be asked, such as a file server that is gone.
        picture = Path(os.path.realpath(request.image_path))
        gone = [root for root in settings.input_roots if not os.path.isdir(root)]
        return any(picture.is_relative_to(os.path.realpath(root)) for root in gone)
    return False


def count_loss(work: Work, response: EncodeResponse) -> None:
    """Note what the engine was lost over. Where it encoded nothing else, it goes away because of this picture."""
    if response.error_code not in ENGINE_AWAY:
        return
    if work.alone:
        work.engines_lost += 1
    else:
        work.engines_lost_beside += 1


def takes_the_engine_down(times: int) -> LatentEncoderError:
    """The answer to a picture that ``count_loss`` has counted too often."""
    return LatentEncoderError(
        "INTERNAL",
        f"The engine was lost {times} times while it encoded this picture alone.",
        "Look into the engine's log of that time, and whether its machine ran out of memory.",
    )


class Hold:
    """The work that waits for what is away.

    Attributes:
        error: what is away; None where nothing is.
    """

    def __init__(self, settings: Settings, readiness: Readiness) -> None:
        self._settings, self._readiness = settings, readiness
        self._works: list[Work] = []
        self._pause, self._try_at = FIRST_SECONDS, 0.0
        self._engine_away = False
        self.error: LatentEncoderError | None = None

    def begin(self, work: Work, response: EncodeResponse) -> None:
        """Keep this work until it may be tried again."""
        self._works.append(work)
        if self.error is None:
            logger.warning("Consumption stops: %s", response.error_message, extra={"error_code": response.error_code})
        message, hint = response.error_message or "", response.error_hint
        if response.error_code in PICTURE_AWAY:  # whoever asks for our health is told no picture's name
            message, hint = "A folder of INPUT_ROOTS is not there.", "Mount it again."
        self.error = LatentEncoderError(response.error_code or "INTERNAL", message, hint)
        self._engine_away = self.error.code in ENGINE_AWAY and not self._readiness.update()
        self._try_at = time.monotonic() + self._pause

    def end(self) -> None:
        """Something went well, or failed by itself: everything may go on, but for a picture that is to be tried alone
        first: one that takes one of several engines down would never be alone otherwise."""
        self._pause, self._try_at = FIRST_SECONDS, 0.0
        if any(work.engines_lost_beside >= MOST_LOSSES_BESIDE for work in self._works):
            return
        if self.error is not None:
            logger.info("Consumption goes on")
        self.error = None

    def due(self, owned: Callable[[Partition], bool], *, busy: bool) -> list[Work]:
        """Take the work that is to be tried now: one to find out, all once nothing is away, and what is too late.

        Args:
            owned: whether an assignment still holds.
            busy: whether anything is being encoded: what is tried to find out has nothing beside it.
        """
        self._works = [work for work in self._works if owned(work.partition)]
        if self.error is not None and not self._works:
            return self._without_work()
        if self.error is None:
            due = self._works
        else:
            if self._engine_away and self._readiness.error() is None:  # it is asked every second
                self._engine_away, self._try_at = False, 0.0
            due = [work for work in self._works if work.incoming.is_late]
            if not due and not busy and time.monotonic() >= self._try_at:
                return self._probe(self.error.code)
        for work in due:
            work.alone = False
        self._works = [work for work in self._works if work not in due]
        return due

    def _probe(self, code: str) -> list[Work]:
        """The one work that finds out; none where the engine itself says that it is away."""
        self._pause = min(2 * self._pause, LONGEST_SECONDS)
        self._try_at = time.monotonic() + self._pause
        if code in ENGINE_AWAY and not self._readiness.update():
            return []
        work = max(self._works, key=lambda work: work.engines_lost_beside)
        work.alone = True
        self._works.remove(work)
        return [work]

    def _without_work(self) -> list[Work]:
        """Nothing is left to find out with: the next message does."""
        if time.monotonic() >= self._try_at and self._readiness.update():
            self.end()
        return []
