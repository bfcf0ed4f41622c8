"""Pictures that come with a request: streamed to a file in ``STATE_DIR/uploads``, kept until they are encoded."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from uuid import uuid4

from anyio.to_thread import run_sync
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from latent_encoder.atomic_file import sync, sync_folder
from latent_encoder.errors import LatentEncoderError, from_os_error
from latent_encoder.service.workers import QueueFull

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILE_FIELD = "image"
MAX_FIELD_BYTES = 1 << 16
"""All other fields of a form together, in bytes."""

MAX_PARTS = 64
MAX_NAME = 255
FLUSH_BYTES = 1 << 18  # what is gathered before a thread is asked to write it

_FOLDERS = re.compile(r"^.*[/\\]", re.DOTALL)


@dataclass(frozen=True)
class Upload:
    """A picture's file. ``name`` is what its sender calls it, without folders; ``sha256`` is of its bytes."""

    path: Path
    name: str
    sha256: str

    def keep(self) -> None:
        """Make it survive a power cut."""
        try:
            descriptor = os.open(self.path, os.O_RDWR)
            try:
                sync(descriptor)
            finally:
                os.close(descriptor)
            sync_folder(self.path.parent)
        except OSError as error:
            raise from_os_error(error, self.path.parent) from error

    def discard(self) -> None:
        """Delete it."""
        with suppress(OSError):
            self.path.unlink()


class Uploads:
    """The folder of uploads.

    Args:
        folder: made if absent.
        max_bytes: the largest picture.
        most: how many may be on their way at once.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, max_bytes: int, most: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._most, self._arriving = most, 0
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def sweep(self, wanted: set[str]) -> None:
        """Delete what no job wants; called before the first upload arrives."""
        for path in self.folder.iterdir():
            if path.name not in wanted:
                path.unlink()

    def too_large(self) -> LatentEncoderError:
        """The refusal of a larger picture."""
        return LatentEncoderError(
            "IMAGE_TOO_LARGE",
            f"The upload has more than {self.max_bytes:,} bytes.",
            "Make the file smaller, or lay it into a folder that the service may read and send its image_path.",
        )

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """Take a place among those on their way; all calls come from one thread.

        Raises:
            LatentEncoderError: QUEUE_FULL.
        """
        if self._arriving >= self._most:
            raise QueueFull("QUEUE_FULL", f"{self._most} uploads are on their way already.")
        self._arriving += 1
        try:
            yield
        finally:
            self._arriving -= 1

    async def receive(self, content_type: str, body: AsyncIterator[bytes]) -> tuple[dict[str, str], Upload]:
        """Read a multipart form with one picture as ``image``.

        Returns:
            the other fields, and the picture, which belongs to the caller.

        Raises:
            LatentEncoderError: INVALID_REQUEST, IMAGE_TOO_LARGE, QUEUE_FULL, DISK_FULL, OUTPUT_DIR_NOT_WRITABLE; then
                no file is left.
        """
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise _malformed("its Content-Type names no boundary")
        path = self.folder / uuid4().hex
        with self.arriving():
            try:
                with open(path, "xb") as file:
                    form = _Form(self, file)
                    await form.read(boundary, body)
                if form.name is None:
                    hint = f"Send the picture as a file part with the name '{FILE_FIELD}'."
                    raise LatentEncoderError("INVALID_REQUEST", f"The form has no part '{FILE_FIELD}'.", hint)
                return form.fields, Upload(path, form.name, form.digest.hexdigest())
            except BaseException as error:
                with suppress(OSError):
                    path.unlink()
                if isinstance(error, OSError):
                    raise from_os_error(error, self.folder) from error
                raise


@dataclass
class _Part:
    """The part that is being read: its headers, then what it is called and the text of a field."""

    headers: dict[str, bytearray] = field(default_factory=dict)
    header: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    name: str = ""
    text: bytearray = field(default_factory=bytearray)


class _Form:
    """A form that is being read.

    Attributes:
        fields: those that have been read whole.
        name: the picture's; None before its part has begun.
        digest: of the picture's bytes.
    """

    def __init__(self, uploads: Uploads, file: BinaryIO) -> None:
        self.fields: dict[str, str] = {}
        self.name: str | None = None
        self.digest = hashlib.sha256()
        self._uploads, self._file = uploads, file
        self._part = _Part()
        self._parts = self._field_bytes = self._image_bytes = 0
        self._pending = bytearray()
        self._whole = False

    async def read(self, boundary: bytes, body: AsyncIterator[bytes]) -> None:
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._part.header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._part.value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }
        try:
            parser = MultipartParser(boundary, callbacks)
            async for chunk in body:
                parser.write(chunk)
                if len(self._pending) >= FLUSH_BYTES:
                    await run_sync(self._flush)
        except FormParserError as error:
            raise _malformed("it does not follow the rules of multipart/form-data") from error
        if not self._whole:
            raise _malformed("its end is missing")
        await run_sync(self._flush)

    def _flush(self) -> None:
        self.digest.update(self._pending)
        self._file.write(self._pending)
        self._file.flush()
        self._pending.clear()

    def _begin(self) -> None:
        self._part = _Part()
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise _malformed(f"it has more than {MAX_PARTS} parts")

    def _end_header(self) -> None:
        self._part.headers[self._part.header.decode("latin-1").lower()] = self._part.value
        self._part.header, self._part.value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        disposition = bytes(self._part.headers.get("content-disposition", b""))
        options = parse_options_header(disposition)[1]
        self._part.name = _text(options.get(b"name", b""), "the name of a part")
        if self._part.name == FILE_FIELD:
            if self.name is not None:
                raise _malformed(f"it has two parts '{FILE_FIELD}'; a request is about one picture")
            sent = _text(options.get(b"filename", b""), "the picture's name")
            self.name = _FOLDERS.sub("", sent)[-MAX_NAME:] or "upload"
        elif not self._part.name:
            raise _malformed("it has a part without a name")
        elif b"filename" in options:
            raise _malformed(f"its part '{self._part.name}' is a file; only '{FILE_FIELD}' may be one")
        elif self._part.name in self.fields:
            raise _malformed(f"it has two fields '{self._part.name}'")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part.name == FILE_FIELD:
            self._image_bytes += end - start
            if self._image_bytes > self._uploads.max_bytes:
                raise self._uploads.too_large()
            self._pending += data[start:end]
        else:
            self._field_bytes += end - start
            if self._field_bytes > MAX_FIELD_BYTES:
                reason = f"The form's fields have more than {MAX_FIELD_BYTES:,} bytes."
                raise LatentEncoderError("MESSAGE_TOO_LARGE", reason, "Send fewer and shorter fields.")
            self._part.text += data[start:end]

    def _end(self) -> None:
        if self._part.name != FILE_FIELD:
            self.fields[self._part.name] = _text(bytes(self._part.text), f"the field '{self._part.name}'")

    def _finish(self) -> None:
        self._whole = True


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _malformed(f"{what} is not UTF-8") from error


def _malformed(how: str) -> LatentEncoderError:
    return LatentEncoderError(
        "INVALID_REQUEST",
        f"The form cannot be read: {how}.",
        f"Send multipart/form-data with the picture as the file part '{FILE_FIELD}' and the other fields as text.",
    )
