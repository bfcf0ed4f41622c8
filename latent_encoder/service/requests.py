"""From a caller's fields to an EncodeRequest, and from an error to an EncodeResponse: the same words at every door."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from latent_encoder.errors import LatentEncoderError
from latent_encoder.models import CorrelationId, EncodeRequest, EncodeResponse, RequestId

if TYPE_CHECKING:
    from .config import Settings
    from .engines.base import Call

SHOWN_VALUE = 80  # characters of a wrong value that a message repeats

_request_id: TypeAdapter[str] = TypeAdapter(RequestId)
_correlation_id: TypeAdapter[str] = TypeAdapter(CorrelationId)


def read_json_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a caller has sent.

    Raises:
        LatentEncoderError: INVALID_REQUEST where it is none, or says a name twice.
    """
    try:
        fields = from_json(body, allow_inf_nan=False)  # counts how deeply it is nested, which the next one does not
        json.loads(body, object_pairs_hook=_unlike_names)
    except ValueError as error:
        raise LatentEncoderError("INVALID_REQUEST", f"The body is not JSON ({error}).") from error
    if not isinstance(fields, dict):
        raise LatentEncoderError("INVALID_REQUEST", "The body is not a JSON object.", "Send an EncodeRequest.")
    return fields


def _unlike_names(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise LatentEncoderError("INVALID_REQUEST", f"The body has the name {_shown(twice)} twice.")


def known_ids(fields: Mapping[str, Any]) -> dict[str, str]:
    """The ``request_id`` and ``correlation_id`` among these fields, where they are well-formed: for the answer to a
    request that is wrong elsewhere."""
    found = {}
    for name, adapter in (("request_id", _request_id), ("correlation_id", _correlation_id)):
        with suppress(ValidationError):
            found[name] = adapter.validate_python(fields.get(name), strict=True)
    return found


def parse_request(fields: Mapping[str, Any], settings: Settings) -> EncodeRequest:
    """An EncodeRequest of these fields; those that are absent have the settings' values.

    Raises:
        LatentEncoderError: INVALID_REQUEST, which names every field that is wrong.
    """
    defaults = {
        "vae_model_name": settings.vae_model_name,
        "upscale_method": settings.upscale_method,
        "megapixels": settings.megapixels,
    }
    try:
        return EncodeRequest.model_validate(defaults | dict(fields))
    except ValidationError as error:
        raise invalid_request(error) from error


def limit_call(call: Call, request: EncodeRequest, settings: Settings) -> None:
    """Let the caller of this request wait no longer than TIMEOUT from now, nor beyond its deadline."""
    call.limit(settings.timeout)
    if request.deadline is not None:
        call.limit((request.deadline - datetime.now(timezone.utc)).total_seconds(), for_good=True)


def invalid_request(error: ValidationError) -> LatentEncoderError:
    """Pydantic's findings as one error in words."""
    problems = []
    for finding in error.errors(include_url=False, include_context=False):
        field = ".".join(map(str, finding["loc"])) or "the request"
        given = "" if finding["type"] in ("missing", "extra_forbidden") else f" (given: {_shown(finding['input'])})"
        problems.append(f"'{field}': {finding['msg']}{given}")
    return LatentEncoderError("INVALID_REQUEST", "; ".join(problems) + ".")


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= SHOWN_VALUE else shown[: SHOWN_VALUE - 3] + "..."


def error_response(request_id: str | None, correlation_id: str | None, error: LatentEncoderError) -> EncodeResponse:
    """The answer to a request that failed."""
    return EncodeResponse(
        status="error",
        request_id=request_id,
        correlation_id=correlation_id,
        error_code=error.code,
        error_message=error.message,
        error_hint=error.hint,
        retryable=error.retryable,
    )
