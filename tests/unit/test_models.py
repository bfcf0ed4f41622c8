"""The contract of the three messages: fields, ranges, patterns, defaults, and what is an error."""

from __future__ import annotations

import json
import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from latent_encoder.models import EncodeRequest, EncodeResponse, LatentRecord

RECORD_FIELDS = [
    "schema_version",
    "request_id",
    "path",
    "filename",
    "subfolder",
    "type",
    "file_format",
    "file_bytes",
    "file_sha256",
    "latent_shape",
    "latent_dtype",
    "latent_channels",
    "downscale",
    "vae_name",
    "vae_sha256",
    "image_name",
    "image_sha256",
    "original_size",
    "scaled_size",
    "upscale_method",
    "megapixels",
    "resolution_steps",
    "engine",
    "engine_version",
    "optimized",
    "pack_version",
    "created_at",
]
REQUEST_FIELDS = [
    "schema_version",
    "request_id",
    "correlation_id",
    "image_path",
    "vae_model_name",
    "upscale_method",
    "megapixels",
    "resolution_steps",
    "output_dir",
    "file_format",
    "timestamp",
    "deadline",
]
RESPONSE_FIELDS = [
    "schema_version",
    "status",
    "request_id",
    "correlation_id",
    "latent_file_path",
    "latent_shape",
    "error_code",
    "error_message",
    "error_hint",
    "retryable",
    "metadata",
    "timestamp",
]


def request(**fields: Any) -> EncodeRequest:
    """Read as it comes in: as JSON."""
    return EncodeRequest.model_validate_json(json.dumps({"image_path": "a.png"} | fields))


@pytest.mark.parametrize(
    ("model", "fields"),
    [(LatentRecord, RECORD_FIELDS), (EncodeRequest, REQUEST_FIELDS), (EncodeResponse, RESPONSE_FIELDS)],
)
def test_fields_and_their_order(model: type[BaseModel], fields: list[str]) -> None:
    assert list(model.model_fields) == fields


def test_a_requests_defaults() -> None:
    first, second = request(), request()
    assert first.request_id != second.request_id and request(request_id=first.request_id)
    values = first.model_dump(exclude={"request_id"})
    assert values == {
        "schema_version": 1,
        "correlation_id": None,
        "image_path": "a.png",
        "vae_model_name": "qwen_image_vae.safetensors",
        "upscale_method": "lanczos",
        "megapixels": 1.0,
        "resolution_steps": 1,
        "output_dir": None,
        "file_format": "safetensors",
        "timestamp": None,
        "deadline": None,
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("request_id", text) for text in ("a", "0", "A-b_c.d", "x" * 128)],
        *[("upscale_method", name) for name in ("lanczos", "nearest-exact", "bilinear", "area", "bicubic")],
        *[("file_format", name) for name in ("safetensors", "latent", "pt", "npy")],
        *[("megapixels", number) for number in (0.01, 1, 16)],
        *[("resolution_steps", number) for number in (1, 64, 256)],
        *[("deadline", text) for text in ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.678901+05:30")],
        ("correlation_id", "any text, größe 猫"),
        ("output_dir", "some/folder"),
        ("schema_version", 1),
    ],
)
def test_what_a_request_may_say(field: str, value: Any) -> None:
    assert request(**{field: value}).model_dump(mode="json")[field] in (value, str(value).replace("+00:00", "Z"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[
            ("request_id", text)
            for text in ("", "-a", ".a", "_a", "a b", "a/b", "../a", "a\n", "ä", "x" * 129, 3, None)
        ],
        *[("upscale_method", name) for name in ("Lanczos", "nearest", "", None)],
        *[("file_format", name) for name in ("ckpt", "SAFETENSORS", None)],
        *[("megapixels", number) for number in (0, 0.009, 16.01, -1, 1e9, math.nan, math.inf, -math.inf, "x", None)],
        *[("resolution_steps", number) for number in (0, 257, -1, 1.5, "x", None)],
        *[("deadline", text) for text in ("2026-01-02T03:04:05", "2026-01-02", "tomorrow", "")],
        *[("timestamp", text) for text in ("2026-01-02T03:04:05", "yesterday")],
        *[("image_path", value) for value in ("", None, 3, ["a.png"])],
        *[("vae_model_name", value) for value in ("", None)],
        *[("schema_version", value) for value in (0, 2, "2", True, None)],
        ("unknown", 1),
        ("Image_path", "a.png"),
    ],
)
def test_what_a_request_may_not_say(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        request(**{field: value})
    assert [error["loc"] for error in caught.value.errors()] == [(field,)], "the error names the field"


@pytest.mark.parametrize("number", [0, 1767323045, 1767323045.5, "1767323045"])
def test_a_time_is_no_number(number: Any) -> None:
    """RFC 3339 with its zone, not seconds of an epoch that nobody has named."""
    for field in ("timestamp", "deadline"):
        with pytest.raises(ValidationError):
            request(**{field: number})


def test_a_request_needs_a_picture() -> None:
    with pytest.raises(ValidationError):
        EncodeRequest.model_validate_json("{}")


def test_a_time_keeps_its_zone() -> None:
    deadline = request(deadline="2026-01-02T03:04:05+05:30").deadline
    assert deadline is not None and deadline.utcoffset() == timedelta(hours=5, minutes=30)


def test_a_record_of_which_nothing_is_known() -> None:
    values = LatentRecord().model_dump()
    assert values.pop("schema_version") == 1 and set(values.values()) == {None}


def test_a_record_survives_json() -> None:
    record = LatentRecord.model_validate(
        {
            "type": "output",
            "file_format": "npy",
            "file_sha256": "0" * 64,
            "latent_shape": [[1, 16, 1, 8, 8], [1, 8, 25, 16]],
            "original_size": [1024, 768],
            "megapixels": 0.1,
            "created_at": "2026-01-02T03:04:05+02:00",
        }
    )
    assert LatentRecord.model_validate_json(record.model_dump_json()) == record
    assert record.model_dump(mode="json")["original_size"] == [1024, 768]


def test_a_newer_record_is_read() -> None:
    """Fields that a later version adds are passed over, so that old readers go on."""
    assert LatentRecord.model_validate({"schema_version": 2, "added_later": 1, "vae_name": "x"}).vae_name == "x"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("file_sha256", text) for text in ("0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n")],
        ("type", "elsewhere"),
        ("file_format", "ckpt"),
        ("original_size", [1]),
        ("original_size", [1, 2, 3]),
        ("created_at", "2026-01-02T03:04:05"),
        ("latent_shape", "1x2"),
        ("file_bytes", "many"),
    ],
)
def test_what_a_record_may_not_say(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        LatentRecord.model_validate({field: value})


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_record_is_plain_json(number: float) -> None:
    """NaN is none of JSON's numbers: it is refused, or becomes null, but never reaches a reader."""
    try:
        record = LatentRecord(megapixels=number)
    except ValidationError:
        return
    json.dumps(record.model_dump(mode="json"), allow_nan=False)


def test_responses() -> None:
    response = EncodeResponse(
        status="success", request_id="a", latent_shape=[1, 16, 1, 8, 8], metadata={"reused": True}
    )
    assert response.timestamp.utcoffset() == timedelta(0), "made now, in UTC"
    again = EncodeResponse.model_validate_json(response.model_dump_json())
    assert again == response and list(json.loads(response.model_dump_json())) == RESPONSE_FIELDS
    assert EncodeResponse(status="error", error_code="TIMEOUT", retryable=True).metadata == {}


@pytest.mark.parametrize(
    "fields",
    [{}, {"status": "ok"}, {"status": "success", "unknown": 1}, {"status": "error", "timestamp": "2026-01-02"}],
)
def test_what_a_response_may_not_say(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EncodeResponse.model_validate(fields)


@given(
    st.dictionaries(
        st.sampled_from(REQUEST_FIELDS), st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    )
)
def test_only_validation_errors_come_out(fields: dict[str, Any]) -> None:
    try:
        EncodeRequest.model_validate(fields)
    except ValidationError as error:
        assert error.errors()
