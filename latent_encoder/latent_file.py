"""Latents on disk that can be trusted: written whole or not at all, with a checksum and a record of where they come
from.

Beside ``<file>`` stand ``<file>.json``, the sidecar with the LatentRecord, and, where a preview was given,
``<file>.webp``. ``docs/latent-file.md`` specifies the bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .atomic_file import TemporaryFile, name_lock, sweep_before_save, sync, sync_folder
from .errors import LatentEncoderError, check_choice, from_os_error
from .latent_format import (
    FILE_FORMATS,
    RECORD,
    RESERVED_METADATA,
    Nested,
    SafetensorsContent,
    as_text,
    bare_tensor_content,
    header_metadata,
    parse,
    safetensors_content,
)
from .paths import MAX_PART_BYTES, check_relative, read_regular_file
from .records import (
    MAX_FILE_BYTES,
    check_tensors,
    known_record,
    placement,
    read_sidecar,
    read_with_sidecar,
    sidecar_of,
)

if TYPE_CHECKING:
    from .models import LatentRecord

IF_EXISTS = ("number", "overwrite", "fail")
PREVIEW_SUFFIX = ".webp"
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
    check_choice("if_exists", if_exists, IF_EXISTS)
    check_stem(stem, "stem")
    full_record, content = _prepare(latent, file_format, record, metadata)
    numbers = count(first_number) if if_exists == "number" else None
    return _save(content, folder, stem, full_record, numbers, preview, overwrite=if_exists == "overwrite")


def encode_latent(
    latent: dict[str, Any],
    *,
    file_format: str,
    record: dict[str, Any] | None = None,
    metadata: dict[str, str] | None = None,
) -> tuple[bytes, dict[str, Any]]:
    """A latent file in memory: the bytes that ``save_latent`` would write, and its record without a place.

    Raises:
        LatentEncoderError: INVALID_REQUEST, FORMAT_UNSUPPORTED, LATENT_INVALID.
    """
    full_record, content = _prepare(latent, file_format, record, metadata)
    if not isinstance(content, bytes):
        content = b"".join([content.header(_sha256(content.buffers)), *content.buffers])
    full_record.file_sha256, full_record.file_bytes = _sha256([content]), len(content)
    return content, full_record.model_dump(mode="json")


def place_latent(
    content: bytes, folder: Path, stem: str, *, record: dict[str, Any], overwrite: bool = False
) -> SavedLatent:
    """Save a latent file's bytes unchanged as ``<stem>.<record's file_format>``, as safely as ``save_latent`` does.

    Args:
        record: its LatentRecord as JSON values; ``path`` and ``filename`` are filled in.

    Raises:
        LatentEncoderError: FILE_EXISTS where the name is taken and ``overwrite`` is not wanted; DISK_FULL,
            OUTPUT_DIR_NOT_WRITABLE, PATH_NOT_ALLOWED; then no file is left.
    """
    from .models import LatentRecord

    check_stem(stem, "stem")
    return _save(content, folder, stem, LatentRecord.model_validate(record), None, None, overwrite=overwrite)


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
    file_format = path.suffix.lower().removeprefix(".")
    if file_format not in FILE_FORMATS:
        hint = f"Choose a file that ends in {', '.join('.' + name for name in FILE_FORMATS)}."
        raise LatentEncoderError("FORMAT_UNSUPPORTED", f"'{path.name}' is no latent file by its name.", hint)
    data, digest, sidecar = read_with_sidecar(path)
    latent, metadata = parse(data, file_format, nested)
    if sidecar is None:
        check_tensors(path, data, metadata)
    record = known_record(sidecar, metadata)
    known = record.model_dump() | _facts_of(latent) | placement(path, data, digest)
    return LoadedLatent(latent, type(record).model_validate(known).model_dump(mode="json"), sidecar is not None)


def verify_latent(path: Path) -> dict[str, Any] | None:
    """The record of a latent file whose checksum still fits; None for no file, another content, or no checksum.

    The checksum is the sidecar's, or else the one in the header; then the sidecar, which a crash has lost, is written
    again if it can be. Needs no torch.

    Raises:
        LatentEncoderError: FORMAT_UNSUPPORTED for a newer version; OUT_OF_MEMORY.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):  # as a rule; this is the cheapest way to tell
        return None
    except OSError:
        pass  # said below
    record, has_sidecar = _verify(path)
    if has_sidecar:
        return record.model_dump(mode="json") if record else None
    try:
        with name_lock(path):  # a writer that is at work places its sidecar after the file: look again
            record, has_sidecar = _verify(path)
            if record and not has_sidecar:
                with TemporaryFile(path.parent) as file:
                    file.write(_sidecar_bytes(record))
                    file.place_over(sidecar_of(path))
    except OSError as error:
        logger.warning("Latent Encoder: no sidecar for '%s' (%s).", path.name, error.strerror)
    return record.model_dump(mode="json") if record else None


def is_ours(path: Path) -> bool:
    """Whether a file, whole or broken, is one that ``save_latent`` has written: its sidecar or its header says so."""
    if not path.is_file() or path.is_symlink():
        return False
    if read_sidecar(path):
        return True
    try:
        data = read_regular_file(
            path,
            not_found="LATENT_NOT_FOUND",
            invalid="LATENT_INVALID",
            too_large="LATENT_INVALID",
            limit=MAX_FILE_BYTES,
        )
        return path.suffix[1:] in ("safetensors", "latent") and RECORD in header_metadata(data)
    except (LatentEncoderError, ValueError, AttributeError, RecursionError):
        return False


def _verify(path: Path) -> tuple[LatentRecord | None, bool]:
    """The record of a file whose checksum fits, and whether a sidecar beside it says so."""
    try:
        data, digest, sidecar = read_with_sidecar(path)
        metadata = header_metadata(data) if path.suffix[1:] in ("safetensors", "latent") else {}
        if sidecar is None and not check_tensors(path, data, metadata):
            return None, False
        record = known_record(sidecar, metadata)
    except LatentEncoderError as error:
        if error.code in ("LATENT_NOT_FOUND", "LATENT_INVALID"):
            return None, False
        raise
    except (ValueError, AttributeError, RecursionError):  # the header is no header
        return None, False
    return record.model_copy(update=placement(path, data, digest)), sidecar is not None


def _prepare(
    latent: dict[str, Any], file_format: str, record: dict[str, Any] | None, metadata: dict[str, str] | None
) -> tuple[LatentRecord, SafetensorsContent | bytes]:
    """The record, as far as it is known before the file has a place, and the file's content."""
    from .models import LatentRecord

    check_choice("file_format", file_format, FILE_FORMATS)
    made = {"pack_version": __version__, "created_at": datetime.now(timezone.utc)}
    told = {key: as_text(value) if isinstance(value, str) else value for key, value in (record or {}).items()}
    full_record = LatentRecord.model_validate(made | told | _facts_of(latent) | {"file_format": file_format})
    if file_format in ("pt", "npy"):
        return full_record, bare_tensor_content(latent, file_format)
    header_record = full_record.model_dump_json(exclude=_NOT_IN_HEADER)
    return full_record, safetensors_content(latent, _header_metadata(metadata) | {RECORD: header_record})


def _save(
    content: SafetensorsContent | bytes,
    folder: Path,
    stem: str,
    record: LatentRecord,
    numbers: Iterable[int] | None,
    preview: bytes | None,
    *,
    overwrite: bool,
) -> SavedLatent:
    """Write the content under a temporary name, then give it the first free one of the ``numbers``, or the one name."""
    suffix = record.file_format
    names = [f"{stem}.{suffix}"] if numbers is None else (f"{stem}_{number:05}_.{suffix}" for number in numbers)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep_before_save(folder)
        with TemporaryFile(folder) as file:
            record.file_sha256, record.file_bytes = _write(file, content)
            for name in names:
                if _place(file, folder / name, record, preview, overwrite=overwrite):
                    sync_folder(folder)
                    return SavedLatent(folder / name, record.model_dump(mode="json"))
    except OSError as error:
        raise from_os_error(error, folder) from error
    raise LatentEncoderError(
        "FILE_EXISTS", f"'{stem}.{suffix}' exists already.", "Choose another name, or another if_exists than 'fail'."
    )


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


def _sidecar_bytes(record: LatentRecord) -> bytes:
    return record.model_dump_json(indent=2).encode()


def _place(file: TemporaryFile, final: Path, record: LatentRecord, preview: bytes | None, *, overwrite: bool) -> bool:
    """Give the file its name, then its sidecar and preview theirs; False where the name is taken.

    Neither the sidecar nor the preview is synced: a power cut may lose them, and a file without a sidecar is whole.
    """
    if not overwrite and os.path.lexists(final):
        return False  # without a lock for each of the numbers that are taken
    record.path, record.filename = as_text(str(final.absolute())), final.name
    beside = {final.with_name(final.name + PREVIEW_SUFFIX): preview}
    beside[sidecar_of(final)] = _sidecar_bytes(record)
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
