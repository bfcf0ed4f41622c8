"""A latent file as bytes without a place, placed later, and verified without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from comfyui.folders import mounted
from unit.latents_on_disk import LATENT, sidecar_of
from unit.odd_latents import assert_same

from latent_encoder.atomic_file import name_lock
from latent_encoder.errors import LatentEncoderError
from latent_encoder.latent_file import encode_latent, load_latent, place_latent, save_latent, verify_latent
from latent_encoder.latent_format import FILE_FORMATS

RECORD = {"request_id": "r-1", "vae_name": "some.safetensors", "megapixels": 0.5}


@pytest.mark.parametrize("file_format", FILE_FORMATS)
def test_bytes_are_placed_unchanged(tmp_path: Path, file_format: str) -> None:
    content, record = encode_latent(LATENT, file_format=file_format, record=RECORD)
    assert record["path"] is None and record["file_bytes"] == len(content)
    saved = place_latent(content, tmp_path / "sub", "r-1", record=record)
    assert saved.path == tmp_path / "sub" / f"r-1.{file_format}"
    assert saved.path.read_bytes() == content
    loaded = load_latent(saved.path)
    assert loaded.verified and loaded.record == saved.record
    assert loaded.record["request_id"] == "r-1"
    assert_same(loaded.latent, LATENT)
    assert verify_latent(saved.path) == saved.record


def test_a_taken_name_is_replaced_only_when_asked(tmp_path: Path) -> None:
    first, record = encode_latent(LATENT, file_format="safetensors", record=RECORD)
    place_latent(first, tmp_path, "a", record=record)
    second, other = encode_latent(LATENT, file_format="safetensors", record=RECORD | {"request_id": "r-2"})
    with pytest.raises(LatentEncoderError, match="FILE_EXISTS"):
        place_latent(second, tmp_path, "a", record=other)
    assert (tmp_path / "a.safetensors").read_bytes() == first
    place_latent(second, tmp_path, "a", record=other, overwrite=True)
    assert load_latent(tmp_path / "a.safetensors").record["request_id"] == "r-2"


@pytest.mark.parametrize("stem", ["../a", "a/b", "", ".a", "a\0"])
def test_a_stem_that_is_no_name(tmp_path: Path, stem: str) -> None:
    content, record = encode_latent(LATENT, file_format="npy")
    with pytest.raises(LatentEncoderError):
        place_latent(content, tmp_path, stem, record=record)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file_format", FILE_FORMATS)
def test_a_changed_file_does_not_verify(tmp_path: Path, file_format: str) -> None:
    path = save_latent(LATENT, tmp_path, "a", file_format=file_format).path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert verify_latent(path) is None
    sidecar_of(path).unlink()
    assert verify_latent(path) is None
    assert verify_latent(tmp_path / f"absent.{file_format}") is None


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LatentEncoderError) as caught:
        verify_latent(tmp_path / f"{'a' * 300}.safetensors")
    assert caught.value.code == "PATH_NOT_ALLOWED"


@pytest.mark.parametrize("file_format", FILE_FORMATS)
def test_a_lost_sidecar_is_written_again(tmp_path: Path, file_format: str) -> None:
    saved = save_latent(LATENT, tmp_path, "a", file_format=file_format, record=RECORD)
    sidecar_of(saved.path).unlink()
    found = verify_latent(saved.path)
    if file_format in ("pt", "npy"):  # no header: nothing to verify it by
        assert found is None
    else:
        assert found == saved.record
        assert load_latent(saved.path).verified


def test_the_header_has_the_last_word(tmp_path: Path) -> None:
    """The checksum covers the header; a sidecar can be edited."""
    path = save_latent(LATENT, tmp_path, "a", record=RECORD).path
    edited = json.loads(sidecar_of(path).read_text()) | {"vae_name": "another.safetensors", "image_name": "added.png"}
    sidecar_of(path).write_text(json.dumps(edited))
    record = load_latent(path).record
    assert record["vae_name"] == "some.safetensors"
    assert record["image_name"] == "added.png"
    assert verify_latent(path) == record


def test_verifying_needs_no_torch(tmp_path: Path) -> None:
    path = save_latent(LATENT, tmp_path, "a").path
    code = (
        "import sys; from pathlib import Path; from latent_encoder.latent_file import verify_latent; "
        "assert verify_latent(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[2], check=True)


def test_a_sidecar_that_cannot_be_written_again_is_no_reason_to_refuse(tmp_path: Path) -> None:
    saved = save_latent(LATENT, tmp_path / "a", "a", record=RECORD)
    sidecar_of(saved.path).unlink()
    with mounted(tmp_path / "b", "size=1m") as folder:
        copy = folder / "a_00001_.safetensors"
        copy.write_bytes(saved.path.read_bytes())
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        assert (verify_latent(copy) or {})["file_sha256"] == saved.record["file_sha256"]


def test_a_writer_between_file_and_sidecar_is_waited_for(tmp_path: Path) -> None:
    saved = save_latent(LATENT, tmp_path, "a", file_format="npy")
    sidecar, found = sidecar_of(saved.path), []
    content = sidecar.read_bytes()
    with name_lock(saved.path):
        sidecar.unlink()
        reader = threading.Thread(target=lambda: found.append(verify_latent(saved.path)))
        reader.start()
        reader.join(0.3)
        assert not found
        sidecar.write_bytes(content)
    reader.join()
    assert found == [saved.record]
