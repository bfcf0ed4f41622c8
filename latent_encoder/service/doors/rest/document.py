"""What the OpenAPI document says beyond the types: bodies, files, and an example of each failure.

``python -m latent_encoder.service.doors.rest.document > docs/openapi.json`` writes the copy that is checked in.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.routing import compile_path as _compile_path

from latent_encoder import __version__
from latent_encoder.errors import CATALOGUE, LatentEncoderError
from latent_encoder.models import EncodeRequest, EncodeResponse
from latent_encoder.service.job_store import Job
from latent_encoder.service.metrics import CONTENT_TYPE
from latent_encoder.service.requests import error_response

Responses = dict[int | str, dict[str, Any]]

TITLE = "Latent Encoder"
DESCRIPTION = (
    "Encodes pictures to diffusion latents and keeps them as files that can be trusted. Every failure is an"
    " `EncodeResponse` with `status` = `error`, a code in `error_code`, and what to do in `error_hint`; `retryable`"
    " says whether the same request may succeed later. A path that is no route is answered with 404, a method that a"
    " route does not take with 405, in the same form."
)
ENCODE_CODES = (
    "INVALID_REQUEST UNAUTHORIZED PATH_NOT_ALLOWED IMAGE_NOT_FOUND VAE_MODEL_NOT_FOUND REQUEST_ID_CONFLICT FILE_EXISTS"
    " INTERRUPTED IMAGE_TOO_LARGE MESSAGE_TOO_LARGE IMAGE_INVALID VAE_MODEL_INVALID SCALING_FAILED FORMAT_UNSUPPORTED"
    " QUEUE_FULL ENCODING_FAILED OUT_OF_MEMORY ENGINE_UNAVAILABLE NODES_MISSING TIMEOUT DISK_FULL"
    " OUTPUT_DIR_NOT_WRITABLE"
).split()
JOB_CODES = (
    "INVALID_REQUEST UNAUTHORIZED REQUEST_ID_CONFLICT IMAGE_TOO_LARGE MESSAGE_TOO_LARGE QUEUE_FULL ENGINE_UNAVAILABLE"
    " DISK_FULL OUTPUT_DIR_NOT_WRITABLE"
).split()
EXAMPLES = {
    "INVALID_REQUEST": "'megapixels': Input should be less than or equal to 16 (given: 99).",
    "UNAUTHORIZED": "The request has no bearer token.",
    "PATH_NOT_ALLOWED": "'image_path' contains '..'.",
    "FILE_EXISTS": "'order-17.safetensors' is there already, and is no latent file of Latent Encoder.",
    "IMAGE_NOT_FOUND": "There is no file 'cat.png'.",
    "VAE_MODEL_NOT_FOUND": "There is no VAE 'my_vae.safetensors'.",
    "LATENT_NOT_FOUND": "There is no latent file of the request 'cat-1'.",
    "JOB_NOT_FOUND": "There is no job 'cat-1'.",
    "REQUEST_ID_CONFLICT": "The request_id 'cat-1' has been answered already, for another image_sha256.",
    "INTERRUPTED": "The request was cancelled.",
    "IMAGE_TOO_LARGE": "The upload has more than 100,000,000 bytes.",
    "MESSAGE_TOO_LARGE": "The request has more than 65,536 bytes of JSON.",
    "IMAGE_INVALID": "The picture is empty (0 bytes).",
    "VAE_MODEL_INVALID": "'my_vae.safetensors' is no VAE that this engine knows.",
    "LATENT_INVALID": "'cat-1.safetensors' is not as it was written, or has no checksum.",
    "SCALING_FAILED": "4000 x 1 pixels become 6476 x 2; a side needs at least 8.",
    "FORMAT_UNSUPPORTED": "A npy file cannot hold this latent.",
    "QUEUE_FULL": "256 requests wait already.",
    "ENCODING_FAILED": "ComfyUI could not encode the picture.",
    "INTERNAL": "Something went wrong that we did not foresee.",
    "OUT_OF_MEMORY": "There is not enough memory to encode the picture.",
    "ENGINE_UNAVAILABLE": "The engine is starting.",
    "NODES_MISSING": "This ComfyUI has no Latent Encoder nodes.",
    "TIMEOUT": "It was not done within 600 s.",
    "DISK_FULL": "No space is left in 'output' (No space left on device).",
    "OUTPUT_DIR_NOT_WRITABLE": "The folder 'output' cannot be written (Permission denied).",
}


compile_path = cache(_compile_path)


def error_answers(*codes: str, slow_body: bool = False, ranges: bool = False) -> Responses:
    """The answers that a route may give with these codes, and with INTERNAL, which every route may give.

    Args:
        slow_body: whether it reads a body, and may find it too slow (408).
        ranges: whether it serves parts of a file, and may be asked for others (416).
    """
    found: Responses = {}
    for code in (*codes, "INTERNAL"):
        _add(found, CATALOGUE[code].http_status, code, EXAMPLES[code])
    if slow_body:
        _add(found, 408, "TIMEOUT", "The request's body came too slowly.")
    if ranges:
        _add(found, 416, "INVALID_REQUEST", "The header Range asks for no part of this file.")
    if 429 in found:
        found[429]["headers"] = {"Retry-After": _header("integer", "After how many seconds to try again.")}
    if 401 in found:
        found[401]["headers"] = {"WWW-Authenticate": _header("string", "`Bearer`.")}
    return found


def _add(found: Responses, status: int, code: str, message: str) -> None:
    entry = found.setdefault(
        status, {"model": EncodeResponse, "description": "", "content": {"application/json": {"examples": {}}}}
    )
    example = error_response("cat-1", None, LatentEncoderError(code, message)).model_dump(mode="json")
    entry["content"]["application/json"]["examples"][code] = {"value": example | {"timestamp": "2026-01-02T03:04:05Z"}}
    entry["description"] = ", ".join(entry["content"]["application/json"]["examples"])


def _header(kind: str, description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}}


def _form_schema() -> dict[str, Any]:
    """An EncodeRequest as a form: the picture in place of its path."""
    schema = EncodeRequest.model_json_schema()
    fields = {name: _without_null(field) for name, field in schema["properties"].items() if name != "image_path"}
    picture = {"type": "string", "format": "binary", "description": "The picture's file."}
    return schema | {
        "title": "EncodeForm",
        "description": "An EncodeRequest with the picture itself in place of `image_path`.",
        "properties": {"image": picture} | fields,
        "required": ["image"],
    }


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """A form has no null: what is not given is left out."""
    if "anyOf" not in field:
        return field
    (kind,) = (choice for choice in field["anyOf"] if choice != {"type": "null"})
    return {"title": field["title"], **kind}


ENCODE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/EncodeRequest"},
                "example": {"image_path": "pictures/cat.png", "request_id": "cat-1", "megapixels": 1.0},
            },
            "multipart/form-data": {"schema": {"$ref": "#/components/schemas/EncodeForm"}},
        },
    }
}
JOB_ACCEPTED: Responses = {
    202: {"model": Job, "description": "The job.", "headers": {"Location": _header("string", "Where to look at it.")}}
}
EVENTS_SUFFIX = "/events"
EVENTS: Responses = {
    200: {
        "description": "`event: job` with a Job as JSON, `event: progress` with `job_id` and `progress`.",
        "content": {"text/event-stream": {"schema": {"$ref": "#/components/schemas/JobEvent"}}},
    }
}
JOB_EVENT = {
    "title": "JobEvent",
    "description": "One server-sent event.",
    "type": "object",
    "properties": {"event": {"enum": ["job", "progress"]}, "data": {"type": "string", "description": "JSON."}},
    "required": ["event", "data"],
}
_FILE = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_PARTS = {"multipart/byteranges": {"schema": {"type": "string"}}}
_FILE_HEADERS = {"ETag": _header("string", "The file's sha256 in quotes.")}
LATENT_FILE: Responses = {
    200: {"description": "The file.", "content": _FILE, "headers": _FILE_HEADERS},
    206: {"description": "The parts that `Range` asked for.", "content": _FILE | _PARTS, "headers": _FILE_HEADERS},
    304: {"description": "The caller has it already (`If-None-Match`)."},
}
RANGE_PARAMETER: dict[str, Any] = {
    "parameters": [
        {
            "name": "Range",
            "in": "header",
            "required": False,
            "description": "The part that is wanted, such as `bytes=0-1023`.",
            "schema": {"type": "string"},
        }
    ]
}
METRICS: Responses = {
    200: {
        "description": "Prometheus' text format.",
        "content": {CONTENT_TYPE: {"schema": {"type": "string"}}},
    }
}


def find_route(app: FastAPI, path: str) -> tuple[str, list[str]]:
    """The documented path that ``path`` is of, and its methods; ``none`` and no methods where it is of none.

    HEAD goes with GET, but not for a stream of events, which has no end that a caller of HEAD could wait for.
    """
    for template, operations in app.openapi()["paths"].items():
        if compile_path(template)[0].match(path):
            methods = [method.upper() for method in operations]
            return template, methods + ["HEAD"] * ("GET" in methods and not path.endswith(EVENTS_SUFFIX))
    return "none", []


def complete(app: FastAPI) -> None:
    """Give ``app`` the whole document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=TITLE, version=__version__, description=DESCRIPTION, routes=app.routes)
            schemas = document["components"]["schemas"]
            schemas |= {"EncodeRequest": EncodeRequest.model_json_schema(), "EncodeForm": _form_schema()}
            schemas["JobEvent"] = JOB_EVENT
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            for operation in (operation for path in document["paths"].values() for operation in path.values()):
                if "HTTPValidationError" in json.dumps(operation["responses"].get("422", {})):
                    del operation["responses"]["422"]  # FastAPI's own; ours is 400
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def main() -> None:
    """Print the document as it is checked in."""
    from .app import create_app

    print(json.dumps(create_app(None).openapi(), indent=1))


if __name__ == "__main__":
    main()
