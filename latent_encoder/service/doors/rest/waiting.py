"""A caller of ``POST /v1/encode`` who waits for the answer."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fastapi import Request

from latent_encoder.errors import LatentEncoderError
from latent_encoder.models import EncodeResponse
from latent_encoder.service.engines.base import Call
from latent_encoder.service.requests import error_response, limit_call
from latent_encoder.service.workers import ENCODE, Task

from .bodies import Incoming

if TYPE_CHECKING:
    from .service import Service


class Waiting:
    """A request in the queue or under way, for as long as its caller waits.

    Attributes:
        call: how long that is.
    """

    def __init__(self, service: Service, incoming: Incoming) -> None:
        self._service = service
        self._request, self._upload = incoming.request, incoming.upload
        self.call = Call()
        limit_call(self.call, self._request, service.settings)
        self._task = Task(self._run, key=self._request.request_id)
        self._queued_at = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[EncodeResponse] = self._loop.create_future()

    async def response(self, http: Request) -> EncodeResponse | None:
        """The answer; None where the caller has gone away.

        Raises:
            LatentEncoderError: QUEUE_FULL, ENGINE_UNAVAILABLE.
        """
        self._service.waiting.add(self)
        try:
            self._service.workers.add(ENCODE, self._task)
        except LatentEncoderError:
            self._service.waiting.discard(self)
            self._discard()
            raise
        gone = asyncio.ensure_future(_wait_until_gone(http))
        try:
            waited_for: set[asyncio.Future[Any]] = {self._answer, gone}
            await asyncio.wait(waited_for, timeout=self.call.remaining(), return_when=asyncio.FIRST_COMPLETED)
            if not (self._answer.done() or gone.done()):  # past its deadline
                self.answer_if_waits(self.call.too_late("Its time was over before its turn had come."))
                await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            return self._answer.result() if self._answer.done() else None
        finally:
            gone.cancel()
            self._service.waiting.discard(self)
            if not self._answer.done():
                self.call.cancel()
                if self._service.workers.remove(ENCODE, self._task):
                    self._discard()

    def answer_if_waits(self, error: LatentEncoderError) -> None:
        """Answer with this error where its turn has not come; from any thread."""
        if self._service.workers.remove(ENCODE, self._task):
            self._discard()
            self._deliver_error(error)

    def give_up(self, error: LatentEncoderError) -> None:
        """Answer with this error, whether it waits or runs; from any thread."""
        self.answer_if_waits(error)
        self.call.cancel()
        self._deliver_error(error)

    def _run(self) -> None:
        """In a worker's thread."""
        try:
            response = self._service.encoder.encode_image_to_latent(
                self._request,
                call=self.call,
                upload=self._upload.path if self._upload else None,
                queued_at=self._queued_at,
            )
        finally:
            self._discard()
        self._deliver(response)

    def _deliver_error(self, error: LatentEncoderError) -> None:
        response = error_response(self._request.request_id, self._request.correlation_id, error)
        waited = round((time.monotonic() - self._queued_at) * 1000, 3)
        response.metadata.update(processing_time_ms=0.0, queue_time_ms=waited)
        self._deliver(response)

    def _deliver(self, response: EncodeResponse) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(self._set_answer, response)

    def _set_answer(self, response: EncodeResponse) -> None:
        """The first one counts."""
        if not self._answer.done():
            self._answer.set_result(response)
            self._service.metrics.count(response)

    def _discard(self) -> None:
        if self._upload:
            self._upload.discard()


async def _wait_until_gone(http: Request) -> None:
    """Return when the caller has closed the connection; the body has been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
