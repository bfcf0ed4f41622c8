"""What stands with a latent file about it: its LatentRecord, in the file's header and in the sidecar ``<file>.json``,
which also holds the checksum of all its bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import LatentEncoderError
from .latent_format import RECORD, TENSOR_SHA256, as_text, data_section
from .paths import read_regular_file

if TYPE_CHECKING:
    from .models import LatentRecord

SIDECAR_SUFFIX = ".json"
MAX_FILE_BYTES = 1 << 34
"""The largest latent file that is read, in bytes."""

logger = logging.getLogger(__name__)


def sidecar_of(path: Path) -> Path:
    """Where a latent file's sidecar stands."""
    return path.with_name(path.name + SIDECAR_SUFFIX)


def read_with_sidecar(path: Path) -> tuple[bytes, str, LatentRecord | None]:
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
        sidecar = read_sidecar(path)
        digest = hashlib.sha256(data).hexdigest()
        if sidecar is None or sidecar.file_sha256 == digest:
            return data, digest, sidecar
        if before == (digest, sidecar):
            raise damaged(path, "its checksum is not the one in its sidecar")
        before = (digest, sidecar)
        time.sleep(0.02)


def read_sidecar(path: Path) -> LatentRecord | None:
    """The record beside the file; None where there is none, or not one of ours."""
    from .models import LatentRecord

    sidecar = sidecar_of(path)
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


def known_record(sidecar: LatentRecord | None, metadata: dict[str, str]) -> LatentRecord:
    """The record of a file: what its header says, which its checksum covers, and the rest from its sidecar.

    Args:
        metadata: the header's; empty for formats without one.

    Raises:
        LatentEncoderError: LATENT_INVALID for a damaged header; FORMAT_UNSUPPORTED for a newer version.
    """
    from .models import SCHEMA_VERSION, LatentRecord

    try:
        header = LatentRecord.model_validate(json.loads(metadata.get(RECORD, "{}")))
    except (ValueError, RecursionError) as error:
        raise LatentEncoderError("LATENT_INVALID", f"The header's '{RECORD}' is damaged.") from error
    version = max(header.schema_version, sidecar.schema_version if sidecar else 0)
    if version > SCHEMA_VERSION:
        reason = f"The latent file is of version {version}."
        raise LatentEncoderError("FORMAT_UNSUPPORTED", reason, "Update Latent Encoder.")
    told = header.model_dump(exclude_none=True, exclude_unset=True)
    return sidecar.model_copy(update=told) if sidecar else header


def check_tensors(path: Path, data: bytes, metadata: dict[str, str]) -> bool:
    """Whether the header holds the tensors' checksum, which fits.

    Raises:
        LatentEncoderError: LATENT_INVALID where it does not fit.
    """
    expected = metadata.get(TENSOR_SHA256)
    if expected is not None and hashlib.sha256(data_section(data)).hexdigest() != expected:
        raise damaged(path, "its tensors' checksum is not the one in its header")
    return expected is not None


def placement(path: Path, data: bytes, digest: str) -> dict[str, Any]:
    """The record's fields that the file's place and bytes tell."""
    return {
        "path": as_text(str(path.absolute())),
        "filename": as_text(path.name),
        "file_format": path.suffix.lower().removeprefix("."),
        "file_sha256": digest,
        "file_bytes": len(data),
    }


def damaged(path: Path, how: str) -> LatentEncoderError:
    """The error for a file whose bytes are not those that were written."""
    return LatentEncoderError("LATENT_INVALID", f"'{path.name}' was changed after it was written: {how}.")
