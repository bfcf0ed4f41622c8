"""A latent file as a Kafka message: its record alone, or its bytes with the record in a header."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

from .errors import LatentEncoderError, check_choice
from .latent_format import FILE_FORMATS, RECORD, header_metadata
from .records import damaged, known_record, placement, read_with_sidecar

PAYLOADS = ("reference", "inline")
JSON, BYTES = "application/json", "application/octet-stream"
RECORD_HEADER = "latent-record"
CORRELATION_ID = "correlation-id"
RECORD_TYPE, FILE_TYPE = "latent_encoder.latent_record.v1", "latent_encoder.latent_file.v1"
SOURCE = "/latent-encoder/comfyui"

_WIRE_IN = "Wire in the LATENT_RECORD of EncodeToLatentFile, SaveLatentToDisk or LoadLatentFromDisk."


@dataclass(frozen=True)
class LatentMessage:
    """What is sent: the key, the value, the headers in their order, and the record as JSON values."""

    key: bytes
    value: bytes = field(repr=False)
    headers: list[tuple[str, bytes]]
    record: dict[str, Any]


def check_record(record: Any) -> tuple[str, str, str]:
    """The place that a record names: its ``type``, ``subfolder`` and ``filename``. Whether a file there may be sent,
    and is the one that the record means, is not looked at yet.

    Args:
        record: what is wired in; any client can post one.

    Raises:
        LatentEncoderError: INVALID_REQUEST for what is no record, or one without a place or checksum.
    """
    from pydantic import ValidationError

    from .models import LatentRecord

    try:
        known = LatentRecord.model_validate(record)
        known.model_dump_json()  # text with half a character in it cannot be sent
    except (ValueError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "no JSON"}
        name = ".".join(map(str, ("record", *first["loc"])))
        raise LatentEncoderError("INVALID_REQUEST", f"'{name}' is not usable: {first['msg']}.", _WIRE_IN) from error
    if known.type is None:
        reason = (
            "'record.type' is null: the file lies in none of ComfyUI's own folders, so it cannot be sent from here."
        )
        raise LatentEncoderError("INVALID_REQUEST", reason, _WIRE_IN)
    if not known.filename or known.file_sha256 is None:
        empty = "file_sha256" if known.filename else "filename"
        raise LatentEncoderError("INVALID_REQUEST", f"'record.{empty}' is null.", _WIRE_IN)
    return known.type, known.subfolder or "", known.filename


def read_latent(path: Path, record: Any) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a record's file, and what is known of it: what stands in or beside the file itself, if anything.

    Args:
        path: where the file lies; the caller has checked that it is allowed.
        record: one that ``check_record`` lets pass.

    Returns:
        the bytes, and the LatentRecord as JSON values.

    Raises:
        LatentEncoderError: FORMAT_UNSUPPORTED for a file that is no latent by its name, or of a newer version;
            LATENT_NOT_FOUND; LATENT_INVALID where it is not the file that the record means, was changed, or is no
            latent; OUT_OF_MEMORY.
    """
    from .models import LatentRecord

    if path.suffix.removeprefix(".") not in FILE_FORMATS:
        hint = f"Send a file that ends in {', '.join('.' + name for name in FILE_FORMATS)}."
        raise LatentEncoderError("FORMAT_UNSUPPORTED", f"'{path.name}' is no latent file by its name.", hint)
    posted = LatentRecord.model_validate(record)
    data, digest, sidecar = read_with_sidecar(path)
    if digest != posted.file_sha256:
        raise damaged(path, "its checksum is not the one in the record")
    try:
        metadata = header_metadata(data) if path.suffix in (".safetensors", ".latent") else {}
    except (ValueError, AttributeError, RecursionError) as error:
        raise LatentEncoderError("LATENT_INVALID", f"'{path.name}' has no header of a latent file.") from error
    own = known_record(sidecar, metadata) if sidecar or RECORD in metadata else posted
    place = placement(path, data, digest) | {"subfolder": posted.subfolder or "", "type": posted.type}
    return data, LatentRecord.model_validate(own.model_dump() | place).model_dump(mode="json")


def build_message(
    data: bytes,
    record: dict[str, Any],
    *,
    payload: str,
    key: str = "",
    correlation_id: str = "",
    inline_max_bytes: int,
) -> LatentMessage:
    """The message for a latent file.

    Args:
        data, record: as ``read_latent`` gives them.
        payload: ``reference``, the record as JSON; or ``inline``, the file's bytes and the record in a header.
        key: the message's key; where it is blank, the record's ``request_id``, else its ``file_sha256``.
        correlation_id: goes into a header, unless it is blank.
        inline_max_bytes: the largest file that may be sent inline.

    Raises:
        LatentEncoderError: INVALID_REQUEST; MESSAGE_TOO_LARGE for ``inline`` with a larger file.
    """
    from pydantic import TypeAdapter, ValidationError

    from .models import CorrelationId, LatentRecord

    check_choice("payload", payload, PAYLOADS)
    as_json = LatentRecord.model_validate(record).model_dump_json().encode()
    chosen_key = _encoded("key", key) or (record["request_id"] or record["file_sha256"]).encode()
    correlation = _encoded("correlation_id", correlation_id)
    try:
        TypeAdapter(CorrelationId).validate_python(correlation_id)
    except ValidationError as error:
        reason = f"'correlation_id' is not usable: {error.errors()[0]['msg']}."
        raise LatentEncoderError("INVALID_REQUEST", reason, "Up to 256 characters, on one line.") from error
    inline = payload == "inline"
    if inline and len(data) > inline_max_bytes:
        raise LatentEncoderError(
            "MESSAGE_TOO_LARGE",
            f"'{record['filename']}' has {len(data):,} bytes; inline, {inline_max_bytes:,} are allowed.",
            "Set payload to 'reference', or let the administrator raise latent_encoder.inline_max_bytes.",
        )
    headers = event_headers(FILE_TYPE, SOURCE, BYTES) if inline else event_headers(RECORD_TYPE, SOURCE)
    if correlation:
        headers.append((CORRELATION_ID, correlation))
    if inline:
        headers.append((RECORD_HEADER, as_json))
    return LatentMessage(chosen_key, data if inline else as_json, headers, record)


def _encoded(field_name: str, text: Any) -> bytes:
    """A widget's text as UTF-8; empty where it is blank."""
    if not isinstance(text, str):
        raise LatentEncoderError("INVALID_REQUEST", f"'{field_name}' is {text!r:.80}, not text.")
    try:
        return text.encode() if text.strip() else b""
    except UnicodeEncodeError as error:
        raise LatentEncoderError("INVALID_REQUEST", f"'{field_name}' is not valid text.") from error


def event_headers(event_type: str, source: str, content_type: str = JSON) -> list[tuple[str, bytes]]:
    """CloudEvents' headers (binary mode) of a new event, and the content type.

    Args:
        source: who tells of it.
    """
    told = {
        "content-type": content_type,
        "ce_specversion": "1.0",
        "ce_id": str(uuid4()),
        "ce_type": event_type,
        "ce_source": source,
        "ce_time": utc_now(),
    }
    return [(name, value.encode()) for name, value in told.items()]


def utc_now() -> str:
    """The time, as RFC 3339, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
