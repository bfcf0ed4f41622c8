"""``POST /v1/encode``: the answer comes when the picture is encoded."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timezone
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response

from latent_encoder.errors import LatentEncoderError
from latent_encoder.models import EncodeResponse
from latent_encoder.provenance import REQUEST_ID
from latent_encoder.service.engines.base import Call
from latent_encoder.service.requests import error_response

from ..bodies import Incoming, read_encode_request
from ..document import ENCODE_BODY, ENCODE_CODES, failures
from ..failures import CLIENT_GONE, answer
from ..guard import only_query
from ..service import ENCODE, Service

IdempotencyKey = Annotated[
    str | None,
    Header(pattern=REQUEST_ID.pattern, description="Stands for `request_id`: a repeated one is encoded once."),
]

router = APIRouter(dependencies=[only_query()])


@router.post(
    "/encode",
    summary="Encode a picture and wait for the answer",
    response_model=EncodeResponse,
    responses=failures(*ENCODE_CODES, slow_body=True),
    openapi_extra=ENCODE_BODY,
)
async def encode(http: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Encodes the picture that `image_path` names, or that is uploaded as the form's file `image`.

    A repeated `request_id` is answered from its file. A caller who goes away cancels the request.
    """
    service: Service = http.app.state.service
    service.workers.check_room(ENCODE)
    incoming = await read_encode_request(http, service, idempotency_key)
    response = await Waiting(service, incoming).response(http)
    if response is None:
        http.state.code = "INTERRUPTED"
        return Response(status_code=CLIENT_GONE)
    return answer(http, response)


class Waiting:
    """A request in the queue or under way, for as long as its caller waits."""

    def __init__(self, service: Service, incoming: Incoming) -> None:
        self._service = service
        self._request, self._upload = incoming.request, incoming.upload
        self._call = Call(service.settings.timeout)
        if self._request.deadline:
            self._call.limit((self._request.deadline - datetime.now(timezone.utc)).total_seconds())
        self._queued_at = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[EncodeResponse] = self._loop.create_future()

    async def response(self, http: Request) -> EncodeResponse | None:
        """The answer; None where the caller has gone away.

        Raises:
            LatentEncoderError: QUEUE_FULL, ENGINE_UNAVAILABLE.
        """
        workers, task = self._service.workers, self._run
        try:
            workers.reserve(ENCODE)
        except LatentEncoderError:
            self._discard()
            raise
        self._service.calls[self._call] = False
        workers.put(ENCODE, task)
        gone = asyncio.ensure_future(_wait_until_gone(http))
        try:
            waited_for: set[asyncio.Future[Any]] = {self._answer, gone}
            await asyncio.wait(waited_for, timeout=self._call.remaining(), return_when=asyncio.FIRST_COMPLETED)
            if not (self._answer.done() or gone.done()):  # past its deadline
                if workers.remove(ENCODE, task):
                    return self._too_late()
                await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            return self._answer.result() if self._answer.done() else None
        finally:
            gone.cancel()
            self._service.calls.pop(self._call, None)
            if not self._answer.done():
                self._call.cancel()
                if workers.remove(ENCODE, task):
                    self._discard()

    def _run(self) -> None:
        """In a worker's thread."""
        if self._call in self._service.calls:
            self._service.calls[self._call] = True
        try:
            response = self._service.encoder.encode_image_to_latent(
                self._request,
                call=self._call,
                upload=self._upload.path if self._upload else None,
                queued_at=self._queued_at,
            )
        finally:
            self._discard()
        self._service.metrics.count(response)
        self._loop.call_soon_threadsafe(self._deliver, response)

    def _deliver(self, response: EncodeResponse) -> None:
        if not self._answer.done():
            self._answer.set_result(response)

    def _too_late(self) -> EncodeResponse:
        self._discard()
        error = LatentEncoderError("TIMEOUT", "Its time was over before its turn had come.")
        response = error_response(self._request.request_id, self._request.correlation_id, error)
        waited = round((time.monotonic() - self._queued_at) * 1000, 3)
        response.metadata.update(processing_time_ms=0.0, queue_time_ms=waited)
        self._service.metrics.count(response)
        self._answer.set_result(response)
        return response

    def _discard(self) -> None:
        if self._upload:
            self._upload.discard()


async def _wait_until_gone(http: Request) -> None:
    """Return when the caller has closed the connection; the body has been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
