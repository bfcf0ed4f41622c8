"""Whether the engine can take work, for ``/health/ready`` and for those who wait for it."""

from __future__ import annotations

import logging
import threading
import time

from latent_encoder.errors import LatentEncoderError

from .engines.base import Engine

STALE_SECONDS = 15.0
STOPPING = "The service is being stopped."

logger = logging.getLogger(__name__)


class Readiness:
    """Whether the engine can take work, as it was when it was last asked."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._error: LatentEncoderError | None = unavailable("The engine is starting.")
        self._asked_at = time.monotonic()
        self._answered = True
        self._stopping = False
        self._guard = threading.Lock()

    def update(self) -> bool:
        """Ask the engine; True where it can."""
        with self._guard:
            return self._update()

    def error(self) -> LatentEncoderError | None:
        """Why it can take no work; None where it can."""
        if self._stopping:
            return unavailable(STOPPING)
        if not self._answered and time.monotonic() - self._asked_at > STALE_SECONDS:
            return unavailable("The engine does not answer.")
        return self._error

    def stop(self) -> None:
        """It takes no work any more."""
        self._stopping = True

    def _update(self) -> bool:
        self._asked_at, self._answered = time.monotonic(), False
        before, error = self._error, None
        try:
            self._engine.check()
        except LatentEncoderError as reason:
            error = reason
        self._error, self._answered = error, True
        if error is None and before is not None:
            logger.info("The engine is ready")
        elif error is not None and before is None:
            logger.warning("The engine cannot take work: %s", error.message, extra={"error_code": error.code})
        return error is None


def unavailable(reason: str) -> LatentEncoderError:
    """ENGINE_UNAVAILABLE for this reason."""
    return LatentEncoderError("ENGINE_UNAVAILABLE", reason, "Ask again in a while.")
