"""Latents on disk: damage of every kind is found."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unit import odd_latents
from unit.latents_on_disk import (
    FORMATS,
    LATENT,
    RECORD,
    SAMPLES,
    refusal,
    sidecar_of,
)
from unit.odd_latents import Nested, assert_same

from latent_encoder.errors import LatentEncoderError
from latent_encoder.latent_file import LoadedLatent, load_latent, save_latent
from latent_encoder.latent_format import data_section
from latent_encoder.models import LatentRecord

# Damage


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_flipped_bit_is_found_with_a_sidecar(file_format: str, tmp_path: Path) -> None:
    path = save_latent(LATENT, tmp_path, "a", file_format=file_format, record=RECORD).path
    whole = path.read_bytes()
    for position in range(0, len(whole), 1 + len(whole) // 100):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert refusal(path) == "LATENT_INVALID", f"byte {position}"
    path.write_bytes(whole)
    assert load_latent(path).verified


def test_every_flipped_number_is_found_by_the_header_alone(tmp_path: Path) -> None:
    path = save_latent(LATENT, tmp_path, "a").path
    sidecar_of(path).unlink()
    whole = path.read_bytes()
    start = len(whole) - len(data_section(whole))
    for position in range(start, len(whole), 5):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        assert refusal(path) == "LATENT_INVALID", f"byte {position}"


@pytest.mark.parametrize("with_sidecar", [True, False])
@pytest.mark.parametrize("file_format", FORMATS)
def test_truncated_and_lengthened(file_format: str, with_sidecar: bool, tmp_path: Path) -> None:
    path = save_latent(LATENT, tmp_path, "a", file_format=file_format).path
    whole = path.read_bytes()
    if not with_sidecar:
        sidecar_of(path).unlink()
    lengths = {0, 1, 7, 8, 9, 64, 128, len(whole) // 3, len(whole) // 2, len(whole) - SAMPLES.nbytes}
    lengths |= {len(whole) - SAMPLES.nbytes - 1, len(whole) - 64, len(whole) - 1}
    for length in lengths:
        path.write_bytes(whole[:length])
        assert refusal(path) == "LATENT_INVALID", f"{length} of {len(whole)} bytes"
    path.write_bytes(whole + b"\0")
    if with_sidecar or file_format in ("safetensors", "latent"):
        assert refusal(path) == "LATENT_INVALID"


SIDECARS = {
    "empty": b"",
    "cut": b'{"file_sha256": "abc',
    "no text": b"\xff\xfe\x00",
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "empty object": b"{}",
    "of another program": b'{"civitai": {"id": 3}, "base_model": "Qwen"}',
    "wrong types": b'{"file_sha256": 3, "latent_shape": "x"}',
    "no checksum": b'{"file_sha256": null, "schema_version": 1}',
    "too deep": b"[" * 200_000,
    "huge number": b'{"file_bytes": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("name", SIDECARS)
def test_a_broken_sidecar_leaves_the_latent_readable(name: str, tmp_path: Path) -> None:
    path = save_latent(LATENT, tmp_path, "a", record=RECORD).path
    sidecar_of(path).write_bytes(SIDECARS[name])
    loaded = load_latent(path)
    assert_same(loaded.latent, LATENT)
    assert not loaded.verified
    assert loaded.record["vae_name"] == RECORD["vae_name"], "the header still tells the record"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes among its files")
def test_a_sidecar_that_is_no_file(tmp_path: Path) -> None:
    """In a process of its own: a pipe may hold it for ever, and a device take the machine's memory."""
    paths = [save_latent(LATENT, tmp_path, name).path for name in ("folder", "pipe", "device", "loop")]
    sidecars = [sidecar_of(path) for path in paths]
    for sidecar in sidecars:
        sidecar.unlink()
    folder, pipe, device, loop = sidecars
    folder.mkdir()
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    loop.symlink_to(loop.name)
    command = "import sys, pathlib; from latent_encoder.latent_file import load_latent\n"
    command += "for name in sys.argv[1:]: print(load_latent(pathlib.Path(name)).verified)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    limits = f"ulimit -v {16 << 20}; exec " + '"$@"'
    process = ["bash", "-c", limits, "bash", sys.executable, "-c", command, *map(str, paths)]
    done = subprocess.run(process, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["False"] * 4, done.stderr


def test_what_is_no_latent_file(tmp_path: Path) -> None:
    for name in ("absent.safetensors", "absent/a.pt", "a.safetensors/b.npy"):
        assert refusal(tmp_path / name) == "LATENT_NOT_FOUND"
    for name in ("a.ckpt", "a", "a.safetensors.json", ".safetensors"):
        (tmp_path / name).write_bytes(b"x")
        assert refusal(tmp_path / name) in {"FORMAT_UNSUPPORTED", "LATENT_INVALID"}
    (tmp_path / "folder.pt").mkdir()
    assert refusal(tmp_path / "folder.pt") == "LATENT_INVALID"
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    assert refusal(tmp_path / "loop.pt") == "LATENT_INVALID"
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe.npy")
        assert refusal(tmp_path / "pipe.npy") == "LATENT_INVALID"
        (tmp_path / "zero.latent").symlink_to("/dev/zero")
        assert refusal(tmp_path / "zero.latent") == "LATENT_INVALID"


def whole_files() -> dict[str, list[bytes]]:
    """Small files of each format to damage."""
    import tempfile

    latent = LATENT | {"noise_mask": SAMPLES > 0, "batch_index": [1], "av": Nested([SAMPLES])}
    legacy = io.BytesIO()
    torch.save(SAMPLES, legacy, _use_new_zipfile_serialization=False)
    with tempfile.TemporaryDirectory() as folder:
        data = {
            name: [save_latent(LATENT, Path(folder), "a", file_format=name, record=RECORD).path.read_bytes()]
            for name in FORMATS
        }
        data["safetensors"].append(save_latent(latent, Path(folder), "b", record=RECORD).path.read_bytes())
    data["pt"].append(legacy.getvalue())
    return data


WHOLE = whole_files()


@st.composite
def damaged_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A format, and a file of it (or, seldom, of another one) with some bytes changed, cut out or put in."""
    file_format = draw(st.sampled_from(FORMATS))
    source = draw(st.sampled_from([file_format] * 5 + list(FORMATS)))
    data = bytearray(draw(st.sampled_from(WHOLE[source])))
    for _ in range(draw(st.integers(1, 4))):
        # Most of what can go wrong stands at the beginning.
        position = draw(st.integers(0, len(data)) | st.integers(0, min(len(data), 700)))
        length = draw(st.integers(0, 16) | st.integers(0, len(data)))
        data[position : position + length] = draw(st.binary(max_size=16) | st.just(bytes(length)))
    return file_format, bytes(data)


@given(damaged=damaged_files() | st.tuples(st.sampled_from(FORMATS), st.binary(max_size=400)))
@settings(max_examples=250)
@pytest.mark.filterwarnings("ignore")
def test_only_our_errors_come_out(damaged: tuple[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    file_format, data = damaged
    path = tmp_path_factory.getbasetemp() / f"damaged.{file_format}"
    path.write_bytes(data)
    try:
        loaded = load_latent(path, nested=Nested)
    except LatentEncoderError as error:
        assert error.code in {"LATENT_INVALID", "FORMAT_UNSUPPORTED"}
    else:
        check_usable(loaded)


header_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "F8_E8M0", "C64", "f32", "", None, 3]),
        "shape": st.just([4]) | st.lists(st.integers(-1, 2**63), max_size=3) | st.none(),
        "data_offsets": st.just([0, 16]) | st.lists(st.integers(-1, 40), max_size=3) | st.none(),
    }
)
structures = st.dictionaries(
    st.sampled_from(["samples", "x"]),
    st.dictionaries(
        st.sampled_from(["tensor", "nested", "json", "other"]),
        st.sampled_from(["latent_tensor", ["latent_tensor"], [], "absent", None, 3, [["latent_tensor"]]]),
        max_size=2,
    )
    | odd_latents.json_values,
    max_size=2,
)
json_texts = odd_latents.json_values.map(json.dumps)
header_metadata = st.fixed_dictionaries(
    {},
    optional={
        "latent_structure": structures.map(json.dumps) | json_texts | odd_latents.texts,
        "latent_record": st.dictionaries(st.sampled_from(list(LatentRecord.model_fields)), odd_latents.json_values).map(
            json.dumps
        )
        | json_texts
        | odd_latents.texts,
        "tensor_sha256": odd_latents.texts,
        "prompt": odd_latents.json_values,
    },
)


@given(
    st.dictionaries(st.sampled_from(["latent_tensor", "x"]), header_entries | odd_latents.json_values),
    header_metadata | odd_latents.json_values,
)
@settings(max_examples=250)
def test_only_our_errors_come_out_of_odd_headers(entries: dict[str, Any], metadata: Any) -> None:
    import tempfile

    text = json.dumps({"__metadata__": metadata} | entries).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
        try:
            loaded = load_latent(path, nested=Nested)
        except LatentEncoderError as error:
            assert error.code == "LATENT_INVALID"
        else:
            check_usable(loaded)


def check_usable(loaded: LoadedLatent) -> None:
    """What was loaded is a LATENT: numbers in ``samples``, and a record that is JSON."""
    samples = loaded.latent["samples"]
    parts = samples.parts if isinstance(samples, Nested) else [samples]
    assert parts and all(isinstance(part, torch.Tensor) for part in parts)
    json.dumps(loaded.record)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on a process's memory")
def test_loading_takes_memory_by_the_file_not_by_the_limit(tmp_path: Path) -> None:
    import resource

    path = save_latent(LATENT, tmp_path, "a").path
    load_latent(path)  # all is imported
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), before[1]))
    try:
        assert load_latent(path).verified
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_pt_files_that_say_more_than_they_hold(tmp_path: Path) -> None:
    """1 kB that claims a million million numbers, or that unpacks to many MB, is refused before it costs memory."""
    expanded, packed = tmp_path / "expanded.pt", tmp_path / "packed.pt"
    torch.save(torch.zeros(1).expand(1_000_000, 1_000_000), expanded)
    assert refusal(expanded) == "LATENT_INVALID"
    buffer = io.BytesIO()
    torch.save(torch.zeros(1 << 20), buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert refusal(packed) == "LATENT_INVALID"


def test_a_parameter_comes_back_as_a_plain_tensor(tmp_path: Path) -> None:
    torch.save(torch.nn.Parameter(SAMPLES.clone()), tmp_path / "a.pt")
    samples = load_latent(tmp_path / "a.pt").latent["samples"]
    assert type(samples) is torch.Tensor and not samples.requires_grad
    assert_same({"samples": samples}, LATENT)


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = save_latent(LATENT, tmp_path, "a").path
    record = json.loads(sidecar_of(path).read_text()) | {"schema_version": 2}
    sidecar_of(path).write_text(json.dumps(record))
    assert refusal(path) == "FORMAT_UNSUPPORTED"
