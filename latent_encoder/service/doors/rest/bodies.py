"""From an HTTP request's body to an EncodeRequest, without trusting its size, its pace or its contents."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Request
from python_multipart.multipart import parse_options_header

from latent_encoder.errors import LatentEncoderError
from latent_encoder.models import EncodeRequest
from latent_encoder.service.requests import known_ids, parse_request, read_json_object

from .failures import with_status
from .uploads import MAX_FIELD_BYTES, Upload

if TYPE_CHECKING:
    from .service import Service

MAX_JSON_BYTES = 1 << 16
MULTIPART_FRAME_BYTES = MAX_FIELD_BYTES + (1 << 16)  # the fields, and what stands around the parts
PATIENCE_SECONDS = 20.0
SLOWEST_BYTES_PER_SECOND = 16_000

_NUMBERS = ("schema_version",)  # what pydantic reads as a number only, while a form has nothing but text


@dataclass(frozen=True)
class Incoming:
    """A request, and the picture that came with it, which belongs to the caller."""

    request: EncodeRequest
    upload: Upload | None


async def read_encode_request(http: Request, service: Service, idempotency_key: str | None) -> Incoming:
    """Read a body of JSON, or a form with a picture. Ids are remembered for the answer to a failure as soon as they are
    known.

    Raises:
        LatentEncoderError: INVALID_REQUEST, IMAGE_TOO_LARGE, MESSAGE_TOO_LARGE, QUEUE_FULL, DISK_FULL,
            OUTPUT_DIR_NOT_WRITABLE, and TIMEOUT with status 408 for a body that comes too slowly; then no upload is
            left.
        starlette.requests.ClientDisconnect: the caller has gone away.
    """
    http.state.request_id = idempotency_key
    content_type = http.headers.get("content-type", "")
    kind = parse_options_header(content_type)[0]
    fields: dict[str, Any]
    upload = None
    if kind == b"multipart/form-data":
        too_large = service.uploads.too_large()
        body = paced(http, service.uploads.max_bytes + MULTIPART_FRAME_BYTES, too_large)
        form, upload = await service.uploads.receive(content_type, body)
        fields = _fields_of_form(form)
    elif kind == b"application/json":
        fields = await _read_json(http)
    else:
        raise LatentEncoderError(
            "INVALID_REQUEST",
            f"The body's Content-Type is {kind.decode('latin-1')[:80]!r}.",
            "Send the fields as application/json, or a picture as multipart/form-data.",
        )
    try:
        for name, value in known_ids(fields).items():
            setattr(http.state, name, value)
        _take_key(fields, idempotency_key)
        if upload:
            if "image_path" in fields:
                hint = "Leave out image_path, or send JSON."
                raise LatentEncoderError("INVALID_REQUEST", "'image_path' was given, and a picture uploaded.", hint)
            fields["image_path"] = upload.name
        request = parse_request(fields, service.settings)
    except BaseException:
        if upload:
            upload.discard()
        raise
    http.state.request_id = request.request_id
    return Incoming(request, upload)


async def paced(http: Request, limit: int, too_large: LatentEncoderError) -> AsyncIterator[bytes]:
    """The body as it comes, from a caller who keeps a certain pace.

    Raises:
        LatentEncoderError: ``too_large`` beyond ``limit`` bytes, before any is read where Content-Length says so;
            TIMEOUT with status 408.
    """
    if int(http.headers.get("content-length", 0)) > limit:
        raise too_large
    start, received = time.monotonic(), 0
    stream = http.stream()
    while True:
        patience = start + PATIENCE_SECONDS + received / SLOWEST_BYTES_PER_SECOND - time.monotonic()
        try:
            chunk = await asyncio.wait_for(anext(stream), patience)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError as error:
            slow = LatentEncoderError("TIMEOUT", "The request's body came too slowly.", "Send it without pauses.")
            raise with_status(slow, 408) from error
        received += len(chunk)
        if received > limit:
            raise too_large
        yield chunk


async def _read_json(http: Request) -> dict[str, Any]:
    too_large = LatentEncoderError(
        "MESSAGE_TOO_LARGE",
        f"The request has more than {MAX_JSON_BYTES:,} bytes of JSON.",
        "Send a picture as multipart/form-data, not inside JSON.",
    )
    body = b"".join([chunk async for chunk in paced(http, MAX_JSON_BYTES, too_large)])
    return read_json_object(body)


def _fields_of_form(form: dict[str, str]) -> dict[str, Any]:
    """Fields as JSON has them."""
    fields: dict[str, Any] = dict(form)
    for name in _NUMBERS:
        if str(fields.get(name, "")).isdecimal():
            with suppress(ValueError):  # beyond 4,300 digits
                fields[name] = int(fields[name])
    return fields


def _take_key(fields: dict[str, Any], idempotency_key: str | None) -> None:
    if idempotency_key is None:
        return
    if fields.setdefault("request_id", idempotency_key) != idempotency_key:
        raise LatentEncoderError(
            "INVALID_REQUEST",
            "The header Idempotency-Key and the field 'request_id' are unlike.",
            "Send one of them, or the same value as both.",
        )
