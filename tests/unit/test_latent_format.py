"""A LATENT as a file's bytes and back: the round trip of everything, and the refusal of what cannot be held."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unit import odd_latents
from unit.odd_latents import DTYPES, LAYOUTS, NOT_IN_NUMPY, NOT_PLAIN, Nested, assert_same, file_of, random_tensor

from latent_encoder.errors import LatentEncoderError
from latent_encoder.latent_format import bare_tensor_content, data_section, parse, safetensors_content

SAMPLES = random_tensor("float32", (1, 4, 3, 2))


def to_bytes(latent: dict[str, Any], **metadata: str) -> bytes:
    """A safetensors file of this LATENT, with its tensors' checksum."""
    content = safetensors_content(latent, metadata)
    return b"".join([content.header(hashlib.sha256(b"".join(content.buffers)).hexdigest()), *content.buffers])


def refusal(latent: dict[str, Any], file_format: str) -> str:
    """The code with which a format refuses a LATENT."""
    with pytest.raises(LatentEncoderError) as caught:
        if file_format == "safetensors":
            to_bytes(latent)
        else:
            bare_tensor_content(latent, file_format)
    return caught.value.code


def test_the_dtypes_tested_are_all_that_safetensors_holds() -> None:
    assert {getattr(torch, name) for name in DTYPES} == set(safetensors.torch._TYPES.values())


@given(odd_latents.latents)
@settings(max_examples=200)
def test_round_trip_of_a_whole_latent(latent: dict[str, Any]) -> None:
    found, _ = parse(to_bytes(latent), "safetensors", Nested)
    assert_same(found, latent)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip_of_each_dtype_and_layout(dtype: str, layout: str) -> None:
    for shape in [(2, 3, 4), (0, 4, 8, 8), (), (1,), (3, 0)]:
        latent = {"samples": random_tensor(dtype, shape, layout), "again": random_tensor(dtype, shape, layout, 1)}
        assert_same(parse(to_bytes(latent), "safetensors", None)[0], latent)


@given(
    st.sampled_from([*DTYPES, "complex128"]),
    odd_latents.shapes,
    st.sampled_from(LAYOUTS),
    st.integers(0, 99),
    st.sampled_from(["pt", "npy"]),
)
def test_round_trip_of_a_bare_tensor(
    dtype: str, shape: tuple[int, ...], layout: str, seed: int, file_format: str
) -> None:
    latent = {"samples": random_tensor(dtype, shape, layout, seed)}
    if file_format == "npy" and dtype in NOT_IN_NUMPY:
        assert refusal(latent, "npy") == "FORMAT_UNSUPPORTED"
        return
    data = bare_tensor_content(latent, file_format)
    assert_same(parse(data, file_format, None)[0], latent)
    if file_format == "npy":
        assert numpy.load(io.BytesIO(data)).shape == shape
    else:
        assert_same(torch.load(io.BytesIO(data), weights_only=True), latent["samples"])


def test_views_of_one_storage_are_saved_apart() -> None:
    whole = random_tensor("float32", (4, 4))
    latent = {"samples": whole, "same": whole, "row": whole[1], "column": whole[:, 1], "turned": whole.T}
    assert_same(parse(to_bytes(latent), "safetensors", None)[0], latent)


@pytest.mark.parametrize("file_format", ["safetensors", "pt", "npy"])
@pytest.mark.parametrize("kind", ["conjugate", "negative", "parameter", "gradient"])
def test_lazy_and_trained_tensors(kind: str, file_format: str) -> None:
    """torch marks some tensors to be conjugated or negated later, without touching their bytes."""
    numbers = random_tensor("complex64", (2, 3)).nan_to_num()
    samples = {
        "conjugate": numbers.conj(),
        "negative": torch._neg_view(numbers.real.contiguous()),
        "parameter": torch.nn.Parameter(numbers.real.clone()),
        "gradient": numbers.real.clone().requires_grad_() * 2,
    }[kind]
    latent = {"samples": samples}
    data = to_bytes(latent) if file_format == "safetensors" else bare_tensor_content(latent, file_format)
    found = parse(data, file_format, None)[0]["samples"]
    assert not found.is_conj() and not found.is_neg()
    assert_same(found, samples.detach().resolve_conj().resolve_neg())


def test_a_view_of_a_large_storage_makes_a_small_pt() -> None:
    assert len(bare_tensor_content({"samples": torch.zeros(1 << 20)[:4]}, "pt")) < 5000


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    """Names and metadata are as documented, and the library itself reads them."""
    latent = {"samples": SAMPLES, "noise_mask": SAMPLES > 0, "batch_index": [3], "av": Nested([SAMPLES, SAMPLES + 1])}
    path = tmp_path / "a.safetensors"
    path.write_bytes(to_bytes(latent, prompt='{"1": {}}'))
    with safetensors.safe_open(path, "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
        assert_same(file.get_tensor("latent_tensor"), SAMPLES)
        assert file.get_tensor("latent_format_version_0").numel() == 0
    assert {"latent_tensor", "latent_format_version_0", "latent.noise_mask"} < names
    assert set(metadata) == {"prompt", "latent_structure", "tensor_sha256"}
    assert metadata["prompt"] == '{"1": {}}'
    assert metadata["tensor_sha256"] == hashlib.sha256(data_section(path.read_bytes())).hexdigest()
    structure = json.loads(metadata["latent_structure"])
    assert list(structure) == list(latent) and structure["batch_index"] == {"json": [3]}
    assert structure["samples"] == {"tensor": "latent_tensor"} and len(structure["av"]["nested"]) == 2


@given(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=8), st.integers(0, 5))
def test_every_tensor_is_aligned(dtypes: list[str], size: int) -> None:
    """A reader that maps the file may look at the numbers where they lie."""
    latent = {str(n): random_tensor(dtype, (size, n)) for n, dtype in enumerate(dtypes)} | {"samples": SAMPLES}
    data = to_bytes(latent)
    start = 8 + int.from_bytes(data[:8], "little")
    assert start % 8 == 0
    header = json.loads(data[8:start])
    for name, tensor in parse(data, "safetensors", None)[0].items():
        entry = header["latent_tensor" if name == "samples" else f"latent.{name}"]
        assert (start + entry["data_offsets"][0]) % min(8, tensor.element_size()) == 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_stock_latent_files(dtype: str) -> None:
    samples = random_tensor("float32", (1, 16, 1, 4, 4)).nan_to_num(0, 1, -1).clamp(-9, 9).to(getattr(torch, dtype))
    new = {"latent_tensor": samples, "latent_format_version_0": torch.tensor([])}
    for file_format in ("latent", "safetensors"):
        found, metadata = parse(file_of(new, {"prompt": "{}"}), file_format, None)
        assert_same(found, {"samples": samples.float()})
        assert metadata == {"prompt": "{}"}


def test_old_stock_latent_files_are_unscaled() -> None:
    """ComfyUI's first .latent files have no version tensor, and hold the numbers times 0.18215."""
    samples = torch.linspace(-4, 4, 64).reshape(1, 4, 4, 4)
    found, _ = parse(file_of({"latent_tensor": samples * 0.18215}), "latent", None)
    assert found["samples"].dtype == torch.float32
    torch.testing.assert_close(found["samples"], samples, rtol=1e-6, atol=1e-6)


def too_deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


ODD_VALUES: dict[str, Any] = {
    "function": print,
    "object": object(),
    "bytes": b"raw",
    "tuple": (1, 2),
    "set": {1},
    "nan": math.nan,
    "infinity": [1, math.inf],
    "number as key": {1: 2},
    "array": numpy.zeros(3),
    "numpy number": numpy.float64(1.0),
    "tensor in a list": [SAMPLES],
    "tensor in a dict": {"a": SAMPLES},
    "complex": 1j,
    "complex128": torch.zeros(2, dtype=torch.complex128),
    **NOT_PLAIN,
    "nested complex128": Nested([SAMPLES, torch.zeros(2, dtype=torch.complex128)]),
    "too deep": too_deep(),
    "endless": endless(),
    "huge number": 10**5000,
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("name", ODD_VALUES)
def test_values_that_safetensors_cannot_hold(name: str) -> None:
    """A huge number is JSON, and may be held; nothing else may, and nothing is dropped silently."""
    try:
        data = to_bytes({"samples": SAMPLES, "odd": ODD_VALUES[name]})
    except LatentEncoderError as error:
        assert error.code == "FORMAT_UNSUPPORTED" and "odd" in error.message
    else:
        assert name == "huge number"
        assert_same(parse(data, "safetensors", None)[0]["odd"], ODD_VALUES[name])


@pytest.mark.parametrize("name", ["complex128", "sparse", "sparse csr", "meta", "torch's nested", "array", "function"])
def test_samples_that_safetensors_cannot_hold(name: str) -> None:
    assert refusal({"samples": ODD_VALUES[name]}, "safetensors") == "FORMAT_UNSUPPORTED"


@pytest.mark.parametrize("file_format", ["pt", "npy"])
@pytest.mark.parametrize("name", ["sparse", "sparse csr", "meta", "torch's nested", "array", "function"])
def test_samples_that_are_no_bare_tensor(name: str, file_format: str) -> None:
    assert refusal({"samples": ODD_VALUES[name]}, file_format) == "FORMAT_UNSUPPORTED"
    assert refusal({"samples": Nested([SAMPLES])}, file_format) == "FORMAT_UNSUPPORTED"


@pytest.mark.parametrize("file_format", ["pt", "npy"])
@pytest.mark.parametrize("key", ["noise_mask", "batch_index", "", 3])
def test_keys_that_a_bare_tensor_cannot_hold(key: Any, file_format: str) -> None:
    with pytest.raises(LatentEncoderError) as caught:
        bare_tensor_content({"samples": SAMPLES, key: SAMPLES}, file_format)
    assert caught.value.code == "FORMAT_UNSUPPORTED" and str(key) in caught.value.message


def test_keys_that_are_no_text() -> None:
    for key in (1, None, ("a",), b"a"):
        assert refusal({"samples": SAMPLES, key: 1}, "safetensors") == "FORMAT_UNSUPPORTED"


@pytest.mark.parametrize("depth", [10, 100, 500, 800, 850, 900, 925, 950, 960, 970, 980, 990])
def test_what_was_saved_can_be_loaded_deeper_down(depth: int) -> None:
    """Python's JSON reader goes as deep as the stack leaves room; a host's stack differs from one call to the next."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    try:
        data = to_bytes({"samples": SAMPLES, "deep": value})
    except LatentEncoderError as error:
        assert error.code == "FORMAT_UNSUPPORTED" and depth > 20
        return

    def below(frames: int) -> dict[str, Any]:
        return below(frames - 1) if frames else parse(data, "safetensors", None)[0]

    assert below(100)["deep"] == value


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb"])
def test_broken_text_is_held_or_refused(text: str) -> None:
    """Lone surrogates, as Linux file names bring them, are no JSON text for safetensors: never an unreadable file."""
    latents: list[dict[str, Any]] = [{text: SAMPLES}, {text: 1}, {"a": text}, {"a": {text: [text]}}]
    for odd in latents:
        latent = odd | {"samples": SAMPLES}
        try:
            data = to_bytes(latent)
        except LatentEncoderError as error:
            assert error.code == "FORMAT_UNSUPPORTED"
        else:
            assert_same(parse(data, "safetensors", None)[0], latent)


@pytest.mark.parametrize("file_format", ["safetensors", "pt", "npy"])
def test_without_samples(file_format: str) -> None:
    assert refusal({}, file_format) in {"LATENT_INVALID", "FORMAT_UNSUPPORTED"}
    assert refusal({"samples": None}, file_format) in {"LATENT_INVALID", "FORMAT_UNSUPPORTED"}
    assert refusal({"samples": [1, 2]}, file_format) in {"LATENT_INVALID", "FORMAT_UNSUPPORTED"}


def test_a_subclass_of_dict_counts_as_the_dict_that_comes_back() -> None:
    latent = {"samples": SAMPLES, "settings": OrderedDict(b=1, a=[True, None])}
    found, _ = parse(to_bytes(latent), "safetensors", None)
    assert found["settings"] == {"b": 1, "a": [True, None]}


def test_nested_tensors_on_a_host_without_them() -> None:
    data = to_bytes({"samples": Nested([SAMPLES])})
    with pytest.raises(LatentEncoderError) as caught:
        parse(data, "safetensors", None)
    assert caught.value.code == "FORMAT_UNSUPPORTED" and "samples" in caught.value.message
