"""A request as a Kafka message, and its answer: keys, values and headers.

Values are JSON; CloudEvents' headers (binary mode) are understood and written.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, cast

from confluent_kafka import Message
from pydantic_core import from_json

from latent_encoder.errors import LatentEncoderError
from latent_encoder.kafka_message import CORRELATION_ID, JSON, event_headers
from latent_encoder.models import EncodeRequest, EncodeResponse
from latent_encoder.provenance import REQUEST_ID
from latent_encoder.service.requests import known_ids, parse_request, read_json_object

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings

Headers = list[tuple[str, "bytes | None"]]

CAUSATION_ID = "causation-id"
PASSED_ON = (CORRELATION_ID, "kafka_correlationId", "traceparent", "tracestate")
"""The headers of a request that its answer bears, byte for byte."""

REQUEST_TYPE, RESPONSE_TYPE = "latent_encoder.encode_request.v1", "latent_encoder.encode_response.v1"
MAX_VALUE_BYTES = 1 << 16
LONGEST_ID = 128

WHOLE, SHORT, SHORTEST = 0, 1, 2
"""How much of a message is left in its answer and its dead letter, where their topics do not take all of it."""


@dataclass(frozen=True)
class Incoming:
    """A message of the request topic, read.

    Attributes:
        topic, partition, offset: where it stands.
        timestamp: milliseconds since 1970; None where the message has none.
        request: what it asks for; None where ``error`` says why it cannot be read.
        received_at: on the monotonic clock.
        request_id: the request's; of one that cannot be read, what its body or its key tells.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int | None
    key: bytes | None = field(repr=False)
    value: bytes | None = field(repr=False)
    headers: Headers = field(repr=False)
    request: EncodeRequest | None = None
    request_id: str | None = None
    correlation_id: str | None = None
    error: LatentEncoderError | None = None
    received_at: float = field(default_factory=time.monotonic)

    @property
    def size(self) -> int:
        """How many bytes it holds: anybody's headers may be as long as the brokers allow."""
        headers = sum(len(name) + len(value or b"") for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers

    @property
    def is_late(self) -> bool:
        """Whether its deadline has passed."""
        deadline = self.request.deadline if self.request else None
        return deadline is not None and deadline <= datetime.now(timezone.utc)


def read_request(message: Message, settings: Settings) -> Incoming:
    """Read a message; what is wrong with it stands in ``error``."""
    kind, timestamp = message.timestamp()
    parts: dict[str, Any] = {
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "timestamp": timestamp if kind else None,
        "key": message.key(),
        "value": message.value(),
        "headers": [],
    }
    fields: dict[str, Any] = {}
    try:
        parts["headers"] = headers_of(message)
        fields = _read_fields(parts)
        ids = _known_ids(fields, parts)
        if "request_id" not in fields:
            fields["request_id"] = ids.get("request_id") or _made_id(parts)
        if fields.get("correlation_id") is None:
            fields["correlation_id"] = ids.get("correlation_id")
        request = parse_request(fields, settings)
    except LatentEncoderError as error:
        ids = _known_ids(fields or _fields_all_the_same(parts["value"]), parts)
        return Incoming(
            **parts, request_id=ids.get("request_id"), correlation_id=ids.get("correlation_id"), error=error
        )
    return Incoming(**parts, request=request, request_id=request.request_id, correlation_id=request.correlation_id)


def answer_headers(incoming: Incoming, source: str) -> Headers:
    """The headers of an answer: CloudEvents', and those that are passed on.

    Args:
        source: who answers, as CloudEvents' ``source``.
    """
    headers: Headers = [*event_headers(RESPONSE_TYPE, source)]
    passed = [(name, value) for name, value in incoming.headers if name in PASSED_ON]
    if incoming.correlation_id and not any(name == CORRELATION_ID for name, _ in passed):
        passed.append((CORRELATION_ID, incoming.correlation_id.encode()))
    if event_id := header(incoming.headers, "ce_id"):
        passed.append((CAUSATION_ID, event_id))
    return headers + passed


def answer_record(
    topic: str, incoming: Incoming, response: EncodeResponse, source: str, *, length: int = WHOLE
) -> dict[str, Any]:
    """What ``Producer.produce`` takes for an answer; its key is the request's, else the id.

    Args:
        length: SHORT leaves out what the request has brought but its ids and key, SHORTEST its key too.
    """
    headers = answer_headers(incoming, source)
    if length != WHOLE:
        response = response.model_copy(update={"correlation_id": None})
        headers = [*event_headers(RESPONSE_TYPE, source)]
    key = incoming.key if incoming.key is not None and length != SHORTEST else (response.request_id or "").encode()
    return {"topic": topic, "key": key, "value": response.model_dump_json().encode(), "headers": headers}


def header(headers: Headers, name: str) -> bytes | None:
    """The last header of that name."""
    return next((value for found, value in reversed(headers) if found == name), None)


def _check_content_type(headers: Headers) -> None:
    given = (header(headers, "content-type") or b"").decode("latin-1")
    kind = given.partition(";")[0].strip().lower()
    if kind and kind != JSON and not (kind.endswith("+json") and not kind.startswith("application/cloudevents")):
        raise LatentEncoderError(
            "INVALID_REQUEST",
            f"The header content-type is {given[:80]!r}.",
            "Send the EncodeRequest as application/json, CloudEvents in binary mode.",
        )


def headers_of(message: Message) -> Headers:
    """A message's headers.

    Raises:
        LatentEncoderError: INVALID_REQUEST for a name that is not UTF-8: the library makes text of the names.
    """
    try:
        return cast(Headers, message.headers() or [])
    except (SystemError, UnicodeDecodeError) as error:
        raise LatentEncoderError(
            "INVALID_REQUEST", "The name of a header is not UTF-8 text.", "Send headers with names in ASCII."
        ) from error


def _read_fields(parts: dict[str, Any]) -> dict[str, Any]:
    """The JSON object in the value."""
    _check_content_type(parts["headers"])
    value = parts["value"]
    if value is None:
        raise LatentEncoderError("INVALID_REQUEST", "The message has no value.", "Send an EncodeRequest as JSON.")
    if len(value) > MAX_VALUE_BYTES:
        raise LatentEncoderError(
            "MESSAGE_TOO_LARGE",
            f"The request has {len(value):,} bytes; {MAX_VALUE_BYTES:,} are allowed.",
            "Name the picture in image_path; its bytes do not go into the message.",
        )
    return read_json_object(value)


def _fields_all_the_same(value: bytes | None) -> dict[str, Any]:
    """What the ids are looked for in where the message is refused for something else."""
    try:
        fields = from_json(value or b"")
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _known_ids(fields: dict[str, Any], parts: dict[str, Any]) -> dict[str, str]:
    """The well-formed ids that the body tells, else the key and the header."""
    around = {}
    for name, value in (("request_id", parts["key"]), ("correlation_id", header(parts["headers"], CORRELATION_ID))):
        with suppress(UnicodeDecodeError):
            around[name] = (value or b"").decode()
    return known_ids(around) | known_ids(fields)


def _made_id(parts: dict[str, Any]) -> str:
    """An id for a request without one: the same for the same message, however often it is read."""
    place = f"{parts['topic']}-{parts['partition']}-{parts['offset']}-{parts['timestamp'] or 0}"
    if len(place) <= LONGEST_ID and REQUEST_ID.fullmatch(place):
        return place
    return hashlib.sha256(place.encode()).hexdigest()
