"""The one catalogue of errors: every code that the nodes, the HTTP API and Kafka answer with.

An error has a stable ``code`` for programs, a ``message`` that says what happened, and a ``hint`` that says what to do.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ErrorSpec:
    """What is fixed for a code: its HTTP status, whether the same request may succeed later, and its usual hint."""

    http_status: int
    retryable: bool
    hint: str


CATALOGUE: dict[str, ErrorSpec] = {
    "INVALID_REQUEST": ErrorSpec(400, False, "Correct the named field and send the request again."),
    "UNAUTHORIZED": ErrorSpec(401, False, "Send the server's token as 'Authorization: Bearer <token>'."),
    "PATH_NOT_ALLOWED": ErrorSpec(403, False, "Name a file inside the allowed folder, without '..'."),
    "TOPIC_NOT_ALLOWED": ErrorSpec(403, False, "Choose a topic of the administrator's list."),
    "IMAGE_NOT_FOUND": ErrorSpec(404, False, "Check the picture's name and its folder."),
    "VAE_MODEL_NOT_FOUND": ErrorSpec(
        404, False, "Put the file into the folder models/vae, or choose a VAE that is there."
    ),
    "LATENT_NOT_FOUND": ErrorSpec(404, False, "Check the latent's name; it may have been moved or deleted."),
    "JOB_NOT_FOUND": ErrorSpec(404, False, "Check the job's id; finished jobs are forgotten after a while."),
    "REQUEST_ID_CONFLICT": ErrorSpec(409, False, "Use a new request_id for other contents."),
    "FILE_EXISTS": ErrorSpec(409, False, "Choose another name, or move that file away."),
    "INTERRUPTED": ErrorSpec(409, True, "Send the request again when it is wanted."),
    "IMAGE_TOO_LARGE": ErrorSpec(413, False, "Make the picture smaller before encoding it."),
    "MESSAGE_TOO_LARGE": ErrorSpec(413, False, "Send a reference to the file instead of its bytes."),
    "IMAGE_INVALID": ErrorSpec(422, False, "Open the picture in an image editor and export it again as PNG."),
    "VAE_MODEL_INVALID": ErrorSpec(422, False, "Download the VAE file again, or choose one that this engine knows."),
    "LATENT_INVALID": ErrorSpec(422, False, "The file is damaged or not a latent: encode the picture again."),
    "VAE_MISMATCH": ErrorSpec(422, False, "Wire in the VAE that made this latent."),
    "SCALING_FAILED": ErrorSpec(422, False, "Choose more megapixels or a picture that is less narrow."),
    "FORMAT_UNSUPPORTED": ErrorSpec(422, False, "Save it as 'safetensors', which holds the whole latent."),
    "QUEUE_FULL": ErrorSpec(429, True, "Wait a moment, then send the request again."),
    "ENCODING_FAILED": ErrorSpec(500, False, "Look into the engine's log for the cause."),
    "KAFKA_DELIVERY_FAILED": ErrorSpec(500, True, "Check the topic's settings and rights, then run again."),
    "INTERNAL": ErrorSpec(500, False, "This is a bug of ours: please report it with the log."),
    "OUT_OF_MEMORY": ErrorSpec(503, True, "Use fewer megapixels, or free memory on that machine."),
    "ENGINE_UNAVAILABLE": ErrorSpec(503, True, "Check that ComfyUI runs and can be reached."),
    "NODES_MISSING": ErrorSpec(503, False, "Install the Latent Encoder nodes in that ComfyUI and restart it."),
    "KAFKA_UNAVAILABLE": ErrorSpec(503, True, "Check that the broker runs and can be reached."),
    "TIMEOUT": ErrorSpec(504, True, "Allow more time, or send fewer requests at once."),
    "DISK_FULL": ErrorSpec(507, True, "Free space on the disk that holds the folder."),
    "OUTPUT_DIR_NOT_WRITABLE": ErrorSpec(507, True, "Give this program the right to write into the folder."),
}

_CODE = re.compile(r"\[([A-Z][A-Z_]+)\]")

_NO_FOLDER = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class LatentEncoderError(Exception):
    """An error of the catalogue.

    ``str(error)`` is ``[CODE] message``, a newline, and the hint: ComfyUI hands on a node's exception as text only.

    Args:
        code: a key of ``CATALOGUE``.
        message: what happened, in one or two sentences; never a secret.
        hint: what to do; the code's usual hint where it is not given.
        retryable: whether the same request may succeed later; the code's usual answer where it is not given.

    Raises:
        KeyError: the code is not in the catalogue.
    """

    def __init__(self, code: str, message: str, hint: str | None = None, *, retryable: bool | None = None) -> None:
        spec = CATALOGUE[code]
        self.code = code
        self.message = message
        self.hint = spec.hint if hint is None else hint
        self.http_status = spec.http_status
        self.retryable = spec.retryable if retryable is None else retryable
        super().__init__(f"[{code}] {message}\n{self.hint}")

    def __reduce__(self) -> tuple[type[LatentEncoderError], tuple[str, str, str], dict[str, Any]]:
        return type(self), (self.code, self.message, self.hint), vars(self)


def find_code(text: str) -> str | None:
    """The first code of the catalogue that stands in ``text`` as ``[CODE]``, or None.

    For readers of ComfyUI's ``exception_message``, which may have other words before it.
    """
    return next((code for code in _CODE.findall(text) if code in CATALOGUE), None)


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise INVALID_REQUEST where ``value`` is none of ``choices``."""
    if value not in choices:
        raise LatentEncoderError(
            "INVALID_REQUEST", f"'{field}' is {value!r}.", f"Choose one of {', '.join(map(repr, choices))}."
        )


def from_os_error(error: OSError, folder: Path) -> LatentEncoderError:
    """The error of the catalogue for a write into ``folder`` that the operating system refused."""
    reason = error.strerror or str(error)
    if error.errno in _NO_SPACE:
        return LatentEncoderError("DISK_FULL", f"No space is left in '{folder.name}' ({reason}).")
    if error.errno == errno.ENAMETOOLONG:
        return LatentEncoderError("PATH_NOT_ALLOWED", "The file's name is too long.", "Choose a shorter name.")
    in_the_way = error.errno in _NO_FOLDER
    hint = "A file stands where a folder should be, or the other way round: choose another name."
    return LatentEncoderError(
        "OUTPUT_DIR_NOT_WRITABLE",
        f"The folder '{folder.name}' cannot be written ({reason}).",
        hint if in_the_way else None,
        retryable=False if in_the_way else None,
    )
