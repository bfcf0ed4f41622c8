"""How a failure is answered: an EncodeResponse with the error's code, and the HTTP status of the catalogue.

HTTP knows a few failures that the catalogue does not; they are INVALID_REQUEST or TIMEOUT with HTTP's own status: 404
and 405 for what is no route, 408 for a slow body, 416 for a range outside the file; and, from ``protocol``, 400 for
what is no HTTP and 431 for a head that is too long. 499 stands in log and metrics for a caller who has gone away.
"""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latent_encoder.errors import CATALOGUE, LatentEncoderError
from latent_encoder.models import EncodeResponse
from latent_encoder.service.requests import error_response
from latent_encoder.service.workers import QueueFull

from .document import find_route

CLIENT_GONE = 499  # nobody reads it; it stands in the log and the metrics

logger = logging.getLogger(__name__)


def with_status(error: LatentEncoderError, status: int) -> LatentEncoderError:
    """The error, to be answered with another HTTP status than its usual one."""
    error.http_status = status
    return error


def as_json(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A model as an HTTP answer."""
    return Response(model.model_dump_json(), status, headers, media_type="application/json")


def answer(http: Request, response: EncodeResponse) -> Response:
    """The encoder's answer as HTTP's."""
    http.state.code = response.error_code or "success"
    return as_json(response, CATALOGUE[response.error_code].http_status if response.error_code else 200)


def answer_error(http: Request, error: LatentEncoderError, headers: dict[str, str] | None = None) -> Response:
    """A failure before or beside the encoder, as HTTP's answer."""
    headers = dict(headers or {})
    if isinstance(error, QueueFull):
        headers["Retry-After"] = str(error.retry_after)
    if error.code == "UNAUTHORIZED":
        headers["WWW-Authenticate"] = "Bearer"
    http.state.code = error.code
    request_id, correlation_id = (getattr(http.state, name, None) for name in ("request_id", "correlation_id"))
    return as_json(error_response(request_id, correlation_id, error), error.http_status, headers)


def install(app: FastAPI) -> None:
    """Answer every failure of ``app`` this way."""

    @app.exception_handler(LatentEncoderError)
    async def known(http: Request, error: LatentEncoderError) -> Response:
        return answer_error(http, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(http: Request, error: RequestValidationError) -> Response:
        problems = "; ".join(f"'{entry['loc'][-1]}': {entry['msg']}" for entry in error.errors())
        return answer_error(http, LatentEncoderError("INVALID_REQUEST", f"{problems}."))

    @app.exception_handler(HTTPException)
    async def refused(http: Request, error: HTTPException) -> Response:
        reasons = {
            404: ("There is no such route.", "See /docs for those that there are."),
            405: (f"This route does not take {http.method}.", "See /docs for the methods of each route."),
        }
        message, hint = reasons.get(error.status_code, (str(error.detail), "See /docs."))
        failure = with_status(LatentEncoderError("INVALID_REQUEST", message, hint), error.status_code)
        _, methods = find_route(app, http.url.path)
        return answer_error(http, failure, {"Allow": ", ".join(methods)} if error.status_code == 405 else None)

    @app.exception_handler(ClientDisconnect)
    async def gone(http: Request, error: ClientDisconnect) -> Response:
        http.state.code = "INTERRUPTED"
        return Response(status_code=CLIENT_GONE)


class Unforeseen:
    """Answers INTERNAL where the routes raise what no handler knows: inside of what logs, counts and adds headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as error:
            http = Request(scope)
            http.state.code = "INTERNAL"
            if started:  # the connection must break, or the caller would take a part for the whole
                raise
            logger.error(
                "A request failed", exc_info=error, extra={"request_id": getattr(http.state, "request_id", None)}
            )
            internal = LatentEncoderError("INTERNAL", "Something went wrong that we did not foresee.")
            await answer_error(http, internal)(scope, receive, send)
