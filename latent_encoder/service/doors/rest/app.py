"""The routes, the guard in front of them, and what surrounds every request, put together."""

from __future__ import annotations

import logging
import time

from fastapi import APIRouter, Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import document, failures
from .guard import check_caller
from .routes import encode, health, jobs, latents
from .service import Service

QUIET = ("/health/live", "/health/ready", "/metrics")  # asked every few seconds
LOGGED_PATH = 200

logger = logging.getLogger(__name__)


def create_app(service: Service | None) -> FastAPI:
    """The application.

    Args:
        service: what it serves; None makes the OpenAPI document, and no answers.
    """
    app = FastAPI(title=document.TITLE)
    app.state.service = service
    v1 = APIRouter(prefix="/v1", dependencies=[Depends(check_caller)])
    for routes in (encode, jobs, latents):
        v1.include_router(routes.router)
    app.include_router(v1)
    app.include_router(health.router)
    failures.install(app)
    document.complete(app)
    app.add_middleware(HeadAsGet)
    app.add_middleware(failures.Unforeseen)
    if service:
        if service.settings.cors_origins:
            app.add_middleware(
                CORSMiddleware,
                allow_origins=service.settings.cors_origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Range"],
                expose_headers=["Content-Range", "ETag", "Location", "Retry-After"],
            )
        app.add_middleware(Record, service=service)
    return app


class HeadAsGet:
    """Answers HEAD as GET; the server leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "HEAD" == scope["method"] in document.find_route(scope["app"], scope["path"])[1]:
            # The copy shares "state", and the server goes on to see that it was HEAD.
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class Record:
    """Logs and counts each answer."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), failures.CLIENT_GONE

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            self._record(scope, status, time.monotonic() - start)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        state = scope["state"]
        usual = "INTERRUPTED" if status == failures.CLIENT_GONE else "success" if status < 400 else "INVALID_REQUEST"
        code = state.get("code", usual)
        route, _ = document.find_route(scope["app"], scope["path"])
        self._service.metrics.http_requests.labels(route, scope["method"], status, code).inc()
        fields = {name: state.get(name) for name in ("request_id", "correlation_id")}
        fields |= {"status": status, "code": code, "milliseconds": round(seconds * 1000, 1)}
        level = logging.DEBUG if scope["path"] in QUIET else logging.INFO
        path = scope["raw_path"][:LOGGED_PATH].decode("latin-1")
        logger.log(level, "%s %s", scope["method"], path, extra=fields)
