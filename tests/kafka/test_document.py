"""``docs/asyncapi.json`` and ``docs/kafka.md``: they say what the code does. No broker is needed.

Mend the first with: python -m latent_encoder.service.kafka.document > docs/asyncapi.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from pydantic import BaseModel

from latent_encoder import kafka_message, kafka_properties, publisher_settings
from latent_encoder.errors import LatentEncoderError
from latent_encoder.models import EncodeRequest, EncodeResponse, LatentRecord
from latent_encoder.service import exit_codes
from latent_encoder.service.config import NAMES, SECRET_FILES, Settings
from latent_encoder.service.kafka import (
    assignment,
    client_config,
    dead_letters,
    hold,
    messages,
    numbers,
    transactions,
    worker,
)
from latent_encoder.service.kafka.document import make_document, worker_metrics
from latent_encoder.service.kafka.document_texts import (
    EVENT_HEADERS,
    GUARANTEES,
    NODE_HEADERS,
    PASSED_ON_HEADERS,
    RECORD_FIELDS,
    REQUEST_FIELDS,
    RESPONSE_FIELDS,
)

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXT = (DOCS / "kafka.md").read_text(encoding="utf-8")
DOCUMENT = json.loads((DOCS / "asyncapi.json").read_text(encoding="utf-8"))
MESSAGES, SCHEMAS = DOCUMENT["components"]["messages"], DOCUMENT["components"]["schemas"]
KAFKA_SETTINGS = {key: name for key, name in NAMES.items() if name.startswith("KAFKA_")}

INCOMING = messages.Incoming(
    topic="requests", partition=3, offset=5, timestamp=7, key=b"k", value=b"{", request_id="a", correlation_id="c",
    headers=[("ce_id", b"1"), ("own", b"2")] + [(name, b"\xff") for name in messages.PASSED_ON],
)  # fmt: skip
ERROR = LatentEncoderError("INVALID_REQUEST", "It is none.")


def follow(reference: str) -> Any:
    """What a ``$ref`` of the document names; KeyError where it names nothing."""
    value = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        value = value[part]
    return value


def references(value: Any) -> Iterator[str]:
    """Every ``$ref`` in a value."""
    if isinstance(value, dict):
        yield from (entry for name, entry in value.items() if name == "$ref")
    for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from references(entry)


def checked(schema: str) -> Any:
    """A validator of one of the document's schemas."""
    root = {"$ref": f"#/components/schemas/{schema}", "components": DOCUMENT["components"]}
    return jsonschema.Draft7Validator(root, format_checker=jsonschema.FormatChecker())


def sent_headers(message: str) -> dict[str, Any]:
    return dict(MESSAGES[message]["headers"]["properties"])


def written(words: str) -> bool:
    """Whether a name stands in kafka.md as code, by itself or with labels."""
    return re.search(rf"`{re.escape(words)}(\{{[a-z,]+\}})?`", TEXT) is not None


# The document


def test_document_that_is_checked_in_is_the_code_s_own() -> None:
    assert make_document() == DOCUMENT


def test_document_is_built_as_asyncapi_3_wants_it() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= DOCUMENT["info"].keys()
    known = {"asyncapi", "id", "info", "servers", "defaultContentType", "channels", "operations", "components"}
    assert {name for name in DOCUMENT if not name.startswith("x-")} <= known
    for reference in references(DOCUMENT):
        follow(reference)
    for server in DOCUMENT["servers"].values():
        assert {"host", "protocol"} <= server.keys()
    for channel in DOCUMENT["channels"].values():
        assert channel.keys() == {"address", "description", "messages"}
        for message in channel["messages"].values():
            assert follow(message["$ref"]) in MESSAGES.values()


def test_operations_name_channels_and_messages_of_those() -> None:
    used = []
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] in ("send", "receive")
        for part in (operation, operation.get("reply", operation)):
            channel = part["channel"]["$ref"]
            assert re.fullmatch(r"#/channels/\w+", channel)
            for message in part["messages"]:
                assert message["$ref"].startswith(f"{channel}/messages/")
                used.append(follow(follow(message["$ref"])["$ref"])["title"])
    assert set(used) == {message["title"] for message in MESSAGES.values()}


def test_schemas_are_draft_7_all_the_way() -> None:
    for schema in [*SCHEMAS.values(), *(message["headers"] for message in MESSAGES.values())]:
        jsonschema.Draft7Validator.check_schema(schema)
        assert "prefixItems" not in json.dumps(schema)
        assert "$defs" not in json.dumps(schema)


def test_examples_are_what_the_models_take() -> None:
    models = {"encodeRequest": EncodeRequest, "encodeResponse": EncodeResponse}
    for name, model in models.items():
        for example in MESSAGES[name]["examples"]:
            model.model_validate(example["payload"])
            checked(model.__name__).validate(example["payload"])


# Fields


@pytest.mark.parametrize(
    ("model", "meanings"),
    [(EncodeRequest, REQUEST_FIELDS), (EncodeResponse, RESPONSE_FIELDS), (LatentRecord, RECORD_FIELDS)],
)
def test_every_field_has_its_type_and_meaning(model: type[BaseModel], meanings: dict[str, str]) -> None:
    assert list(meanings) == list(model.model_fields)
    properties = SCHEMAS[model.__name__]["properties"]
    assert list(properties) == list(model.model_fields)
    for name, field in properties.items():
        assert "$ref" in field or field["description"] == meanings[name]
        assert field.keys() & {"$ref", "type", "anyOf", "const", "enum"}, name
    if model is not LatentRecord:  # which is docs/latent-file.md's
        assert [name for name in model.model_fields if not written(name)] == []


def test_schema_and_model_take_and_refuse_the_same_requests() -> None:
    good = {"image_path": "a.png"}
    wrong: list[dict[str, Any]] = [
        {}, {"image_path": ""}, good | {"more": 1}, good | {"request_id": "-a"}, good | {"megapixels": 17},
        good | {"resolution_steps": 0}, good | {"file_format": "png"}, good | {"correlation_id": "a\nb"},
    ]  # fmt: skip
    for fields in [good, good | {"request_id": "a", "deadline": "2026-01-02T03:04:05Z"}, *wrong]:
        try:
            EncodeRequest.model_validate(fields)
            taken = True
        except ValueError:
            taken = False
        assert taken == (fields not in wrong)
        assert taken == checked("EncodeRequest").is_valid(fields), fields


def test_answers_that_the_code_writes_fit_their_schema() -> None:
    record = LatentRecord(request_id="a", latent_shape=[1, 16, 1, 2, 3], original_size=(4, 5)).model_dump(mode="json")
    times = {"processing_time_ms": 1.5, "queue_time_ms": 0.0}
    answers = [
        EncodeResponse(status="success", latent_shape=[[1, 2], [3]], metadata=record | times | {"reused": True}),
        EncodeResponse(status="error", error_code="TIMEOUT", retryable=False, metadata=times),
    ]
    for answer in answers:
        checked("EncodeResponse").validate(json.loads(answer.model_dump_json()))
    checked("LatentRecord").validate(record)
    assert not checked("LatentRecord").is_valid(record | {"original_size": ["4", 5]})
    metadata = SCHEMAS["EncodeMetadata"]["properties"]
    assert set(metadata) == {*LatentRecord.model_fields, "reused", *times}
    assert all(written(name) for name in ("reused", *times))


# Headers


def test_headers_of_an_answer() -> None:
    names = {name for name, _ in messages.answer_headers(INCOMING, "/latent-encoder/w")}
    assert (
        names == {*EVENT_HEADERS, *messages.PASSED_ON, messages.CAUSATION_ID} == sent_headers("encodeResponse").keys()
    )
    assert PASSED_ON_HEADERS.keys() == set(messages.PASSED_ON)
    assert [name for name in names if not written(name)] == []
    told = dict(kafka_message.event_headers(messages.RESPONSE_TYPE, "/latent-encoder/w"))
    check_constants("encodeResponse", told)


def test_headers_of_a_request_are_those_that_are_looked_at() -> None:
    assert sent_headers("encodeRequest").keys() == {*EVENT_HEADERS, *messages.PASSED_ON}
    assert MESSAGES["encodeRequest"]["headers"]["required"] == []
    assert messages.REQUEST_TYPE in MESSAGES["encodeRequest"]["description"]
    assert messages.REQUEST_TYPE in TEXT


def test_headers_of_a_dead_letter() -> None:
    options: dict[str, Any] = {"group": "g", "worker": "w", "attempts": 1, "length": messages.SHORT}
    record = dead_letters.dead_letter_record("dlq", INCOMING, ERROR, **options)
    names = [name for name, _ in record["headers"]]
    assert set(names) == dead_letters.FIELDS.keys() == sent_headers("deadLetter").keys()
    assert [name for name in names if not written(name)] == []
    for name, meaning in dead_letters.FIELDS.items():
        assert sent_headers("deadLetter")[name]["description"] == meaning
    kept = dead_letters.dead_letter_record("dlq", INCOMING, ERROR, **options | {"length": messages.WHOLE})["headers"]
    assert kept[: len(INCOMING.headers)] == INCOMING.headers
    ours = [name for name, _ in kept[len(INCOMING.headers) :]]
    assert ours == MESSAGES["deadLetter"]["headers"]["required"]


@pytest.mark.parametrize(("payload", "message"), [("reference", "latentRecord"), ("inline", "latentFile")])
def test_messages_of_the_node(payload: str, message: str) -> None:
    record = LatentRecord(file_sha256="a" * 64, filename="a.npy").model_dump(mode="json")
    made = kafka_message.build_message(
        b"1", record, payload=payload, correlation_id="c", inline_max_bytes=publisher_settings.DEFAULT_INLINE_MAX_BYTES
    )
    headers = dict(made.headers)
    assert headers.keys() == sent_headers(message).keys()
    required = set(headers) - {kafka_message.CORRELATION_ID}
    assert set(MESSAGES[message]["headers"]["required"]) == required
    check_constants(message, headers)
    assert all(written(name) for name in headers)
    assert {kafka_message.CORRELATION_ID, kafka_message.RECORD_HEADER} == NODE_HEADERS.keys()
    as_json = made.value if payload == "reference" else headers[kafka_message.RECORD_HEADER]
    checked("LatentRecord").validate(json.loads(as_json))
    told = (headers["ce_type"], headers["ce_source"], headers["content-type"])
    assert all(written(value.decode()) for value in told)


def check_constants(message: str, headers: dict[str, bytes | None]) -> None:
    """What the document says of a header's value is the value."""
    for name, schema in sent_headers(message).items():
        if "const" in schema:
            value = headers[name]
            assert value is not None
            assert schema["const"] == value.decode()
            assert written(schema["const"])
    source = headers["ce_source"]
    assert source is not None
    assert source.decode().rpartition("/")[0] in sent_headers(message)["ce_source"]["description"]


# What kafka.md says


def test_every_setting_with_its_default() -> None:
    for key, name in KAFKA_SETTINGS.items():
        assert written(name), name
        default = Settings.model_fields[key].default
        if default is not None:
            assert f"| `{name}` | `{default}` |" in TEXT
        for choice in get_args(Settings.model_fields[key].annotation):
            assert not isinstance(choice, str) or written(choice), (name, choice)
    for key, name in SECRET_FILES.items():
        assert key not in KAFKA_SETTINGS or written(name), name
    assert all(written(choice) for choice in ("ssl", "sasl_plaintext", "sasl_ssl", "PLAIN", "SCRAM-SHA-256"))
    addresses = [channel["address"] for channel in DOCUMENT["channels"].values()]
    settings = Settings()
    assert addresses == [settings.kafka_request_topic, settings.kafka_response_topic, settings.kafka_dlq_topic, None]


def test_what_librdkafka_is_told_by_default() -> None:
    settings = Settings()
    consumer = client_config.consumer(settings, "me")
    told = consumer | client_config.producer(settings, "me", "g.me")
    ours = set(told) - set(client_config.CONNECTION.values()) - {"logger"}
    forced = {"client.id", "group.protocol", "auto.offset.reset", "partitioner", "allow.auto.create.topics"}
    forced.add("partition.assignment.strategy")
    for name in ours - forced - kafka_properties.GUARANTEES:
        assert written(name) and written(str(told[name])), name
        assert f"| `{name}` |" not in TEXT or f"| `{name}` | `{told[name]}` |" in TEXT
    assert all(written(name) for name in forced)
    dropped = client_config.consumer(settings.model_copy(update={"kafka_group_protocol": "consumer"}), "me")
    assert consumer.keys() - dropped.keys() == set(client_config.SET_BY_THE_BROKER)
    rows = re.findall(r"^\| `([a-z.]+)` \|", TEXT.partition("The defaults that are ours")[2], re.MULTILINE)
    assert rows[:2] == ["session.timeout.ms", "heartbeat.interval.ms"]  # "the first two", as the text has it
    assert {*rows[:2], "partition.assignment.strategy"} == set(client_config.SET_BY_THE_BROKER)
    assert not set(rows) & set(client_config.OURS)


def test_every_name_that_is_refused() -> None:
    for name in kafka_properties.GUARANTEES | kafka_properties.RUNS_CODE | set(client_config.OURS):
        assert written(name), name


def test_every_metric() -> None:
    for name in worker_metrics():
        assert written(name), name
    assert DOCUMENT["x-metrics"] == worker_metrics()
    assert len([name for name in worker_metrics() if name.startswith("latent_encoder_kafka_")]) == 8


def test_numbers() -> None:
    attempts, deaths, at_once = worker.MOST_ATTEMPTS, assignment.MOST_DEATHS, transactions.MOST_AT_ONCE
    for words in (
        f"tried {attempts} times in place",
        f"After {deaths} counted deaths",
        f"for up to {at_once} messages at once",
        f"A request's value: {messages.MAX_VALUE_BYTES:,} bytes",
        f"up to {dead_letters.LONGEST_TEXT:,} characters",
        f"after {hold.FIRST_SECONDS:g} s, 2 s, ... {hold.LONGEST_SECONDS:g} s",
        f"has not turned for {numbers.STUCK_SECONDS:g} s",
        f"published for up to {worker.DRAIN_SECONDS:g} s",
        f"| `latent_encoder.inline_max_bytes` | `{publisher_settings.DEFAULT_INLINE_MAX_BYTES}` |",
        f"| `latent_encoder.timeout_seconds` | `{publisher_settings.DEFAULT_TIMEOUT:g}` |",
    ):
        assert words in " ".join(TEXT.split()), words
    for code in (exit_codes.DONE, exit_codes.FAILED, exit_codes.WRONG_USE, exit_codes.FENCED):
        assert f"\n| {code} | " in TEXT
    for code in hold.ENGINE_AWAY + hold.PICTURE_AWAY:
        assert code in TEXT
    assert f"{attempts} times in place" in GUARANTEES["retries"]
    assert f"{deaths} workers" in GUARANTEES["poison"]
