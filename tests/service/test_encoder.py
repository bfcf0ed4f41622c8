"""What the doors share: one request, one file, one answer. On the embedded engine with VAEs that take no time."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pictures
import pytest
from comfyui.folders import mounted

from latent_encoder.latent_file import load_latent
from latent_encoder.latent_format import FILE_FORMATS
from latent_encoder.models import EncodeRequest, EncodeResponse
from latent_encoder.service.config import Settings
from latent_encoder.service.encoder import Encoder
from latent_encoder.service.engines import make_engine
from latent_encoder.service.engines.base import Call
from latent_encoder.service.engines.embedded import EmbeddedEngine

ASSETS = Path(__file__).resolve().parents[2] / "assets"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    (models / "vae").mkdir()
    shutil.copy(ASSETS / "demo_vae.safetensors", models / "vae")
    return models


@pytest.fixture(scope="module")
def engine(models: Path) -> Iterator[EmbeddedEngine]:
    engine = EmbeddedEngine(models)
    engine.start()
    yield engine
    engine.close()


@pytest.fixture
def encoder(engine: EmbeddedEngine, tmp_path: Path) -> Encoder:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(pictures.png())
    return Encoder(engine, settings_for(tmp_path))


def settings_for(folder: Path) -> Settings:
    return Settings(
        input_roots=[folder / "in"], output_dir=folder / "out", output_roots=[folder / "out"], state_dir=folder / "s"
    )


def request(folder: Path, request_id: str = "r-1", **fields: Any) -> EncodeRequest:
    defaults = {"image_path": str(folder / "in" / "a.png"), "vae_model_name": "pixel_space", "megapixels": 0.01}
    return EncodeRequest(request_id=request_id, **(defaults | fields))


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []


def done(response: EncodeResponse) -> dict[str, Any]:
    assert response.status == "success", response
    return response.metadata


@pytest.mark.parametrize("file_format", FILE_FORMATS)
def test_a_request_is_answered_with_its_file(encoder: Encoder, tmp_path: Path, file_format: str) -> None:
    wanted = request(tmp_path, file_format=file_format, correlation_id="c", output_dir=str(tmp_path / "out" / "sub"))
    response = encoder.encode_image_to_latent(wanted)
    record = done(response)
    path = tmp_path / "out" / "sub" / f"r-1.{file_format}"
    assert (response.request_id, response.correlation_id) == ("r-1", "c")
    assert response.latent_file_path == record["path"] == str(path)
    assert record["image_sha256"] == hashlib.sha256(pictures.png()).hexdigest()
    assert record["image_name"] == wanted.image_path
    assert record["request_id"] == "r-1" and record["type"] is None and record["engine"] == "embedded"
    assert record["reused"] is False
    assert record["processing_time_ms"] > 0 and record["queue_time_ms"] == 0
    loaded = load_latent(path)
    assert loaded.verified
    assert list(loaded.latent["samples"].shape) == response.latent_shape
    assert {key: record[key] for key in loaded.record} == loaded.record
    assert files_in(tmp_path / "out") == [path.name, f"{path.name}.json"]


@pytest.mark.parametrize("file_format", FILE_FORMATS)
def test_a_repeated_id_is_answered_from_its_file(encoder: Encoder, tmp_path: Path, file_format: str) -> None:
    first = done(encoder.encode_image_to_latent(request(tmp_path, file_format=file_format)))
    again = done(encoder.encode_image_to_latent(request(tmp_path, file_format=file_format)))
    assert again["reused"] is True
    times = ("reused", "processing_time_ms", "queue_time_ms")
    assert {k: v for k, v in again.items() if k not in times} == {k: v for k, v in first.items() if k not in times}
    (tmp_path / "in" / "a.png").unlink()
    assert done(encoder.encode_image_to_latent(request(tmp_path, file_format=file_format)))["reused"] is True


@pytest.mark.parametrize(
    "other",
    [
        {"vae_model_name": "demo_vae.safetensors"},
        {"upscale_method": "area"},
        {"megapixels": 0.02},
        {"resolution_steps": 8},
        {"file_format": "npy"},
        {"image_path": "b.png"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_an_id_with_other_contents_is_a_conflict(encoder: Encoder, tmp_path: Path, other: dict[str, Any]) -> None:
    (tmp_path / "in" / "b.png").write_bytes(pictures.png(seed=1))
    if "image_path" in other:
        other = {"image_path": str(tmp_path / "in" / "b.png")}
    done(encoder.encode_image_to_latent(request(tmp_path)))
    before = files_in(tmp_path / "out")
    response = encoder.encode_image_to_latent(request(tmp_path, **other))
    assert response.error_code == "REQUEST_ID_CONFLICT"
    assert files_in(tmp_path / "out") == before


def test_one_id_at_once_is_encoded_once(encoder: Encoder, tmp_path: Path) -> None:
    answers = together(encoder, [request(tmp_path, megapixels=1.0) for _ in range(6)])
    assert sorted(done(answer)["reused"] for answer in answers) == [False, True, True, True, True, True]
    assert len({answer.metadata["file_sha256"] for answer in answers}) == 1
    assert not encoder._names._held


@pytest.mark.parametrize("file_format", ["safetensors", "npy"])
def test_the_first_of_two_services_wins(
    engine: EmbeddedEngine, encoder: Encoder, tmp_path: Path, file_format: str
) -> None:
    """They share a folder, but not the lock on the name."""
    others = [Encoder(engine, settings_for(tmp_path)) for _ in range(3)]
    answers = together([encoder, *others], [request(tmp_path, megapixels=0.1, file_format=file_format)] * 4)
    assert len({done(answer)["file_sha256"] for answer in answers}) == 1
    assert [answer.metadata["reused"] for answer in answers].count(False) == 1
    assert files_in(tmp_path / "out") == [f"r-1.{file_format}", f"r-1.{file_format}.json"]


def together(encoders: Encoder | list[Encoder], requests: list[EncodeRequest]) -> list[EncodeResponse]:
    answers = []
    each = encoders if isinstance(encoders, list) else [encoders] * len(requests)
    threads = [
        threading.Thread(target=lambda e=encoder, r=request: answers.append(e.encode_image_to_latent(r)))
        for encoder, request in zip(each, requests, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_a_broken_file_is_made_again(encoder: Encoder, tmp_path: Path) -> None:
    record = done(encoder.encode_image_to_latent(request(tmp_path)))
    path = Path(record["path"])
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    again = done(encoder.encode_image_to_latent(request(tmp_path)))
    assert again["reused"] is False
    assert load_latent(path).verified


@pytest.mark.parametrize("content", [b"notes", b"", b"\x02\0\0\0\0\0\0\0{}"], ids=["text", "empty", "safetensors"])
def test_a_file_of_somebody_else_is_kept(encoder: Encoder, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "out" / "sub").mkdir(parents=True)
    for path in (tmp_path / "out" / "r-1.safetensors", tmp_path / "out" / "sub" / "a.png.safetensors"):
        path.write_bytes(content)
    (tmp_path / "out" / "r-2.safetensors").symlink_to(tmp_path / "in" / "a.png")
    answers = [encoder.encode_image_to_latent(request(tmp_path, request_id)) for request_id in ("r-1", "r-2")]
    answers.append(encoder.encode_named(tmp_path / "in" / "a.png", "sub/a.png", request(tmp_path)))
    assert [answer.error_code for answer in answers] == ["FILE_EXISTS", "PATH_NOT_ALLOWED", "FILE_EXISTS"]
    assert (tmp_path / "out" / "r-1.safetensors").read_bytes() == content
    assert (tmp_path / "out" / "sub" / "a.png.safetensors").read_bytes() == content
    assert (tmp_path / "out" / "r-2.safetensors").is_symlink()


def test_a_file_whose_sidecar_a_crash_has_lost_still_answers(encoder: Encoder, tmp_path: Path) -> None:
    record = done(encoder.encode_image_to_latent(request(tmp_path)))
    sidecar = Path(record["path"] + ".json")
    sidecar.unlink()
    again = done(encoder.encode_image_to_latent(request(tmp_path)))
    assert again["reused"] is True and again["file_sha256"] == record["file_sha256"]
    assert sidecar.exists()


def test_an_upload_is_read_where_it_was_put(encoder: Encoder, tmp_path: Path) -> None:
    upload = tmp_path / "uploads" / "1"
    upload.parent.mkdir()
    upload.write_bytes(pictures.png(seed=3))
    record = done(encoder.encode_image_to_latent(request(tmp_path, image_path="shop/photo.png"), upload=upload))
    assert record["image_name"] == "shop/photo.png"
    assert record["image_sha256"] == hashlib.sha256(pictures.png(seed=3)).hexdigest()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_path", "/etc/passwd"),
        ("image_path", "{}/in/../in/a.png"),
        ("image_path", "..\\a.png"),
        ("image_path", "{}/in/a\0.png"),
        ("image_path", "{}/in/link.png"),
        ("image_path", "/dev/zero"),
        ("image_path", "{}/in/" + "a" * 300 + ".png/../b"),
        ("output_dir", "{}"),
        ("output_dir", "{}/out/../x"),
        ("output_dir", "{}/out/link"),
        ("output_dir", "/"),
        ("output_dir", "{}/out\0"),
    ],
)
def test_nothing_outside_the_roots(encoder: Encoder, tmp_path: Path, field: str, value: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(pictures.png())
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "out" / "link").symlink_to(tmp_path / "elsewhere")
    response = encoder.encode_image_to_latent(request(tmp_path, **{field: value.format(tmp_path)}))
    assert response.error_code == "PATH_NOT_ALLOWED"
    assert response.error_message and field in response.error_message
    assert files_in(tmp_path / "out") == [] and files_in(tmp_path / "elsewhere") == ["a.png"]


@pytest.mark.parametrize("name", pictures.bad())
def test_a_broken_picture_is_refused(encoder: Encoder, tmp_path: Path, name: str) -> None:
    picture = pictures.bad()[name]
    path = tmp_path / "in" / picture.filename
    path.write_bytes(picture.data)
    response = encoder.encode_image_to_latent(request(tmp_path, image_path=str(path), vae_model_name="no.safetensors"))
    assert (response.error_code, response.retryable) == (picture.code, False)
    assert response.error_message and response.error_hint
    assert files_in(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"image_path": "{}/in/none.png"}, "IMAGE_NOT_FOUND"),
        ({"image_path": "{}/in"}, "IMAGE_INVALID"),
        ({"image_path": "{}/in/"}, "IMAGE_NOT_FOUND"),
        ({"image_path": "{}/in/a.png/"}, "IMAGE_NOT_FOUND"),
        ({"image_path": "{}/in/" + "a" * 300}, "PATH_NOT_ALLOWED"),
        ({"image_path": "{}/in/" + "a/" * 2500}, "IMAGE_NOT_FOUND"),
        ({"image_path": "{}/in/" + "a/" * 2500 + "a.png"}, "PATH_NOT_ALLOWED"),
        ({"vae_model_name": "no_such_vae.safetensors"}, "VAE_MODEL_NOT_FOUND"),
        ({"vae_model_name": "../a.safetensors"}, "PATH_NOT_ALLOWED"),
        ({"resolution_steps": 256}, "SCALING_FAILED"),
    ],
)
def test_what_cannot_be_encoded(encoder: Encoder, tmp_path: Path, fields: dict[str, Any], code: str) -> None:
    fields = {key: value.format(tmp_path) if isinstance(value, str) else value for key, value in fields.items()}
    response = encoder.encode_image_to_latent(request(tmp_path, **fields))
    assert response.error_code == code, response
    assert files_in(tmp_path / "out") == []


def test_a_deadline_that_has_passed(encoder: Encoder, tmp_path: Path) -> None:
    passed = datetime.now(timezone.utc) - timedelta(seconds=1)
    response = encoder.encode_image_to_latent(request(tmp_path, deadline=passed))
    assert (response.error_code, response.retryable) == ("TIMEOUT", False)
    assert files_in(tmp_path / "out") == []
    late = encoder.encode_image_to_latent(request(tmp_path), call=Call(timeout=0))
    assert (late.error_code, late.retryable) == ("TIMEOUT", True)  # the next caller may have more time
    later = datetime.now(timezone(timedelta(hours=5))) + timedelta(seconds=60)
    done(encoder.encode_image_to_latent(request(tmp_path, deadline=later)))


def test_a_caller_who_has_gone(encoder: Encoder, tmp_path: Path) -> None:
    call = Call()
    call.cancel()
    assert encoder.encode_image_to_latent(request(tmp_path), call=call).error_code == "INTERRUPTED"
    assert files_in(tmp_path / "out") == []


def test_a_caller_who_goes_while_another_holds_the_id(encoder: Encoder, tmp_path: Path) -> None:
    call = Call(timeout=0.3)
    with encoder._names.hold(tmp_path / "out" / "r-1", Call()):
        assert encoder.encode_image_to_latent(request(tmp_path), call=call).error_code == "TIMEOUT"


def test_a_workflow_is_never_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no ComfyUI is found, a user's workflow is no reason to encode otherwise."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("PWD", str(tmp_path))
    api = ASSETS.parent / "workflows" / "api" / "encode.json"
    assert make_engine(settings_for(tmp_path)).name == "embedded"
    assert make_engine(settings_for(tmp_path).model_copy(update={"workflow": api})).name == "comfyui"


def test_setting_the_clock_changes_no_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call(timeout=60)
    monkeypatch.setattr("time.time", lambda: 4e9)
    call.check()
    assert 59 < (call.remaining() or 0) <= 60


def test_a_full_disk_and_one_that_is_gone(encoder: Encoder, tmp_path: Path) -> None:
    with mounted(tmp_path / "out", "size=512k"):
        response = encoder.encode_image_to_latent(request(tmp_path, megapixels=1.0))
        assert (response.error_code, response.retryable) == ("DISK_FULL", True)
        assert files_in(tmp_path / "out") == []
        done(encoder.encode_image_to_latent(request(tmp_path, megapixels=0.01, file_format="npy")))
    with mounted(tmp_path / "out", "ro,size=64k"):
        assert encoder.encode_image_to_latent(request(tmp_path)).error_code == "OUTPUT_DIR_NOT_WRITABLE"
    (tmp_path / "out").rmdir()
    done(encoder.encode_image_to_latent(request(tmp_path)))  # made again
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").write_text("a file")
    response = encoder.encode_image_to_latent(request(tmp_path))
    assert (response.error_code, response.retryable) == ("OUTPUT_DIR_NOT_WRITABLE", False)


def test_a_folder_in_the_place_of_the_file(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "out" / "r-1.safetensors").mkdir(parents=True)
    response = encoder.encode_image_to_latent(request(tmp_path))
    assert (response.error_code, response.retryable) == ("FILE_EXISTS", False)


def named(encoder: Encoder, folder: Path, name: str = "sub/a.png", **fields: Any) -> dict[str, Any]:
    return done(encoder.encode_named(folder / "in" / "a.png", name, request(folder, **fields)))


def test_a_run_of_many_skips_what_is_there(encoder: Encoder, tmp_path: Path) -> None:
    record = named(encoder, tmp_path)
    assert record["path"] == str(tmp_path / "out" / "sub" / "a.png.safetensors")
    assert (record["subfolder"], record["request_id"], record["reused"]) == ("sub", None, False)
    assert named(encoder, tmp_path, request_id="r-2")["reused"] is True


def test_a_run_of_many_makes_again_what_differs(encoder: Encoder, tmp_path: Path) -> None:
    first = named(encoder, tmp_path)
    for other in ({"megapixels": 0.02}, {"upscale_method": "area"}, {"vae_model_name": "demo_vae.safetensors"}):
        assert named(encoder, tmp_path, **other)["reused"] is False
        assert named(encoder, tmp_path, **other)["reused"] is True
    (tmp_path / "in" / "a.png").write_bytes(pictures.png(seed=5))
    assert named(encoder, tmp_path)["image_sha256"] != first["image_sha256"]
    path = Path(first["path"])
    path.write_bytes(path.read_bytes()[:100])
    assert named(encoder, tmp_path)["reused"] is False
    assert files_in(tmp_path / "out") == ["a.png.safetensors", "a.png.safetensors.json"]


def test_a_run_of_many_sees_another_vae_file_of_that_name(models: Path, encoder: Encoder, tmp_path: Path) -> None:
    vae = models / "vae" / "other.safetensors"
    data = (ASSETS / "demo_vae.safetensors").read_bytes()
    vae.write_bytes(data)
    fields = {"vae_model_name": "other.safetensors"}
    assert named(encoder, tmp_path, **fields)["reused"] is False
    length = int.from_bytes(data[:8], "little")
    vae.write_bytes((length + 8).to_bytes(8, "little") + data[8 : 8 + length] + b" " * 8 + data[8 + length :])
    assert named(encoder, tmp_path, **fields)["reused"] is False
    assert named(encoder, tmp_path, **fields)["reused"] is True


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "", ".a.png", "a/../b.png", "a" * 300])
def test_a_name_that_leaves_the_folder(encoder: Encoder, tmp_path: Path, name: str) -> None:
    response = encoder.encode_named(tmp_path / "in" / "a.png", name, request(tmp_path))
    assert response.error_code in ("PATH_NOT_ALLOWED", "INVALID_REQUEST")
    assert files_in(tmp_path) == ["a.png"]
