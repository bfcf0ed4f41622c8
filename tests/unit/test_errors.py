"""The catalogue of errors, as the design lists it."""

from __future__ import annotations

import copy
import errno
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_encoder.errors import CATALOGUE, LatentEncoderError, find_code, from_os_error

STATUSES = {
    400: "INVALID_REQUEST",
    401: "UNAUTHORIZED",
    403: "PATH_NOT_ALLOWED TOPIC_NOT_ALLOWED",
    404: "IMAGE_NOT_FOUND VAE_MODEL_NOT_FOUND LATENT_NOT_FOUND JOB_NOT_FOUND",
    409: "REQUEST_ID_CONFLICT FILE_EXISTS INTERRUPTED",
    413: "IMAGE_TOO_LARGE MESSAGE_TOO_LARGE",
    422: "IMAGE_INVALID VAE_MODEL_INVALID LATENT_INVALID VAE_MISMATCH SCALING_FAILED FORMAT_UNSUPPORTED",
    429: "QUEUE_FULL",
    500: "ENCODING_FAILED KAFKA_DELIVERY_FAILED INTERNAL",
    503: "OUT_OF_MEMORY ENGINE_UNAVAILABLE NODES_MISSING KAFKA_UNAVAILABLE",
    504: "TIMEOUT",
    507: "DISK_FULL OUTPUT_DIR_NOT_WRITABLE",
}
CODES = {code: status for status, codes in STATUSES.items() for code in codes.split()}


def test_the_catalogue_is_the_one_of_the_design() -> None:
    assert {code: spec.http_status for code, spec in CATALOGUE.items()} == CODES


@pytest.mark.parametrize("code", CODES)
def test_an_error_says_code_message_and_hint(code: str) -> None:
    error = LatentEncoderError(code, "This happened.")
    assert str(error) == f"[{code}] This happened.\n{CATALOGUE[code].hint}"
    assert (error.code, error.http_status) == (code, CODES[code])
    assert error.hint.endswith(".") and error.retryable is CATALOGUE[code].retryable
    assert str(LatentEncoderError(code, "This happened.", "Do that.")) == f"[{code}] This happened.\nDo that."
    assert LatentEncoderError(code, "x", "").hint == ""


def test_an_unknown_code_is_a_bug() -> None:
    with pytest.raises(KeyError):
        LatentEncoderError("NO_SUCH_CODE", "message")


def test_what_may_succeed_later() -> None:
    """Nothing that is wrong with the request itself is worth sending again unchanged."""
    assert not [code for code, spec in CATALOGUE.items() if spec.retryable and spec.http_status in range(400, 409)]
    assert not [code for code, spec in CATALOGUE.items() if spec.retryable and spec.http_status in (413, 422)]
    for code in ("QUEUE_FULL", "TIMEOUT", "ENGINE_UNAVAILABLE", "KAFKA_UNAVAILABLE", "DISK_FULL"):
        assert CATALOGUE[code].retryable


def test_an_error_may_know_better_than_its_code_whether_to_try_again() -> None:
    assert LatentEncoderError("TIMEOUT", "x").retryable
    never = LatentEncoderError("TIMEOUT", "x", retryable=False)
    assert not never.retryable
    assert not pickle.loads(pickle.dumps(never)).retryable  # noqa: S301
    assert not from_os_error(NotADirectoryError(errno.ENOTDIR, "x"), Path("latents")).retryable
    assert from_os_error(OSError(errno.EACCES, "x"), Path("latents")).retryable


@pytest.mark.parametrize("code", CODES)
def test_a_usual_hint_speaks_of_nothing_that_only_one_door_has(code: str) -> None:
    for word in ("upload", "if_exists", "ComfyUI's models", "input folder"):
        assert word not in CATALOGUE[code].hint


@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])  # noqa: S301
def test_pickling(again: object) -> None:
    error = LatentEncoderError("DISK_FULL", "No space.", "Free some.")
    twin = again(error)  # type: ignore[operator]
    assert type(twin) is LatentEncoderError and str(twin) == str(error)
    assert vars(twin) == vars(error)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[DISK_FULL] No space.\nFree some.", "DISK_FULL"),
        ("Error while executing: [IMAGE_INVALID] It is cut short.", "IMAGE_INVALID"),
        ("[Errno 28] then [NOT_OURS] then [TIMEOUT] and [INTERNAL]", "TIMEOUT"),
        ("[[DISK_FULL]]", "DISK_FULL"),
        ("DISK_FULL", None),
        ("[disk_full]", None),
        ("[DISK_FULL", None),
        ("", None),
    ],
)
def test_the_code_in_a_hosts_text(text: str, code: str | None) -> None:
    assert find_code(text) == code


@given(
    st.sampled_from(sorted(CODES)), st.text(max_size=30), st.text(st.characters(exclude_characters="["), max_size=30)
)
def test_an_errors_own_text_is_always_found(code: str, message: str, before: str) -> None:
    assert find_code(before + str(LatentEncoderError(code, message))) == code


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "DISK_FULL"),
        (errno.EDQUOT, "DISK_FULL"),
        (errno.EFBIG, "DISK_FULL"),
        (errno.EROFS, "OUTPUT_DIR_NOT_WRITABLE"),
        (errno.EACCES, "OUTPUT_DIR_NOT_WRITABLE"),
        (errno.EPERM, "OUTPUT_DIR_NOT_WRITABLE"),
        (errno.EIO, "OUTPUT_DIR_NOT_WRITABLE"),
        (errno.ENAMETOOLONG, "PATH_NOT_ALLOWED"),
    ],
)
def test_what_the_operating_system_refuses(number: int, code: str) -> None:
    secret = Path("/home/somebody/latents")
    error = from_os_error(OSError(number, os.strerror(number), str(secret / "a")), secret)
    assert error.code == code and "somebody" not in str(error)


def test_an_os_error_without_a_number() -> None:
    assert from_os_error(OSError("odd"), Path("latents")).code == "OUTPUT_DIR_NOT_WRITABLE"
