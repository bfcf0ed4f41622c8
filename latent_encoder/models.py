"""The three messages of Latent Encoder: what is asked for, what is answered, and what is known of a latent file.

Importing pydantic models costs 20 to 35 ms, so this module is imported where it is used, not at ComfyUI's start.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    field_validator,
)

from .images import MAX_MEGAPIXELS, MAX_RESOLUTION_STEPS, MIN_MEGAPIXELS, UpscaleMethod
from .latent_format import FileFormat
from .provenance import REQUEST_ID

SCHEMA_VERSION: Literal[1] = 1
DEFAULT_VAE = "qwen_image_vae.safetensors"

RequestId = Annotated[str, StringConstraints(pattern=REQUEST_ID.pattern)]

CorrelationId = Annotated[str, StringConstraints(max_length=256, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
"""Any text without control characters."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Size = tuple[int, int]
"""Width and height in pixels."""


def _text_with_date(value: Any) -> Any:
    """Pydantic would also take a number for seconds since 1970."""
    if isinstance(value, (int, float)) or (isinstance(value, str) and not re.match(r"\d{4}-\d\d-\d\d[Tt ]", value)):
        raise ValueError("not a date and time as RFC 3339 writes it")
    return value


Time = Annotated[AwareDatetime, BeforeValidator(_text_with_date)]
"""A date and time with its zone: ``2026-01-02T03:04:05Z``."""


def _now() -> datetime:
    return datetime.now(timezone.utc)


class LatentRecord(BaseModel):
    """What is known of a latent file; what is not known is None. See ``docs/latent-file.md`` for each field."""

    model_config = ConfigDict(extra="ignore")

    schema_version: int = SCHEMA_VERSION
    request_id: RequestId | None = None
    path: str | None = None
    filename: str | None = None
    subfolder: str | None = None
    type: Literal["input", "output", "temp"] | None = None
    file_format: FileFormat | None = None
    file_bytes: int | None = None
    file_sha256: Sha256 | None = None
    latent_shape: list[int] | list[list[int]] | None = None
    latent_dtype: str | None = None
    latent_channels: int | None = None
    downscale: int | None = None
    vae_name: str | None = None
    vae_sha256: Sha256 | None = None
    image_name: str | None = None
    image_sha256: Sha256 | None = None
    original_size: Size | None = None
    scaled_size: Size | None = None
    upscale_method: str | None = None
    megapixels: FiniteFloat | None = None
    resolution_steps: int | None = None
    engine: str | None = None
    engine_version: str | None = None
    optimized: bool | None = None
    pack_version: str | None = None
    created_at: Time | None = None


class EncodeRequest(BaseModel):
    """Asks for one picture to be encoded. Unknown fields are an error."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    request_id: RequestId = Field(default_factory=lambda: uuid4().hex)
    correlation_id: CorrelationId | None = None
    image_path: str = Field(min_length=1)
    vae_model_name: str = Field(DEFAULT_VAE, min_length=1)
    upscale_method: UpscaleMethod = "lanczos"
    megapixels: float = Field(1.0, ge=MIN_MEGAPIXELS, le=MAX_MEGAPIXELS)
    resolution_steps: int = Field(1, ge=1, le=MAX_RESOLUTION_STEPS)
    output_dir: str | None = None
    file_format: FileFormat = "safetensors"
    timestamp: Time | None = None
    deadline: Time | None = None

    @field_validator("schema_version", "megapixels", "resolution_steps", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any) -> Any:
        if isinstance(value, bool):  # pydantic would take it for 0 or 1
            raise ValueError("not a number")
        return value


class EncodeResponse(BaseModel):
    """Answers one EncodeRequest. ``metadata`` is flat: the LatentRecord's fields and the times."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    status: Literal["success", "error"]
    request_id: str | None = None
    correlation_id: str | None = None
    latent_file_path: str | None = None
    latent_shape: list[int] | list[list[int]] | None = None
    error_code: str | None = None
    error_message: str | None = None
    error_hint: str | None = None
    retryable: bool | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    timestamp: Time = Field(default_factory=_now)
