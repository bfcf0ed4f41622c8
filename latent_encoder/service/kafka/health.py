"""The worker's HTTP endpoints: ``/health/live``, ``/health/ready`` and ``/metrics``, as the HTTP door has them.

They tell nothing of requests and pictures, so they need no token, and any address may be listened on.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.engines.base import Engine
from latent_encoder.service.listener import http_server
from latent_encoder.service.metrics import CONTENT_TYPE
from latent_encoder.service.requests import error_response

from .numbers import Numbers

CLOSE_SECONDS = 2


@contextmanager
def serve_health(listener: socket.socket, numbers: Numbers, engine: Engine) -> Iterator[None]:
    """Answer on this socket for the block's time."""
    server = http_server(_app(numbers, engine), timeout_graceful_shutdown=CLOSE_SECONDS)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(2 * CLOSE_SECONDS)


def _app(numbers: Numbers, engine: Engine) -> Starlette:
    async def live(http: Request) -> Response:
        if numbers.is_stuck:
            return _failure(LatentEncoderError("INTERNAL", "The worker's loop turns no more."), 500)
        return _json({"status": "live"})

    def ready(http: Request) -> Response:
        if error := numbers.error():
            return _failure(error, 503)  # whatever the matter: it is not ready
        return _json({"status": "ready", "engine": engine.name, "engine_version": engine.version()})

    def metrics(http: Request) -> Response:
        return Response(numbers.metrics.text(), media_type=CONTENT_TYPE)

    routes = {"/health/live": live, "/health/ready": ready, "/metrics": metrics}
    return Starlette(routes=[Route(path, endpoint) for path, endpoint in routes.items()])


def _failure(error: LatentEncoderError, status: int) -> Response:
    body = error_response(None, None, error).model_dump_json()
    return Response(body, status, media_type="application/json")


def _json(contents: dict[str, Any]) -> Response:
    return Response(json.dumps(contents), media_type="application/json")
