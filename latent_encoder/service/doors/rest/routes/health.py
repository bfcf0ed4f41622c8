"""Health and metrics; they need no token."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from latent_encoder.service.metrics import CONTENT_TYPE

from ..document import METRICS, error_answers
from ..failures import answer_error, as_json
from ..service import Service

router = APIRouter()


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


class Ready(BaseModel):
    """The engine can take work."""

    status: Literal["ready"] = "ready"
    engine: str
    engine_version: str | None


@router.get("/health/live", summary="Does the process answer?", response_model=Live)
async def live() -> Response:
    """200 for as long as the process answers."""
    return as_json(Live())


@router.get(
    "/health/ready",
    summary="Can the engine take work?",
    response_model=Ready,
    responses=error_answers("ENGINE_UNAVAILABLE", "NODES_MISSING"),
)
def ready(http: Request) -> Response:
    """200 while the engine can take work, 503 with the reason while it cannot, starts, or the service is being
    stopped."""
    service: Service = http.app.state.service
    if reason := service.readiness.error():
        return answer_error(http, reason)
    return as_json(Ready(engine=service.engine.name, engine_version=service.engine.version()))


@router.get("/metrics", summary="Numbers for Prometheus", response_class=Response, responses=METRICS)
def metrics(http: Request) -> Response:
    """Requests by code, durations, queues, the engine's state, bytes written."""
    service: Service = http.app.state.service
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)
