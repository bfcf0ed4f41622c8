"""The HTTP door: FastAPI on uvicorn. ``docs/rest-api.md`` describes it from outside.

``server`` starts and ends the process, ``app`` puts the routes together, ``service`` is what the routes share,
``bodies`` and ``uploads`` read requests, ``waiting`` holds a caller until the answer is there, ``guard`` says who may
come in, ``failures`` how a failure is answered.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings

SPINS = "20000"
"""How often a helper thread of torch's on a CPU looks for more work before it sleeps: for 0.6 ms. GNU's OpenMP has
300,000, and so keeps every core busy for 8 ms after a picture, while its file is to be written and its caller answered.
Runs of many pictures have the next one to encode by then."""


def run(settings: Settings) -> int:
    """Serve HTTP until SIGTERM or SIGINT; returns the exit code.

    0: ended as it was told to; 1: the engine could not be started, or the HTTP server has ended by itself; 2: the port,
    STATE_DIR or what lies in it stand in the way.

    Args:
        settings: as ``start_checks.check_start`` lets them pass: it sees to it that an open address has a token.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read once, when torch is imported
    from .server import serve

    return serve(settings)
