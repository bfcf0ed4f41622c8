"""``/v1/latents`` hands files out, ``/v1/vaes`` says what can be asked for."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel, Field
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from latent_encoder.errors import LatentEncoderError
from latent_encoder.latent_file import verify_latent
from latent_encoder.latent_format import FILE_FORMATS
from latent_encoder.paths import resolve_under
from latent_encoder.provenance import REQUEST_ID

from ..document import LATENT_FILE, RANGE_PARAMETER, error_answers
from ..failures import answer_error, as_json, with_status
from ..guard import only_query
from ..service import Service

FILE_CODES = (
    "INVALID_REQUEST UNAUTHORIZED PATH_NOT_ALLOWED LATENT_NOT_FOUND LATENT_INVALID FORMAT_UNSUPPORTED OUT_OF_MEMORY"
).split()

router = APIRouter()


class Vaes(BaseModel):
    """The VAEs that a request may name."""

    vaes: list[str]
    default: str = Field(description="The one that is taken where a request names none.")
    engine: str = Field(description="What encodes: `comfyui` or `embedded`.")


@router.get(
    "/vaes",
    summary="List the VAEs",
    response_model=Vaes,
    dependencies=[only_query()],
    responses=error_answers("INVALID_REQUEST", "UNAUTHORIZED", "ENGINE_UNAVAILABLE", "NODES_MISSING"),
)
def vaes(http: Request) -> Response:
    """The names that `vae_model_name` may have."""
    service: Service = http.app.state.service
    if reason := service.readiness.error():
        raise reason
    names = service.engine.vaes()
    return as_json(Vaes(vaes=names, default=service.settings.vae_model_name, engine=service.engine.name))


@router.get(
    "/latents/{request_id}",
    summary="Fetch a latent file",
    response_class=FileResponse,
    dependencies=[only_query("output_dir")],
    responses=LATENT_FILE | error_answers(*FILE_CODES, ranges=True),
    openapi_extra=RANGE_PARAMETER,
)
async def latent(
    http: Request,
    request_id: Annotated[str, PathParameter(pattern=REQUEST_ID.pattern)],
    output_dir: Annotated[str | None, Query(description="The folder that the request named, if it did.")] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The file that answers a request, checked against its checksum, which is its `ETag`. Ranges are served."""
    service: Service = http.app.state.service
    http.state.request_id = request_id
    path, digest = await run_sync(_find, service, request_id, output_dir)
    headers = {"ETag": f'"{digest}"', "Cache-Control": "private, no-cache"}
    if _matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return LatentResponse(http, path, headers)


class LatentResponse(FileResponse):
    """A latent file, or the part of it that is asked for.

    A range outside the file is answered as other failures are; a header that is no range is ignored, as HTTP wants it.
    """

    def __init__(self, http: Request, path: Path, headers: dict[str, str]) -> None:
        super().__init__(path, headers=headers, media_type="application/octet-stream", filename=path.name)
        self._http = http

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failed: Message = {}

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                failed.update(message)
            elif not failed:
                await send(message)

        await super().__call__(scope, receive, watch)
        if failed.get("status") == 400:
            headers = [header for header in scope["headers"] if header[0] != b"range"]
            await super().__call__({**scope, "headers": headers}, receive, send)
        elif failed:
            hint = "Ask for bytes that the file has, such as 'Range: bytes=0-1023'."
            error = LatentEncoderError("INVALID_REQUEST", "The header Range asks for no part of this file.", hint)
            content_range = {"Content-Range": dict(failed["headers"])[b"content-range"].decode()}
            await answer_error(self._http, with_status(error, 416), content_range)(scope, receive, send)


def _find(service: Service, request_id: str, output_dir: str | None) -> tuple[Path, str]:
    """The file of a request and its sha256.

    Raises:
        LatentEncoderError: PATH_NOT_ALLOWED, LATENT_NOT_FOUND, LATENT_INVALID, FORMAT_UNSUPPORTED, OUT_OF_MEMORY.
    """
    settings = service.settings
    folder = settings.output_dir.resolve()
    if output_dir is not None:
        folder = resolve_under(settings.output_roots, output_dir, "output_dir")
    names = (f"{request_id}.{file_format}" for file_format in FILE_FORMATS)
    with suppress(OSError):  # a name that is too long, a folder that may not be read
        for path in map(folder.joinpath, names):
            if path.is_file():
                if path.resolve().parent != folder:
                    reason = f"'{path.name}' is a link that leads out of its folder."
                    raise LatentEncoderError("PATH_NOT_ALLOWED", reason)
                status = path.stat()
                return path, _checked(path, status.st_ino, status.st_size, status.st_mtime_ns)
    raise LatentEncoderError("LATENT_NOT_FOUND", f"There is no latent file of the request '{request_id}'.")


@lru_cache(maxsize=4096)
def _checked(path: Path, inode: int, size: int, changed: int) -> str:
    """The sha256 of a file that is as it was written; remembered for as long as it is not touched."""
    record = verify_latent(path)
    if record is None:
        raise LatentEncoderError("LATENT_INVALID", f"'{path.name}' is not as it was written, or has no checksum.")
    digest: str = record["file_sha256"]
    return digest


def _matches(if_none_match: str | None, etag: str) -> bool:
    given = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return "*" in given or etag in given
