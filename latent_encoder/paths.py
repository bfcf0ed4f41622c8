"""Which folders may be read and written.

A name that reaches us from a workflow or a request is text from a stranger: it is checked as text first, then resolved
with symbolic links followed, and must still lie inside the folder that it was meant for.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from .errors import LatentEncoderError, from_os_error

MAX_PART_BYTES = 255  # what the usual file systems allow in one part of a path

_ANNOTATED = re.compile(r"^(?P<name>.*?) ?\[(?P<type>input|output|temp)\]$", re.DOTALL)
_DRIVE = re.compile(r"^[A-Za-z]:")


def check_relative(name: str, field: str) -> str:
    """``name`` unchanged, where it is a plain relative path.

    Raises:
        LatentEncoderError: INVALID_REQUEST for an empty name; PATH_NOT_ALLOWED for an absolute path, a backslash, a
            null byte or other control character, any ``..`` part (even where it would resolve inside), or a part of
            more than 255 bytes.
    """
    if not isinstance(name, str) or not name.strip():
        problem = "is empty" if isinstance(name, str) else f"is {name!r:.80}, not text"
        raise LatentEncoderError("INVALID_REQUEST", f"'{field}' {problem}.", "Give it a file name.")
    parts = name.split("/")
    encoded = name.encode("utf-8", "surrogatepass")
    if name.startswith("/"):
        problem = "is an absolute path"
    elif _DRIVE.match(name):
        problem = "begins with a drive letter"
    elif "\\" in name:
        problem = "contains a backslash"
    elif any(byte < 32 or byte == 127 for byte in encoded):
        problem = "contains a null byte or another control character"
    elif encoded.decode("utf-8", "replace") != name:
        problem = "is not valid text"
    elif os.name == "nt" and ":" in name:
        problem = "contains a colon"
    elif ".." in parts:
        problem = "contains '..'"
    elif any(len(part) > MAX_PART_BYTES for part in encoded.split(b"/")):
        problem = f"has a part that is longer than {MAX_PART_BYTES} bytes"
    else:
        return name
    raise LatentEncoderError(
        "PATH_NOT_ALLOWED",
        f"'{field}' {problem}: {_shown(name)}.",
        "Use a relative name with '/' between its parts and without '..': it stays inside its folder.",
    )


def split_annotated(name: str, default: str = "input") -> tuple[str, str]:
    """ComfyUI's annotated name ``"sub/a.png [output]"`` as ``("sub/a.png", "output")``, or with ``default``."""
    match = _ANNOTATED.match(name)
    return (match["name"], match["type"]) if match else (name, default)


def resolve_inside(root: str | Path, name: str, field: str) -> Path:
    """The real path of ``name`` under ``root``, symbolic links followed; it need not exist.

    Raises:
        LatentEncoderError: as ``check_relative``, and PATH_NOT_ALLOWED where a link leads out of ``root``.
    """
    check_relative(name, field)
    real_root = Path(os.path.realpath(root))
    try:
        path = Path(os.path.realpath(real_root / name))
    except (OSError, ValueError) as error:
        raise LatentEncoderError("PATH_NOT_ALLOWED", f"'{field}' cannot be resolved ({error}).") from error
    if not path.is_relative_to(real_root):
        raise LatentEncoderError("PATH_NOT_ALLOWED", f"'{field}' leads out of its folder through a link: {name!r}.")
    return path


def resolve_under(roots: Sequence[Path], name: str, field: str) -> Path:
    """The real path of ``name``, absolute or relative to the working directory, symbolic links followed; it need not
    exist.

    Raises:
        LatentEncoderError: PATH_NOT_ALLOWED for a null byte, any ``..`` part, or a path outside all of ``roots``.
    """
    if "\0" in name or ".." in re.split(r"[/\\]", name):
        reason = "a null byte" if "\0" in name else "'..'"
        raise LatentEncoderError("PATH_NOT_ALLOWED", f"'{field}' contains {reason}.")
    try:
        path = Path(os.path.realpath(name))
    except (OSError, ValueError) as error:
        raise LatentEncoderError("PATH_NOT_ALLOWED", f"'{field}' cannot be resolved ({error}).") from error
    if not any(path.is_relative_to(os.path.realpath(root)) for root in roots):
        raise LatentEncoderError(
            "PATH_NOT_ALLOWED",
            f"'{field}' is {_shown(name)}, which lies outside the allowed folders.",
            "Name a file inside one of them; LATENT_ENCODER_INPUT_ROOTS and _OUTPUT_ROOTS say which they are.",
        )
    return path


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "...")


def read_regular_file(path: Path, *, not_found: str, invalid: str, too_large: str, limit: int) -> bytes:
    """The bytes of a regular file, read once; nothing is read from a device, pipe or folder.

    Args:
        path: where it lies; already resolved.
        not_found, invalid, too_large: the codes to raise with, which differ between pictures and latents.
        limit: the largest size in bytes.

    Raises:
        LatentEncoderError: with one of the three codes; PATH_NOT_ALLOWED for a name that is too long; OUT_OF_MEMORY.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError) as error:
        reason = f"There is no file '{path.name}' in the folder '{path.parent.name}'."
        raise LatentEncoderError(not_found, reason) from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise from_os_error(error, path.parent) from error
        raise LatentEncoderError(invalid, f"'{path.name}' cannot be opened ({error.strerror}).") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise LatentEncoderError(invalid, f"'{path.name}' is not a regular file.")
        if status.st_size > limit:
            raise LatentEncoderError(
                too_large, f"'{path.name}' has {status.st_size:,} bytes; at most {limit:,} are read."
            )
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)
    except MemoryError as error:
        raise LatentEncoderError("OUT_OF_MEMORY", f"There is not enough memory to read '{path.name}'.") from error
    except OSError as error:
        raise LatentEncoderError(invalid, f"'{path.name}' cannot be read ({error.strerror}).") from error
    finally:
        os.close(descriptor)
