"""Latents on disk that can be trusted: written whole or not at all, with a checksum and a record of where they come
from.

Beside ``<file>`` stand ``<file>.json``, the sidecar with the LatentRecord, and, where a preview was given,
``<file>.webp``. ``docs/latent-file.md`` specifies the bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .atomic_file import TemporaryFile, name_lock, sweep, sync, sync_folder
from .errors import LatentEncoderError, check_choice, from_os_error
from .latent_format import (
    FILE_FORMATS,
    RECORD,
    RESERVED_METADATA,
    TENSOR_SHA256,
    Nested,
    SafetensorsContent,
    as_text,
    bare_tensor_content,
    data_section,
    parse,
    safetensors_content,
)
from .paths import MAX_PART_BYTES, check_relative, read_regular_file

if TYPE_CHECKING:
    from .models import LatentRecord

IF_EXISTS = ("number", "overwrite", "fail")
SIDECAR_SUFFIX = ".json"
PREVIEW_SUFFIX = ".webp"
MAX_FILE_BYTES = 1 << 34
MAX_STEM_BYTES = MAX_PART_BYTES - 32  # leaves room for number, suffix and ".webp"
THREAD_BYTES = 1 << 20  # below it, starting a thread costs more than the checksum

_NOT_IN_HEADER = {"path", "filename", "subfolder", "type", "file_bytes", "file_sha256"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedLatent:
    """Where a latent was placed, and its LatentRecord as JSON values."""

    path: Path
    record: dict[str, Any]


@dataclass(frozen=True)
class LoadedLatent:
    """A LATENT read from a file.

    Attributes:
        latent: the dict, its tensors on the CPU in the dtype of the file (old stock files: float32).
        record: its LatentRecord as JSON values.
        verified: whether a sidecar's checksum stood beside the file, and matched.
    """

    latent: dict[str, Any]
    record: dict[str, Any]
    verified: bool


def check_stem(stem: str, field: str) -> None:
    """Raise INVALID_REQUEST or PATH_NOT_ALLOWED for no plain name, or a hidden one: our temporary files are hidden."""
    check_relative(stem, field)
    if len(stem.encode()) > MAX_STEM_BYTES:
        raise LatentEncoderError("PATH_NOT_ALLOWED", f"'{field}' is too long.", "Choose a shorter name.")
    if "/" in stem or stem.startswith("."):
        raise LatentEncoderError(
            "INVALID_REQUEST", f"'{field}' names no file, or a hidden one.", "Give it a file name."
        )


def save_latent(
    latent: dict[str, Any],
    folder: Path,
    stem: str,
    *,
    file_format: str = "safetensors",
    if_exists: str = "number",
    first_number: int = 1,
    record: dict[str, Any] | None = None,
    metadata: dict[str, str] | None = None,
    preview: bytes | None = None,
) -> SavedLatent:
    """Save a whole LATENT; when this returns, the file survives a crash of the program or the machine.

    Args:
        latent: ComfyUI's dict; ``samples`` of shape (batch, channels, [frames,] height, width).
        folder: where to; made if absent. The caller has checked that it is allowed.
        stem: the file's name without number and suffix.
        file_format: ``safetensors``, ``latent`` (the same bytes), ``pt`` or ``npy``.
        if_exists: ``number`` gives ``<stem>_00001_.<suffix>`` with the next free number from ``first_number`` on,
            ``overwrite`` and ``fail`` give ``<stem>.<suffix>``.
        record: what the caller knows of the LatentRecord; what can be read off the latent and the file is filled in.
        metadata: more header entries (``prompt``, ``workflow``); ``pt`` and ``npy`` have no header.
        preview: the bytes of a WebP thumbnail.

    Raises:
        LatentEncoderError: INVALID_REQUEST, FORMAT_UNSUPPORTED, LATENT_INVALID, FILE_EXISTS, DISK_FULL,
            OUTPUT_DIR_NOT_WRITABLE or PATH_NOT_ALLOWED (a name too long); then no file is left.
    """
    from .models import LatentRecord

    check_choice("file_format", file_format, FILE_FORMATS)
    check_choice("if_exists", if_exists, IF_EXISTS)
    check_stem(stem, "stem")
    made = {"pack_version": __version__, "created_at": datetime.now(timezone.utc)}
    told = {key: as_text(value) if isinstance(value, str) else value for key, value in (record or {}).items()}
    full_record = LatentRecord.model_validate(made | told | _facts_of(latent) | {"file_format": file_format})
    content: SafetensorsContent | bytes
    if file_format in ("pt", "npy"):
        content = bare_tensor_content(latent, file_format)
    else:
        header_record = full_record.model_dump_json(exclude=_NOT_IN_HEADER)
        content = safetensors_content(latent, _header_metadata(metadata) | {RECORD: header_record})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        with TemporaryFile(folder) as file:
            digest, size = _write(file, content)
            full_record.file_sha256, full_record.file_bytes = digest, size
            for name in _candidate_names(stem, file_format, if_exists, first_number):
                if _place(file, folder / name, full_record, preview, overwrite=if_exists == "overwrite"):
                    sync_folder(folder)
                    return SavedLatent(folder / name, full_record.model_dump(mode="json"))
    except OSError as error:
        raise from_os_error(error, folder) from error
    raise LatentEncoderError("FILE_EXISTS", f"There is a file '{stem}.{file_format}' already.")


def load_latent(path: Path, *, nested: Nested | None = None) -> LoadedLatent:
    """Read a latent file, check it, and say what is known of it.

    The format is told by the suffix. A sidecar's ``file_sha256`` and a header's ``tensor_sha256`` are verified where
    they are.

    Args:
        path: the file; the caller has checked that it is allowed.
        nested: makes the host's nested tensor of its parts; None where the host has none.

    Raises:
        LatentEncoderError: LATENT_NOT_FOUND; LATENT_INVALID for a damaged file or one that is no latent;
            FORMAT_UNSUPPORTED for a suffix of no latent, a newer version, and a nested latent where ``nested`` is None;
            OUT_OF_MEMORY.
    """
    from .models import SCHEMA_VERSION

    file_format = path.suffix.lower().removeprefix(".")
    if file_format not in FILE_FORMATS:
        hint = f"Choose a file that ends in {', '.join('.' + name for name in FILE_FORMATS)}."
        raise LatentEncoderError("FORMAT_UNSUPPORTED", f"'{path.name}' is no latent file by its name.", hint)
    data, digest, sidecar = _read_with_sidecar(path)
    latent, metadata = parse(data, file_format, nested)
    expected = metadata.get(TENSOR_SHA256)
    if sidecar is None and expected is not None and hashlib.sha256(data_section(data)).hexdigest() != expected:
        raise _damaged(path, "its tensors' checksum is not the one in its header")
    record = sidecar or _header_record(metadata)
    if record.schema_version > SCHEMA_VERSION:
        raise LatentEncoderError(
            "FORMAT_UNSUPPORTED", f"'{path.name}' is of version {record.schema_version}.", "Update Latent Encoder."
        )
    placed = {
        "path": as_text(str(path.absolute())),
        "filename": as_text(path.name),
        "file_sha256": digest,
        "file_bytes": len(data),
    }
    known = record.model_dump() | _facts_of(latent) | placed | {"file_format": file_format}
    return LoadedLatent(latent, type(record).model_validate(known).model_dump(mode="json"), sidecar is not None)


def _facts_of(latent: dict[str, Any]) -> dict[str, Any]:
    """The fields of the record that the latent itself tells."""
    import torch

    samples: Any = latent.get("samples")
    nested = not isinstance(samples, torch.Tensor) and getattr(samples, "is_nested", False)
    parts = list(samples.unbind()) if nested else [samples]
    if not all(isinstance(part, torch.Tensor) and not part.is_nested for part in parts):
        return {}  # refused by the format, in its words
    shapes = [list(part.shape) for part in parts]
    return {
        "latent_shape": shapes if nested else shapes[0],
        "latent_dtype": ",".join(dict.fromkeys(str(part.dtype).removeprefix("torch.") for part in parts)),
        "latent_channels": shapes[0][1] if len(shapes[0]) > 1 else None,
    }


def _header_metadata(metadata: dict[str, str] | None) -> dict[str, str]:
    return {as_text(key): as_text(value) for key, value in (metadata or {}).items() if key not in RESERVED_METADATA}


def _candidate_names(stem: str, file_format: str, if_exists: str, first_number: int) -> Iterator[str]:
    numbers: Iterable[int] = count(first_number)
    names = (f"{stem}_{number:05}_.{file_format}" for number in numbers)
    return names if if_exists == "number" else iter([f"{stem}.{file_format}"])


def _write(file: TemporaryFile, content: SafetensorsContent | bytes) -> tuple[str, int]:
    """Write and sync the content; the checksums of a large one are taken on a second thread meanwhile.

    Returns:
        the file's sha256 and its size in bytes.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:

        def start_digest(parts: list[bytes | memoryview]) -> Callable[[], str]:
            if sum(map(len, parts)) >= THREAD_BYTES:
                return pool.submit(_sha256, parts).result
            digest = _sha256(parts)
            return lambda: digest

        if isinstance(content, bytes):
            parts: list[bytes | memoryview] = [content]
            digest = start_digest(parts)
            file.write(content)
        else:
            # The header holds the tensors' checksum, so the data goes to its place first.
            tensor_digest = start_digest([*content.buffers])
            os.lseek(file.descriptor, len(content.header("0" * 64)), os.SEEK_SET)
            for buffer in content.buffers:
                file.write(buffer)
            header = content.header(tensor_digest())
            parts = [header, *content.buffers]
            digest = start_digest(parts)
            os.lseek(file.descriptor, 0, os.SEEK_SET)
            file.write(header)
        sync(file.descriptor)
        return digest(), sum(map(len, parts))


def _sha256(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _place(file: TemporaryFile, final: Path, record: LatentRecord, preview: bytes | None, *, overwrite: bool) -> bool:
    """Give the file its name, then its sidecar and preview theirs; False where the name is taken.

    Neither the sidecar nor the preview is synced: a power cut may lose them, and a file without a sidecar is whole.
    """
    if not overwrite and os.path.lexists(final):
        return False  # without a lock for each of the numbers that are taken
    record.path, record.filename = as_text(str(final.absolute())), final.name
    beside = {final.with_name(final.name + PREVIEW_SUFFIX): preview}
    beside[final.with_name(final.name + SIDECAR_SUFFIX)] = record.model_dump_json(indent=2).encode()
    with contextlib.ExitStack() as stack:
        stack.enter_context(name_lock(final))
        if not overwrite and os.path.lexists(final):
            return False
        # All that needs space is written before anything gets its name.
        ready = {path: stack.enter_context(TemporaryFile(final.parent)) for path, data in beside.items() if data}
        for path, temporary in ready.items():
            temporary.write(beside[path] or b"")
        for path in beside:  # of the file that had this name before
            path.unlink(missing_ok=True)
        if overwrite:
            file.place_over(final)
        elif not file.place_new(final):
            return False
        for path, temporary in ready.items():
            temporary.place_over(path)
    return True


def _read_with_sidecar(path: Path) -> tuple[bytes, str, LatentRecord | None]:
    """The file's bytes, their sha256, and the record in its sidecar, which fits them.

    A writer may replace the two between our two looks: only what does not fit twice is damaged.
    """
    before = None
    while True:
        data = read_regular_file(
            path,
            not_found="LATENT_NOT_FOUND",
            invalid="LATENT_INVALID",
            too_large="LATENT_INVALID",
            limit=MAX_FILE_BYTES,
        )
        sidecar = _read_sidecar(path)
        digest = hashlib.sha256(data).hexdigest()
        if sidecar is None or sidecar.file_sha256 == digest:
            return data, digest, sidecar
        if before == (digest, sidecar):
            raise _damaged(path, "its checksum is not the one in its sidecar")
        before = (digest, sidecar)
        time.sleep(0.02)


def _read_sidecar(path: Path) -> LatentRecord | None:
    """The record beside the file; None where there is none, or not one of ours."""
    from .models import LatentRecord

    sidecar = path.with_name(path.name + SIDECAR_SUFFIX)
    try:
        data = read_regular_file(
            sidecar, not_found="LATENT_NOT_FOUND", invalid="LATENT_INVALID", too_large="LATENT_INVALID", limit=1 << 24
        )
        record = LatentRecord.model_validate(json.loads(data))
    except LatentEncoderError as error:
        if error.code == "LATENT_NOT_FOUND":
            return None
        reason = error.message
    except (ValueError, RecursionError):
        reason = "it is no record"
    else:
        if record.file_sha256:
            return record
        reason = "it holds no checksum"
    logger.warning("Latent Encoder: %s is ignored (%s); the latent beside it is unverified.", sidecar.name, reason)
    return None


def _header_record(metadata: dict[str, str]) -> LatentRecord:
    from .models import LatentRecord

    try:
        return LatentRecord.model_validate(json.loads(metadata.get(RECORD, "{}")))
    except (ValueError, RecursionError) as error:
        raise LatentEncoderError("LATENT_INVALID", f"The header's '{RECORD}' is damaged.") from error


def _damaged(path: Path, how: str) -> LatentEncoderError:
    return LatentEncoderError("LATENT_INVALID", f"'{path.name}' was changed after it was written: {how}.")
