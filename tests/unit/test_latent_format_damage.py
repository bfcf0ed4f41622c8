"""The four formats as bytes: what is no latent, and pickles that would run code."""

from __future__ import annotations

import io
import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from unit.latents_on_disk import SAMPLES
from unit.odd_latents import NOT_PLAIN, Nested, file_of, raw_bytes

from latent_encoder.errors import LatentEncoderError
from latent_encoder.latent_format import parse


def invalid(data: bytes, file_format: str = "safetensors") -> str:
    """What the refusal says."""
    with pytest.raises(LatentEncoderError) as caught:
        parse(data, file_format, Nested)
    assert caught.value.code == "LATENT_INVALID"
    return caught.value.message


def with_header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
STRUCTURES = {
    "no JSON": "{",
    "a list": "[]",
    "too deep": "[" * 100_000,
    "empty": "{}",
    "samples as a number": '{"samples": {"json": 3}}',
    "samples of no parts": '{"samples": {"nested": []}}',
    "samples as a name": '{"samples": "latent_tensor"}',
    "unknown kind": '{"samples": {"other": 1}}',
    "unknown tensor": '{"samples": {"tensor": "x"}}',
    "list as a name": '{"samples": {"tensor": ["latent_tensor"]}}',
    "number as parts": '{"samples": {"nested": 3}}',
    "text as parts": '{"samples": {"nested": "ab"}}',
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_that_does_not_fit(name: str) -> None:
    metadata = {"latent_structure": STRUCTURES[name]}
    invalid(with_header({"__metadata__": metadata, "latent_tensor": ENTRY}, b"1234"))


HEADERS: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"1234567",
    "length alone": (8).to_bytes(8, "little"),
    "huge length": (2**63 - 1).to_bytes(8, "little") + b"{}",
    "largest length": b"\xff" * 8 + b"{}",
    "length of 100 MB": (100_000_000).to_bytes(8, "little") + b"{}",
    "no JSON": with_header(b"{nonsense"),
    "no text": with_header(b"\xff\xfe{}"),
    "a list": with_header([]),
    "no tensors": with_header({}),
    "too deep": with_header(b"[" * 100_000),
    "too deep inside": with_header(b'{"__metadata__":' + b'{"a":' * 50_000),
    "unknown dtype": with_header({"latent_tensor": ENTRY | {"dtype": "F4"}}, b"1234"),
    "dtype that torch lacks": with_header({"latent_tensor": ENTRY | {"dtype": "F8_E8M0", "shape": [4]}}, b"1234"),
    "negative shape": with_header({"latent_tensor": ENTRY | {"shape": [-1]}}, b"1234"),
    "huge shape": with_header({"latent_tensor": ENTRY | {"shape": [2**62, 2**62]}}, b"1234"),
    "offsets beyond the end": with_header({"latent_tensor": ENTRY | {"data_offsets": [0, 400]}}, b"1234"),
    "offsets backwards": with_header({"latent_tensor": ENTRY | {"data_offsets": [4, 0]}}, b"1234"),
    "other tensors": file_of({"weight": SAMPLES}),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("name", HEADERS)
def test_what_is_no_latent(name: str) -> None:
    for file_format in ("safetensors", "latent", "pt", "npy"):
        invalid(HEADERS[name], file_format)


def test_null_metadata_is_no_metadata() -> None:
    data = with_header({"__metadata__": None, "latent_tensor": ENTRY}, b"1234")
    try:
        found, metadata = parse(data, "safetensors", None)
    except LatentEncoderError as error:
        assert error.code == "LATENT_INVALID"
    else:
        assert found["samples"].shape == (1,) and not metadata


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("wrapping", ["bare", "zip", "legacy", "beside a tensor"])
def test_a_pickle_bomb_does_not_go_off(wrapping: str, tmp_path: Path) -> None:
    marker = tmp_path / "boom"
    bomb, file = Bomb(marker), io.BytesIO()
    if wrapping == "bare":
        file.write(pickle.dumps(bomb))
    elif wrapping == "legacy":
        torch.save(bomb, file, _use_new_zipfile_serialization=False)
    else:
        torch.save(bomb if wrapping == "zip" else {"samples": SAMPLES, "x": bomb}, file)
    for file_format in ("pt", "npy", "safetensors"):
        invalid(file.getvalue(), file_format)
    assert not marker.exists()


def test_pickles_of_other_things_are_no_latent() -> None:
    for value in ({"samples": SAMPLES}, [SAMPLES], 3, None, "text", OrderedDict(a=SAMPLES)):
        file = io.BytesIO()
        torch.save(value, file)
        assert "tensor" in invalid(file.getvalue(), "pt")


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("name", NOT_PLAIN)
def test_a_pt_of_a_tensor_without_plain_numbers(name: str) -> None:
    file = io.BytesIO()
    torch.save(NOT_PLAIN[name], file)
    invalid(file.getvalue(), "pt")


def npy_of(array: Any, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    numpy.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def test_npy_of_other_things() -> None:
    objects = numpy.array([{"a": 1}, None], dtype=object)
    invalid(npy_of(objects, allow_pickle=True), "npy")
    for array in (numpy.array(["text"]), numpy.zeros(2, "datetime64[s]"), numpy.zeros(2, [("a", "f4")])):
        invalid(npy_of(array), "npy")
    archive = io.BytesIO()
    numpy.savez(archive, samples=numpy.zeros(3))
    invalid(archive.getvalue(), "npy")
    huge = npy_of(numpy.zeros(4)).replace(b"(4,)", b"(9" + b"9" * 14 + b",)", 1)
    invalid(huge, "npy")


@pytest.mark.parametrize("order", [">f4", "<f4", ">i8", ">c8", ">u2"])
def test_npy_of_either_byte_order(order: str) -> None:
    array = numpy.arange(6).reshape(1, 2, 3).astype(order)
    for data in (npy_of(array), npy_of(numpy.asfortranarray(array))):
        found = parse(data, "npy", None)[0]["samples"]
        assert found.shape == (1, 2, 3) and numpy.array_equal(found.numpy(), array)
        assert raw_bytes(found) == array.astype(order.replace(">", "<")).tobytes()
