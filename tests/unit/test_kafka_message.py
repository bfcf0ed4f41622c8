"""A latent file as a Kafka message: which files may be sent, and what stands in key, value and headers."""

from __future__ import annotations

import json
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from unit.latents_on_disk import FORMATS, LATENT, RECORD

from latent_encoder.errors import LatentEncoderError
from latent_encoder.kafka_message import LatentMessage, build_message, check_record, read_latent
from latent_encoder.latent_file import save_latent
from latent_encoder.models import LatentRecord

PLACE = {"subfolder": "a", "type": "output"}


def saved(folder: Path, file_format: str = "safetensors", **record: Any) -> dict[str, Any]:
    """The record of a latent that is saved there."""
    return save_latent(LATENT, folder, "x", file_format=file_format, record=RECORD | PLACE | record).record


def code(function: Any, *arguments: Any, **options: Any) -> LatentEncoderError:
    with pytest.raises(LatentEncoderError) as caught:
        function(*arguments, **options)
    return caught.value


def message(folder: Path, *, file_format: str = "safetensors", **options: Any) -> tuple[LatentMessage, bytes]:
    record = saved(folder, file_format)
    path = Path(record["path"])
    data, known = read_latent(path, record)
    return build_message(data, known, **{"payload": "reference", "inline_max_bytes": 10_000, **options}), data


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_reference_is_the_record(tmp_path: Path, file_format: str) -> None:
    record = saved(tmp_path, file_format)
    data, known = read_latent(Path(record["path"]), record)
    assert known == record
    assert data == Path(record["path"]).read_bytes()
    sent = build_message(data, known, payload="reference", inline_max_bytes=1)
    assert json.loads(sent.value) == record == sent.record
    headers = dict(sent.headers)
    assert len(headers) == len(sent.headers)
    assert headers["content-type"] == b"application/json"
    assert headers["ce_type"] == b"latent_encoder.latent_record.v1"
    assert "latent-record" not in headers
    assert "correlation-id" not in headers


@pytest.mark.parametrize("file_format", FORMATS)
def test_inline_is_the_file(tmp_path: Path, file_format: str) -> None:
    sent, data = message(tmp_path, file_format=file_format, payload="inline", correlation_id="größe 1")
    headers = dict(sent.headers)
    assert sent.value == data
    assert json.loads(headers["latent-record"]) == sent.record
    assert headers["content-type"] == b"application/octet-stream"
    assert headers["ce_type"] == b"latent_encoder.latent_file.v1"
    assert headers["correlation-id"].decode() == "größe 1"
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_source"]
    uuid.UUID(headers["ce_id"].decode())
    assert datetime.fromisoformat(headers["ce_time"].decode().replace("Z", "+00:00")).tzinfo


def test_every_message_is_an_event_of_its_own(tmp_path: Path) -> None:
    first, data = message(tmp_path)
    second = build_message(data, first.record, payload="reference", inline_max_bytes=1)
    assert dict(first.headers)["ce_id"] != dict(second.headers)["ce_id"]


def test_keys(tmp_path: Path) -> None:
    assert message(tmp_path / "1", key="größe")[0].key == "größe".encode()
    assert message(tmp_path / "2", key=" ")[0].key == b"r1"
    record = saved(tmp_path / "3", request_id=None)
    data, known = read_latent(Path(record["path"]), record)
    assert build_message(data, known, payload="inline", inline_max_bytes=10_000).key.decode() == record["file_sha256"]


def test_inline_has_a_limit(tmp_path: Path) -> None:
    sent, data = message(tmp_path / "1", payload="inline")
    size = len(data)
    assert build_message(data, sent.record, payload="inline", inline_max_bytes=size).value == data
    error = code(build_message, data, sent.record, payload="inline", inline_max_bytes=size - 1)
    assert error.code == "MESSAGE_TOO_LARGE"
    assert "inline_max_bytes" in error.hint
    assert f"{size:,}" in error.message


@pytest.mark.parametrize(
    "options",
    [
        {"payload": "both"},
        {"key": None},
        {"key": "\ud800"},
        {"correlation_id": 3},
        {"correlation_id": "a\nb"},
        {"correlation_id": "x" * 257},
    ],
)
def test_widgets_that_are_wrong(tmp_path: Path, options: dict[str, Any]) -> None:
    error = code(message, tmp_path, **options)
    assert error.code == "INVALID_REQUEST"
    assert next(iter(options)) in error.message


@pytest.mark.parametrize(
    ("record", "word"),
    [
        (None, "record"),
        ("x", "record"),
        ([1], "record"),
        ({}, "type"),
        ({"type": None, "filename": "a", "file_sha256": "0" * 64}, "type"),
        ({"type": "user", "filename": "a", "file_sha256": "0" * 64}, "type"),
        ({"type": "output", "filename": None, "file_sha256": "0" * 64}, "filename"),
        ({"type": "output", "filename": "", "file_sha256": "0" * 64}, "filename"),
        ({"type": "output", "filename": "a", "file_sha256": None}, "file_sha256"),
        ({"type": "output", "filename": "a", "file_sha256": "x"}, "file_sha256"),
        ({"type": "output", "filename": "a", "file_sha256": "0" * 64, "vae_name": "\ud800"}, "record"),
        ({"type": "output", "filename": 3, "file_sha256": "0" * 64}, "filename"),
    ],
)
def test_what_is_no_record_of_a_file(record: Any, word: str) -> None:
    error = code(check_record, record)
    assert error.code == "INVALID_REQUEST"
    assert word in error.message
    assert error.hint


def test_the_place_of_a_record(tmp_path: Path) -> None:
    assert check_record(saved(tmp_path)) == ("output", "a", "x_00001_.safetensors")


def test_another_file_under_the_name(tmp_path: Path) -> None:
    record = saved(tmp_path)
    forged = record | {"file_sha256": "0" * 64}
    assert code(read_latent, Path(record["path"]), forged).code == "LATENT_INVALID"
    Path(record["path"]).write_bytes(b"other")
    assert code(read_latent, Path(record["path"]), record).code == "LATENT_INVALID"
    Path(record["path"]).unlink()
    assert code(read_latent, Path(record["path"]), record).code == "LATENT_NOT_FOUND"


def test_what_is_no_latent(tmp_path: Path) -> None:
    """A file of ComfyUI's folders is no latent because a record says so."""
    import hashlib

    for name, expected in [("notes.txt", "FORMAT_UNSUPPORTED"), ("notes.safetensors", "LATENT_INVALID")]:
        (tmp_path / name).write_bytes(b"private notes")
        digest = hashlib.sha256(b"private notes").hexdigest()
        record = LatentRecord(type="output", filename=name, file_sha256=digest).model_dump(mode="json")
        assert code(read_latent, tmp_path / name, record).code == expected


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_file_knows_better_than_the_record(tmp_path: Path, file_format: str) -> None:
    record = saved(tmp_path, file_format)
    lies = {"path": "/etc/passwd", "vae_name": "other", "request_id": "r2", "latent_shape": [1], "engine": "other"}
    assert read_latent(Path(record["path"]), record | lies)[1] == record
    Path(record["path"] + ".json").unlink()
    told = read_latent(Path(record["path"]), record | lies)[1]
    assert told["path"] == record["path"]
    if file_format in ("safetensors", "latent"):
        assert told == record
    else:  # a bare tensor says nothing: who sends it may
        assert told == record | lies | {"path": record["path"]}
