"""The AsyncAPI 3.0 document: every topic, message, field, header and guarantee, for programs.

``python -m latent_encoder.service.kafka.document > docs/asyncapi.json`` writes the copy that is checked in.
``docs/kafka.md`` says the same for people.
"""

from __future__ import annotations

import json
from typing import Any, cast

from latent_encoder import __version__
from latent_encoder.kafka_message import BYTES, FILE_TYPE, JSON, RECORD_HEADER, RECORD_TYPE
from latent_encoder.kafka_message import SOURCE as NODE_SOURCE
from latent_encoder.models import EncodeRequest, EncodeResponse, LatentRecord
from latent_encoder.service.config import Settings
from latent_encoder.service.metrics import Metrics
from latent_encoder.service.readiness import Readiness

from .dead_letters import FIELDS as DEAD_LETTER_HEADERS
from .document_texts import (
    EVENT_HEADERS,
    GUARANTEES,
    METADATA_FIELDS,
    NODE_HEADERS,
    PASSED_ON_HEADERS,
    RECORD_FIELDS,
    REQUEST_FIELDS,
    RESPONSE_FIELDS,
)
from .messages import CAUSATION_ID, MAX_VALUE_BYTES, PASSED_ON, REQUEST_TYPE, RESPONSE_TYPE
from .numbers import Numbers

Schema = dict[str, Any]

DESCRIPTION = (
    "Encodes pictures to diffusion latents: requests come from one topic, answers go to another, what failed also goes"
    " to a third. Addresses and the group are the defaults of the settings. docs/kafka.md says how to run it."
)

REQUEST_EXAMPLE = {"request_id": "cat-1", "image_path": "pictures/cat.png", "megapixels": 0.05}
ANSWER_EXAMPLE: dict[str, Any] = {
    "schema_version": 1,
    "status": "error",
    "request_id": "cat-2",
    "correlation_id": "order-18",
    "latent_file_path": None,
    "latent_shape": None,
    "error_code": "IMAGE_NOT_FOUND",
    "error_message": "There is no file 'dog.png' in the folder 'pictures'.",
    "error_hint": "Check the picture's name and its folder.",
    "retryable": False,
    "metadata": {"processing_time_ms": 0.276, "queue_time_ms": 134.244},
    "timestamp": "2026-11-24T03:10:00.900430Z",
}


def make_document() -> Schema:
    """The whole document."""
    messages = {
        "encodeRequest": _request(),
        "encodeResponse": _response(),
        "deadLetter": _dead_letter(),
        "latentRecord": _reference(),
        "latentFile": _inline(),
    }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Latent Encoder", "version": __version__, "description": DESCRIPTION},
        "defaultContentType": JSON,
        "servers": {"kafka": {"host": _default("kafka_bootstrap_servers"), "protocol": "kafka"}},
        "channels": _channels(),
        "operations": _operations(),
        "components": {
            "messages": messages,
            "schemas": {
                "EncodeRequest": _schema(EncodeRequest, REQUEST_FIELDS),
                "EncodeResponse": _response_schema(),
                "EncodeMetadata": _metadata_schema(),
                "LatentRecord": _schema(LatentRecord, RECORD_FIELDS),
            },
        },
        "x-guarantees": GUARANTEES,
        "x-metrics": worker_metrics(),
    }


def worker_metrics() -> dict[str, str]:
    """The metrics that a worker serves, by name, with their meaning; Python's own are left out."""
    metrics = Metrics()
    Numbers(metrics, cast(Readiness, None), str)  # nothing is asked for: only the names are wanted
    metrics.watch_engine("", bool)
    suffix = {"counter": "_total"}
    return {
        family.name + suffix.get(family.type, ""): family.documentation
        for family in metrics.registry.collect()
        if family.name.startswith("latent_encoder_")
    }


# Topics


def _channels() -> Schema:
    return {
        "requests": {
            "address": _default("kafka_request_topic"),
            "description": "KAFKA_REQUEST_TOPIC. A partition belongs to one worker at a time.",
            "messages": {"encodeRequest": _ref("messages", "encodeRequest")},
        },
        "responses": {
            "address": _default("kafka_response_topic"),
            "description": "KAFKA_RESPONSE_TOPIC. Read it with isolation.level=read_committed.",
            "messages": {"encodeResponse": _ref("messages", "encodeResponse")},
        },
        "deadLetters": {
            "address": _default("kafka_dlq_topic"),
            "description": "KAFKA_DLQ_TOPIC. Read it with isolation.level=read_committed.",
            "messages": {"deadLetter": _ref("messages", "deadLetter")},
        },
        "latents": {
            "address": None,
            "description": "A topic that ComfyUI's administrator allows; the node PublishLatentToKafka writes to it,"
            " without transactions.",
            "messages": {name: _ref("messages", name) for name in ("latentRecord", "latentFile")},
        },
    }


def _operations() -> Schema:
    group = {"kafka": {"groupId": {"type": "string", "default": _default("kafka_consumer_group")}}}
    kept = ("transaction", "one answer", "order", "isolation")
    return {
        "encode": {
            "action": "receive",
            "channel": {"$ref": "#/channels/requests"},
            "summary": "A worker encodes a picture.",
            "description": " ".join(GUARANTEES[name] for name in ("file", "encode", "deadline", "retries", "poison")),
            "messages": [{"$ref": "#/channels/requests/messages/encodeRequest"}],
            "reply": {
                "channel": {"$ref": "#/channels/responses"},
                "messages": [{"$ref": "#/channels/responses/messages/encodeResponse"}],
            },
            "bindings": group,
        },
        "answer": _sending("responses", "encodeResponse", "A worker answers.", " ".join(GUARANTEES[n] for n in kept)),
        "giveUp": _sending("deadLetters", "deadLetter", "A worker keeps a message that failed.", GUARANTEES["away"]),
        "publishRecord": _sending(
            "latents", "latentRecord", "The node sends where a latent file stands (payload reference)."
        ),
        "publishFile": _sending("latents", "latentFile", "The node sends a latent file's bytes (payload inline)."),
    }


def _sending(channel: str, message: str, summary: str, description: str = "") -> Schema:
    told = {"description": description} if description else {}
    messages = [{"$ref": f"#/channels/{channel}/messages/{message}"}]
    return {"action": "send", "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary} | told | {
        "messages": messages
    }  # fmt: skip


# Messages


def _request() -> Schema:
    hints = {
        "content-type": "application/json, or another that ends in +json; absent is allowed. CloudEvents' structured"
        " mode (application/cloudevents+json) is refused.",
        "ce_id": f"Comes back as {CAUSATION_ID}.",
    }
    more = {name: f"{EVENT_HEADERS[name]} Not looked at." for name in EVENT_HEADERS if name not in hints}
    headers = {name: (hints | more)[name] for name in EVENT_HEADERS} | PASSED_ON_HEADERS
    return {
        "title": "EncodeRequest",
        "summary": "Asks for one picture to be encoded.",
        "description": f"Up to {MAX_VALUE_BYTES:,} bytes. Headers are optional; others than these are left alone."
        f" ce_type of our own client is {REQUEST_TYPE}.",
        "headers": _headers(headers, required=()),
        "payload": _ref("schemas", "EncodeRequest"),
        "bindings": _key("Decides the partition, is the id where the body has none, and is the answer's key, too."),
        "examples": [{"name": "request", "payload": REQUEST_EXAMPLE}],
    }


def _response() -> Schema:
    caused = {CAUSATION_ID: "The request's ce_id."}
    headers = EVENT_HEADERS | {name: PASSED_ON_HEADERS[name] for name in PASSED_ON} | caused
    return {
        "title": "EncodeResponse",
        "summary": "Answers one message of the request topic.",
        "description": "The request's own headers of these names are passed on byte for byte. An answer that its topic"
        " does not take is replaced by MESSAGE_TOO_LARGE, without those headers and correlation_id.",
        "headers": _headers(headers, RESPONSE_TYPE, "/latent-encoder/<worker>"),
        "payload": _ref("schemas", "EncodeResponse"),
        "bindings": _key("The request's, byte for byte; where it has none, the request_id."),
        "examples": [{"name": "failure", "payload": ANSWER_EXAMPLE}],
    }


def _dead_letter() -> Schema:
    return {
        "title": "DeadLetter",
        "summary": "A message that failed: key, value and headers as they were, and headers that say what happened.",
        "description": "One that is replayed and fails again bears these headers of both times, in order; the last ones"
        " are the newest. Where the topic takes no message that large, value and original headers are left out.",
        "contentType": "application/octet-stream",
        "headers": _headers(DEAD_LETTER_HEADERS, required=set(DEAD_LETTER_HEADERS) - {"dlq.value.omitted"}),
        "payload": {"description": "The original's value, byte for byte; null where it had none, or was left out."},
        "bindings": _key("The original's, byte for byte; null where it had none."),
    }


def _reference() -> Schema:
    headers = EVENT_HEADERS | {"correlation-id": NODE_HEADERS["correlation-id"]}
    return {
        "title": "LatentRecord",
        "summary": "Where a latent file stands, and what is known of it.",
        "headers": _headers(headers, RECORD_TYPE, NODE_SOURCE),
        "payload": _ref("schemas", "LatentRecord"),
        "bindings": _key("The node's key; where that is blank, the request_id, else the file_sha256."),
    }


def _inline() -> Schema:
    headers = _headers(EVENT_HEADERS | NODE_HEADERS, FILE_TYPE, NODE_SOURCE)
    headers["properties"]["content-type"]["const"] = BYTES
    headers["properties"][RECORD_HEADER] |= {"contentMediaType": JSON}
    headers["required"].append(RECORD_HEADER)
    return {
        "title": "LatentFile",
        "summary": "A latent file's bytes, with what is known of it in a header.",
        "contentType": "application/octet-stream",
        "headers": headers,
        "payload": {"description": "The file's bytes, up to latent_encoder.inline_max_bytes."},
        "bindings": _key("The node's key; where that is blank, the request_id, else the file_sha256."),
    }


def _headers(
    meanings: dict[str, str], event: str | None = None, source: str = "", *, required: Any = EVENT_HEADERS
) -> Schema:
    """The schema of a message's headers, UTF-8 text.

    Args:
        event: CloudEvents' type, where the message is ours.
    """
    properties: Schema = {name: {"type": "string", "description": meaning} for name, meaning in meanings.items()}
    if event:
        fixed = {"content-type": JSON, "ce_specversion": "1.0", "ce_type": event}
        for name, value in fixed.items():
            properties[name]["const"] = value
        properties["ce_source"]["description"] += f" {source}"
    return {"type": "object", "properties": properties, "required": [name for name in meanings if name in required]}


def _key(meaning: str) -> Schema:
    return {"kafka": {"key": {"type": "string", "description": meaning}, "bindingVersion": "0.5.0"}}


# Schemas


def _schema(model: Any, meanings: dict[str, str]) -> Schema:
    """A model's schema, as AsyncAPI reads it (draft 7), with each field's meaning."""
    schema = cast(Schema, _as_draft_7(model.model_json_schema()))
    for name, field in schema["properties"].items():
        field.pop("title", None)
        field["description"] = meanings[name]
    return schema


def _response_schema() -> Schema:
    schema = _schema(EncodeResponse, RESPONSE_FIELDS)
    schema["properties"]["metadata"] = _ref("schemas", "EncodeMetadata")
    schema["required"] = list(EncodeResponse.model_fields)  # all are written
    return schema


def _metadata_schema() -> Schema:
    record = _schema(LatentRecord, RECORD_FIELDS)["properties"]
    return {
        "title": "EncodeMetadata",
        "description": RESPONSE_FIELDS["metadata"],
        "type": "object",
        "properties": record | METADATA_FIELDS,
        "required": ["processing_time_ms", "queue_time_ms"],
    }


def _as_draft_7(value: Any) -> Any:
    """Pydantic writes JSON Schema 2020-12, whose tuples draft 7 does not know."""
    if isinstance(value, list):
        return [_as_draft_7(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {"items" if name == "prefixItems" else name: _as_draft_7(entry) for name, entry in value.items()}


def _ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


def _default(attribute: str) -> str:
    return str(Settings.model_fields[attribute].default)


def main() -> None:
    """Print the document as it is checked in."""
    print(json.dumps(make_document(), indent=1))


if __name__ == "__main__":
    main()
