"""``encode_image_to_latent(request) -> EncodeResponse``: all that the doors share."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from latent_encoder.errors import LatentEncoderError
from latent_encoder.images import MAX_FILE_BYTES, decode_image, scaled_size
from latent_encoder.latent_file import check_stem, is_ours, place_latent, verify_latent
from latent_encoder.latent_format import FILE_FORMATS
from latent_encoder.models import EncodeRequest, EncodeResponse
from latent_encoder.paths import check_relative, read_regular_file, resolve_inside, resolve_under

from .engines.base import Call, EncodeJob, Engine, Picture
from .requests import error_response, limit_call

if TYPE_CHECKING:
    from .config import Settings

SAME_CONTENTS = ("image_sha256", "vae_name", "upscale_method", "megapixels", "resolution_steps", "file_format")
LOCK_POLL_SECONDS = 0.2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a request's file ends: ``<folder>/<stem>.<format>``.

    Attributes:
        subfolder: of ``folder`` in OUTPUT_DIR, for the record.
        replace: whether a file of other contents there is made again (a run of many), or is another request's.
    """

    folder: Path
    stem: str
    subfolder: str = ""
    replace: bool = False

    def verify(self, file_format: str) -> dict[str, Any] | None:
        """As ``verify_latent``; raises PATH_NOT_ALLOWED where a request's file is a link that leads out of its folder.
        Who encodes folders of pictures may keep the latents elsewhere."""
        path = self.folder / f"{self.stem}.{file_format}"
        if not self.replace and os.path.islink(path):
            resolve_inside(self.folder, path.name, "request_id")
        return verify_latent(path)


class Encoder:
    """Encodes pictures to latent files. Shared by threads: ``engine.slots`` calls at once keep the engine busy, for one
    encodes while others read the next picture and write the last latent.

    Args:
        engine: started, or about to be.
        settings: for the folders, the time limit and the defaults.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self._settings = settings
        self._names = NameLocks()
        self._digests = ThreadPoolExecutor(thread_name_prefix="digest")

    def encode_image_to_latent(
        self,
        request: EncodeRequest,
        *,
        call: Call | None = None,
        upload: Path | None = None,
        queued_at: float | None = None,
    ) -> EncodeResponse:
        """Encode one picture into ``<output_dir>/<request_id>.<format>`` and answer; a repeated id is answered from its
        file.

        Args:
            call: how long the caller waits; the settings' TIMEOUT and the request's deadline bound it in any case.
            upload: the picture, where it came with the request; ``image_path`` is then only its name.
            queued_at: ``time.monotonic()`` when the door took the request.

        Returns:
            the answer; a failure is one, too, with ``status`` "error" and its code.
        """
        return self._answer(request, lambda: self._place_of(request), upload, call, queued_at)

    def encode_named(
        self, picture: Path, name: str, request: EncodeRequest, *, call: Call | None = None
    ) -> EncodeResponse:
        """Encode one picture of a run of many into ``<OUTPUT_DIR>/<name>.<format>``.

        What is there, verifies and was made from the same picture, VAE and recipe is answered from (``reused``); what
        is broken or made otherwise is made again and replaced.

        Args:
            picture: its file.
            name: the picture's relative path with ``/``, its own suffix kept, such as ``sub/a.png``.
        """
        return self._answer(request, lambda: self._place_named(name), picture, call, None)

    def _answer(
        self, request: EncodeRequest, find_place: Any, picture: Path | None, call: Call | None, queued_at: float | None
    ) -> EncodeResponse:
        start = time.monotonic()
        call = call or Call()
        try:
            limit_call(call, request, self._settings)
            call.check()
            record, reused = self._encode(request, find_place(), picture, call)
            response = EncodeResponse(
                status="success",
                request_id=request.request_id,
                correlation_id=request.correlation_id,
                latent_file_path=record["path"],
                latent_shape=record["latent_shape"],
                metadata=record | {"reused": reused},
            )
        except LatentEncoderError as error:
            response = error_response(request.request_id, request.correlation_id, error)
        except Exception:  # nothing that a request brings may end the process
            logger.exception("A request failed", extra={"request_id": request.request_id})
            unforeseen = LatentEncoderError("INTERNAL", "Something went wrong that we did not foresee.")
            response = error_response(request.request_id, request.correlation_id, unforeseen)
        response.metadata["processing_time_ms"] = round((time.monotonic() - start) * 1000, 3)
        response.metadata["queue_time_ms"] = round((start - (queued_at or start)) * 1000, 3)
        return response

    def _place_of(self, request: EncodeRequest) -> Place:
        folder = Path(self._settings.output_dir)
        if request.output_dir is not None:
            folder = resolve_under(self._settings.output_roots, request.output_dir, "output_dir")
        return Place(folder.absolute(), request.request_id)

    def _place_named(self, name: str) -> Place:
        parts = PurePosixPath(check_relative(name, "image_path"))
        check_stem(parts.name, "image_path")
        subfolder = "" if len(parts.parts) == 1 else parts.parent.as_posix()
        folder = resolve_inside(self._settings.output_dir, subfolder or ".", "image_path")
        return Place(folder, parts.name, subfolder, replace=True)

    def _encode(
        self, request: EncodeRequest, place: Place, picture_file: Path | None, call: Call
    ) -> tuple[dict[str, Any], bool]:
        """The record of the request's file, and whether it was there already."""
        _check_vae_name(request.vae_model_name)
        if request.image_path.endswith(("/", os.sep)):  # else it would be the file of that name
            raise LatentEncoderError("IMAGE_NOT_FOUND", f"'image_path' names a folder: it ends with '{os.sep}'.")
        if picture_file is None:
            picture_file = resolve_under(self._settings.input_roots, request.image_path, "image_path")
        with self._names.hold(place.folder / place.stem, call):
            try:
                data = _read(picture_file)
            except LatentEncoderError as error:
                record = self._answer_without_picture(request, place, error)
                return record, True
            digest = self._digests.submit(_sha256, data)  # while the picture is decoded
            found = self._existing(request, place, digest)
            if found:
                return found, True
            return self._make(request, place, data, digest, call)

    def _make(
        self, request: EncodeRequest, place: Place, data: bytes, digest: Future[str], call: Call
    ) -> tuple[dict[str, Any], bool]:
        _check_target(place.folder / f"{place.stem}.{request.file_format}")
        self.engine.wait_to_prepare()
        info, image = decode_image(data)
        scaled_size(info.width, info.height, request.megapixels, request.resolution_steps)
        kept = image if self.engine.takes_image else None
        del image
        picture = Picture(data, request.image_path, digest.result(), info, kept)
        job = EncodeJob(
            picture,
            None if place.replace else request.request_id,
            request.vae_model_name,
            request.upscale_method,
            request.megapixels,
            request.resolution_steps,
            request.file_format,
        )
        call.check()
        encoded = self.engine.encode(job, call)
        told = {
            "request_id": job.request_id,
            "image_name": picture.name,
            "image_sha256": picture.sha256,
            "original_size": [info.width, info.height],
            "vae_name": job.vae_name,
            "upscale_method": job.upscale_method,
            "megapixels": job.megapixels,
            "resolution_steps": job.resolution_steps,
        }
        record = encoded.record | {key: value for key, value in told.items() if encoded.record.get(key) is None}
        record |= {"subfolder": place.subfolder, "type": None}
        overwrite = place.replace
        while True:
            try:
                saved = place_latent(encoded.content, place.folder, place.stem, record=record, overwrite=overwrite)
                return saved.record, False
            except LatentEncoderError as error:
                if error.code != "FILE_EXISTS":
                    raise
                # Another process was first, or what is there is broken.
                found = self._existing(request, place, digest)
                if found:
                    return found, True
                _check_target(place.folder / f"{place.stem}.{request.file_format}")
                overwrite = True

    def _existing(self, request: EncodeRequest, place: Place, digest: Future[str]) -> dict[str, Any] | None:
        """The record of the file that is there already, if it answers this request.

        Raises:
            LatentEncoderError: REQUEST_ID_CONFLICT where it answers another one of the same id.
        """
        if place.replace:
            record = place.verify(request.file_format)
            same = record and not self._differences(record, _wanted(request, digest.result()), with_vae_file=True)
            return record if same else None
        for file_format in FILE_FORMATS:
            record = place.verify(file_format)
            if record is None:
                continue
            different = self._differences(record, _wanted(request, digest.result()))
            if different:
                raise LatentEncoderError(
                    "REQUEST_ID_CONFLICT",
                    f"The request_id '{place.stem}' has been answered already, for another {' and '.join(different)}.",
                )
            return record
        return None

    def _answer_without_picture(
        self, request: EncodeRequest, place: Place, error: LatentEncoderError
    ) -> dict[str, Any]:
        """A repeated id whose picture has been cleared away since is still answered from its file."""
        if error.code == "IMAGE_NOT_FOUND" and not place.replace:
            record = place.verify(request.file_format)
            same_name = record is not None and record["image_name"] == request.image_path
            if record and same_name and not self._differences(record, _wanted(request, record["image_sha256"])):
                return record
        raise error

    def _differences(self, record: dict[str, Any], wanted: dict[str, Any], *, with_vae_file: bool = False) -> list[str]:
        """The names of what differs; what the record does not know does not count."""
        different = [name for name in SAME_CONTENTS if record.get(name) not in (None, wanted[name])]
        if different or not with_vae_file or record.get("vae_sha256") is None:
            return different
        present = self.engine.vae_sha256(wanted["vae_name"])
        return [] if present in (None, record["vae_sha256"]) else ["vae_sha256"]


def _check_vae_name(name: str) -> None:
    """Refuse what leaves models/vae; a backslash is a Windows ComfyUI's way to write a subfolder."""
    if "\0" in name or name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name):
        raise LatentEncoderError("PATH_NOT_ALLOWED", f"'vae_model_name' leaves the folder of the VAEs: {name[:80]!r}.")


def _check_target(path: Path) -> None:
    """Refuse to replace what is not a latent file of ours.

    Raises:
        LatentEncoderError: FILE_EXISTS.
    """
    if os.path.lexists(path) and not is_ours(path):
        raise LatentEncoderError(
            "FILE_EXISTS",
            f"'{path.name}' is there already, and is no latent file of Latent Encoder.",
            "Move it away, or use another request_id or output folder.",
        )


def _read(path: Path) -> bytes:
    return read_regular_file(
        path, not_found="IMAGE_NOT_FOUND", invalid="IMAGE_INVALID", too_large="IMAGE_TOO_LARGE", limit=MAX_FILE_BYTES
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _wanted(request: EncodeRequest, image_sha256: str) -> dict[str, Any]:
    return {
        "image_sha256": image_sha256,
        "vae_name": request.vae_model_name,
        "upscale_method": request.upscale_method,
        "megapixels": request.megapixels,
        "resolution_steps": request.resolution_steps,
        "file_format": request.file_format,
    }


class NameLocks:
    """One lock for each name that is in use, so that one id is encoded once."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: dict[Path, list[Any]] = {}  # name: [lock, how many hold it or wait]

    @contextmanager
    def hold(self, name: Path, call: Call) -> Iterator[None]:
        """Hold the name; raises as ``call.check`` where the caller does not wait that long."""
        with self._guard:
            entry = self._held.setdefault(name, [threading.Lock(), 0])
            entry[1] += 1
        try:
            while not entry[0].acquire(timeout=LOCK_POLL_SECONDS):
                call.check()
            try:
                yield
            finally:
                entry[0].release()
        finally:
            with self._guard:
                entry[1] -= 1
                if not entry[1]:
                    del self._held[name]
