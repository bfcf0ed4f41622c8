"""Uvicorn's HTTP protocol with what it lacks: a limit on the time and the size of a request's head, and on what is read
after a request was refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.requests import error_response

HEAD_SECONDS = 15.0
MAX_HEAD_BYTES = 1 << 16
LINGER_SECONDS = 5.0
LINGER_BYTES = 1 << 26


class Protocol(HttpToolsProtocol):
    """One connection.

    A request's head must come within ``HEAD_SECONDS`` and ``MAX_HEAD_BYTES``. Where the answer is given before the body
    has been read, a little of the rest is read and thrown away: a connection that is closed while its other end still
    sends loses the answer.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._in_head, self._in_message = True, False
        self._head_bytes = self._thrown_away = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_timer(HEAD_SECONDS)

    def connection_lost(self, error: Exception | None) -> None:
        self._set_timer(None)
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        was_in_head = self._in_head
        super().data_received(data)
        if was_in_head and self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, f"The request's head has more than {MAX_HEAD_BYTES:,} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._head_bytes = self._thrown_away = 0
        self._set_timer(HEAD_SECONDS)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._set_timer(None)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:
            self._thrown_away += len(body)
            if self._thrown_away > LINGER_BYTES:
                self.transport.close()
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_message = False
        self._set_timer(None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_message and not self.transport.is_closing():
            self._set_timer(LINGER_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP in the form of all other failures."""
        self._refuse(400, "The request is not HTTP/1.1.")

    def _refuse(self, status: int, message: str) -> None:
        error = LatentEncoderError("INVALID_REQUEST", message, "Send a well-formed HTTP request.")
        body = json.dumps(error_response(None, None, error).model_dump(mode="json")).encode()
        head = STATUS_LINE[status] + (
            b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        )
        self.transport.write(head + body)
        self.transport.close()

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._time_over)

    def _time_over(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
