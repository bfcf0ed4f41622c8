"""Latents on disk: the round trip, names and sidecars."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unit import odd_latents
from unit.latents_on_disk import (
    FORMATS,
    LATENT,
    NOT_IN_HEADER,
    RECORD,
    SAMPLES,
    names_in,
    refused_save,
    sidecar_of,
)
from unit.odd_latents import Nested, assert_same

from latent_encoder.atomic_file import TEMPORARY_PREFIX
from latent_encoder.errors import LatentEncoderError
from latent_encoder.latent_file import load_latent, save_latent
from latent_encoder.latent_format import data_section
from latent_encoder.models import LatentRecord

# The round trip


@given(latent=odd_latents.latents, file_format=st.sampled_from(["safetensors", "latent"]))
@settings(max_examples=60)
def test_round_trip(latent: dict[str, Any], file_format: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("round trip")
    saved = save_latent(latent, folder, "a", file_format=file_format)
    loaded = load_latent(saved.path, nested=Nested)
    assert loaded.verified and loaded.record == saved.record
    assert_same(loaded.latent, latent)
    samples = latent["samples"]
    shape = [list(part.shape) for part in samples.parts] if isinstance(samples, Nested) else list(samples.shape)
    assert saved.record["latent_shape"] == shape
    assert len(safetensors.torch.load_file(saved.path)) >= 2


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_record_in_sidecar_header_and_answer(file_format: str, tmp_path: Path) -> None:
    metadata = {"prompt": '{"1": 2}', "workflow": "{}", "latent_record": "forged", "tensor_sha256": "forged"}
    saved = save_latent(
        LATENT, tmp_path / "new" / "folder", "a", file_format=file_format, record=RECORD, metadata=metadata
    )
    path, data = saved.path, saved.path.read_bytes()
    assert path == tmp_path / "new" / "folder" / f"a_00001_.{file_format}"
    assert list(saved.record) == list(LatentRecord.model_fields)
    assert json.loads(sidecar_of(path).read_bytes()) == saved.record == json.loads(json.dumps(saved.record))
    known = {
        "path": str(path),
        "filename": path.name,
        "file_format": file_format,
        "file_bytes": len(data),
        "file_sha256": hashlib.sha256(data).hexdigest(),
        "latent_shape": [1, 4, 6, 8],
        "latent_dtype": "float32",
        "latent_channels": 4,
        "original_size": [1024, 768],
        "schema_version": 1,
    }
    assert {key: saved.record[key] for key in known} == known
    assert saved.record["image_name"] == RECORD["image_name"] and saved.record["created_at"].startswith("2026-01-02")
    loaded = load_latent(path)
    assert loaded.verified and loaded.record == saved.record
    assert_same(loaded.latent, LATENT)
    if file_format in ("safetensors", "latent"):
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata()
        assert header["prompt"] == '{"1": 2}' and header["workflow"] == "{}"
        assert header["tensor_sha256"] == hashlib.sha256(data_section(data)).hexdigest()
        in_header = json.loads(header["latent_record"])
        assert in_header == {key: value for key, value in saved.record.items() if key not in NOT_IN_HEADER}


def test_the_two_safetensors_suffixes_hold_the_same_bytes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"record": RECORD, "if_exists": "fail"}
    first = save_latent(LATENT, tmp_path, "a", file_format="safetensors", **options).path.read_bytes()
    second = save_latent(LATENT, tmp_path, "a", file_format="latent", **options).path.read_bytes()
    assert bytes(data_section(first)) == bytes(data_section(second))
    headers = [json.loads(data[8 : len(data) - len(data_section(data))]) for data in (first, second)]
    records = [json.loads(header["__metadata__"].pop("latent_record")) for header in headers]
    assert headers[0] == headers[1]
    assert {key for key in records[0] if records[0][key] != records[1][key]} == {"file_format"}


def test_without_a_sidecar_the_header_tells_the_record(tmp_path: Path) -> None:
    path = save_latent(LATENT, tmp_path, "a", record=RECORD).path
    sidecar_of(path).unlink()
    moved = path.rename(tmp_path / "moved.SAFETENSORS")
    loaded = load_latent(moved)
    assert not loaded.verified
    assert loaded.record["vae_name"] == RECORD["vae_name"] and loaded.record["filename"] == "moved.SAFETENSORS"
    assert loaded.record["file_sha256"] == hashlib.sha256(moved.read_bytes()).hexdigest()
    assert loaded.record["latent_shape"] == [1, 4, 6, 8]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("suffix", ["latent", "safetensors"])
def test_stock_files(old: bool, suffix: str, tmp_path: Path) -> None:
    samples = torch.linspace(-4, 4, 64).reshape(1, 4, 4, 4)
    tensors = {"latent_tensor": samples * 0.18215} if old else {"latent_tensor": samples}
    if not old:
        tensors["latent_format_version_0"] = torch.tensor([])
    path = tmp_path / f"ComfyUI_00001_.{suffix}"
    safetensors.torch.save_file(tensors, path, metadata={"prompt": "{}"})
    loaded = load_latent(path)
    torch.testing.assert_close(loaded.latent["samples"], samples, rtol=1e-6, atol=1e-6)
    assert not loaded.verified and loaded.record["vae_name"] is None
    assert (loaded.record["latent_shape"], loaded.record["latent_channels"]) == ([1, 4, 4, 4], 4)


# Names


@pytest.mark.parametrize("file_format", FORMATS)
def test_names(file_format: str, tmp_path: Path) -> None:
    def save(if_exists: str, **options: Any) -> str:
        saved = save_latent(LATENT, tmp_path, "größe 猫", file_format=file_format, if_exists=if_exists, **options)
        return saved.path.name

    assert save("number") == f"größe 猫_00001_.{file_format}"
    assert save("number") == f"größe 猫_00002_.{file_format}"
    assert save("number", first_number=12) == f"größe 猫_00012_.{file_format}"
    assert save("number") == f"größe 猫_00003_.{file_format}"
    assert save("number", first_number=99999) == f"größe 猫_99999_.{file_format}"
    assert save("number", first_number=99999) == f"größe 猫_100000_.{file_format}"
    assert save("fail") == save("overwrite") == f"größe 猫.{file_format}"
    assert refused_save(tmp_path, stem="größe 猫", file_format=file_format, if_exists="fail") == "FILE_EXISTS"


def test_numbering_passes_by_whatever_has_the_name(tmp_path: Path) -> None:
    (tmp_path / "a_00001_.safetensors").mkdir()
    (tmp_path / "a_00002_.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a_00003_.safetensors").write_bytes(b"")
    assert save_latent(LATENT, tmp_path, "a").path.name == "a_00004_.safetensors"


def test_overwriting_replaces_sidecar_and_preview(tmp_path: Path) -> None:
    first = save_latent(LATENT, tmp_path, "a", if_exists="overwrite", preview=b"old")
    assert (tmp_path / "a.safetensors.webp").read_bytes() == b"old"
    other = {"samples": SAMPLES.flip(3)}
    second = save_latent(other, tmp_path, "a", if_exists="overwrite")
    assert names_in(tmp_path) == {"a.safetensors", "a.safetensors.json"}
    assert second.path == first.path and second.record["file_sha256"] != first.record["file_sha256"]
    assert load_latent(second.path).verified
    assert_same(load_latent(second.path).latent, other)


def test_overwriting_a_link_replaces_the_link(tmp_path: Path) -> None:
    """Never the file that it leads to."""
    target = tmp_path / "elsewhere.bin"
    target.write_bytes(b"precious")
    (tmp_path / "a.safetensors").symlink_to(target)
    (tmp_path / "a.safetensors.json").symlink_to(target)
    save_latent(LATENT, tmp_path, "a", if_exists="overwrite")
    assert target.read_bytes() == b"precious" and load_latent(tmp_path / "a.safetensors").verified


@pytest.mark.parametrize("length", [223, 224, 250, 255, 300])
def test_long_names(length: int, tmp_path: Path) -> None:
    """All that is placed beside a file must have room for its name too: 223 bytes are left for the stem."""
    for stem in ("x" * length, "猫" * (length // 3)):
        for if_exists in ("number", "overwrite"):
            try:
                saved = save_latent(LATENT, tmp_path, stem, if_exists=if_exists, file_format="pt", preview=b"p")
            except LatentEncoderError as error:
                assert error.code == "PATH_NOT_ALLOWED"
                assert len(stem.encode()) > 223
            else:
                assert load_latent(saved.path).verified
    assert not [name for name in names_in(tmp_path) if name.startswith(TEMPORARY_PREFIX)]


@pytest.mark.parametrize(
    "stem", ["", " ", ".", "..", ".hidden", "../a", "a/b", "sub/../../a", "absolute", "a\0b", "\ud800", "a\udcff"]
)
def test_stems_that_name_no_file_here(stem: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    stem = str(tmp_path / "elsewhere") if stem == "absolute" else stem
    for if_exists in ("number", "overwrite", "fail"):
        assert refused_save(folder, stem=stem, if_exists=if_exists) in {"INVALID_REQUEST", "PATH_NOT_ALLOWED"}
    assert names_in(tmp_path) == {"folder"} and not names_in(folder / "sub")


def test_choices(tmp_path: Path) -> None:
    assert refused_save(tmp_path, file_format="ckpt") == "INVALID_REQUEST"
    assert refused_save(tmp_path, file_format="Safetensors") == "INVALID_REQUEST"
    assert refused_save(tmp_path, if_exists="append") == "INVALID_REQUEST"


def test_latents_that_a_format_cannot_hold_leave_nothing(tmp_path: Path) -> None:
    assert refused_save(tmp_path, LATENT | {"callback": print}) == "FORMAT_UNSUPPORTED"
    assert refused_save(tmp_path, LATENT | {"noise_mask": SAMPLES}, file_format="pt") == "FORMAT_UNSUPPORTED"
    assert refused_save(tmp_path, {"samples": SAMPLES.bfloat16()}, file_format="npy") == "FORMAT_UNSUPPORTED"
    assert refused_save(tmp_path, {"samples": Nested([SAMPLES])}, file_format="pt") == "FORMAT_UNSUPPORTED"
    assert refused_save(tmp_path, {"noise_mask": SAMPLES}) == "LATENT_INVALID"
    assert not names_in(tmp_path)


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb"])
def test_broken_text_in_metadata_and_record(text: str, tmp_path: Path) -> None:
    """Whatever is done with it, a file that was saved can be loaded."""
    options: list[dict[str, Any]] = [{"metadata": {"workflow": text}}, {"metadata": {text: "x"}}]
    options += [{"record": {"image_name": text}}, {"record": {"vae_name": text}}]
    for option in options:
        try:
            saved = save_latent(LATENT, tmp_path, "a", **option)
        except LatentEncoderError:
            continue
        assert load_latent(saved.path).verified


def test_a_header_that_no_reader_takes_is_not_written(tmp_path: Path) -> None:
    """safetensors reads headers of at most 100 MB."""
    assert refused_save(tmp_path, metadata={"workflow": "x" * 100_000_001}) in {"FORMAT_UNSUPPORTED", "INVALID_REQUEST"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff\xfe")
    try:
        saved = save_latent(LATENT, folder, "a")
    except LatentEncoderError as error:
        assert error.code == "PATH_NOT_ALLOWED" and not (folder.is_dir() and names_in(folder))
    else:
        assert load_latent(saved.path).verified
