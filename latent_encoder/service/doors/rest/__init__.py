"""The HTTP door: FastAPI on uvicorn. ``docs/rest-api.md`` describes it from outside.

``server`` starts and ends the process, ``app`` puts the routes together, ``service`` is what the routes share,
``bodies`` and ``uploads`` read requests, ``waiting`` holds a caller until the answer is there, ``guard`` says who may
come in, ``failures`` how a failure is answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings


def run(settings: Settings) -> int:
    """Serve HTTP until SIGTERM or SIGINT; returns the exit code.

    0: ended as it was told to; 1: the engine could not be started, or the HTTP server has ended by itself; 2: the port,
    STATE_DIR or what lies in it stand in the way.

    Args:
        settings: as ``start_checks.check_start`` lets them pass: it sees to it that an open address has a token.
    """
    from .server import serve

    return serve(settings)
