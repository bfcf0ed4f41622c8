"""From a caller's fields to an EncodeRequest, and from an error to an EncodeResponse: the same words at every door."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from latent_encoder.errors import LatentEncoderError
from latent_encoder.models import EncodeRequest, EncodeResponse

if TYPE_CHECKING:
    from .config import Settings
    from .engines.base import Call

SHOWN_VALUE = 80  # characters of a wrong value that a message repeats


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
        call.limit((request.deadline - datetime.now(timezone.utc)).total_seconds())


def invalid_request(error: ValidationError) -> LatentEncoderError:
    """Pydantic's findings as one error in words."""
    problems = []
    for finding in error.errors(include_url=False, include_context=False):
        field = ".".join(map(str, finding["loc"])) or "the request"
        shown = repr(finding["input"])
        shown = shown if len(shown) <= SHOWN_VALUE else shown[: SHOWN_VALUE - 3] + "..."
        given = "" if finding["type"] in ("missing", "extra_forbidden") else f" (given: {shown})"
        problems.append(f"'{field}': {finding['msg']}{given}")
    return LatentEncoderError("INVALID_REQUEST", "; ".join(problems) + ".")


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
