"""The engine that needs no ComfyUI: one picture, many threads, few VAEs, and callers that go away."""

from __future__ import annotations

import os
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import diffusers
import pictures
import pytest
import torch
from comfyui.servers import demo_vae
from PIL import Image
from safetensors.torch import load_file, save_file
from service.encode_jobs import job_of_bytes as job
from service.encode_jobs import samples

from latent_encoder import __version__, fast_encoder
from latent_encoder.checksum import file_sha256
from latent_encoder.errors import LatentEncoderError
from latent_encoder.images import UPSCALE_METHODS, decode_image
from latent_encoder.latent_file import load_latent, place_latent
from latent_encoder.service.config import Settings
from latent_encoder.service.engines import embedded, make_engine, vae_files
from latent_encoder.service.engines.base import Call
from latent_encoder.service.engines.devices import pick_device, pick_dtype
from latent_encoder.service.engines.embedded import EmbeddedEngine
from latent_encoder.service.engines.pixels import to_pixels

DEMO = "demo_vae.safetensors"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A models folder with the demo VAE, which others may replace."""
    (tmp_path / "vae").mkdir()
    shutil.copyfile(demo_vae(padded=False), tmp_path / "vae" / DEMO)
    return tmp_path


@pytest.fixture
def engine(models: Path) -> Iterator[EmbeddedEngine]:
    engine = EmbeddedEngine(models)
    engine.start()
    yield engine
    engine.close()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the VAEs that were loaded."""
    names: list[str] = []
    real = embedded.load_vae

    def counted(files: vae_files.VaeFiles, device: torch.device, **options: bool) -> object:
        names.append(files.name)
        return real(files, device, **options)

    monkeypatch.setattr(embedded, "load_vae", counted)
    return names


def code_of(engine: EmbeddedEngine, *arguments: object, call: Call | None = None, **changes: object) -> str:
    with pytest.raises(LatentEncoderError) as caught:
        engine.encode(job(*arguments, **changes), call or Call())
    return caught.value.code


def test_the_record_tells_all(engine: EmbeddedEngine, models: Path) -> None:
    wanted = job(pictures.png(), DEMO, request_id="one")
    encoded = engine.encode(wanted, Call())
    expected = {
        "request_id": "one",
        "latent_shape": [1, 16, 1, 15, 20],
        "latent_dtype": "float32",
        "latent_channels": 16,
        "downscale": 8,
        "vae_name": DEMO,
        "vae_sha256": file_sha256(models / "vae" / DEMO),
        "image_name": wanted.picture.name,
        "image_sha256": wanted.picture.sha256,
        "original_size": [128, 96],
        "scaled_size": [167, 125],
        "upscale_method": "lanczos",
        "megapixels": 0.02,
        "resolution_steps": 1,
        "file_format": "safetensors",
        "file_bytes": len(encoded.content),
        "engine": "embedded",
        "engine_version": diffusers.__version__,
        "optimized": True,
        "pack_version": __version__,
        "path": None,
        "filename": None,
        "type": None,
    }
    assert {key: encoded.record[key] for key in expected} == expected


def test_the_faster_way_can_be_turned_off(engine: EmbeddedEngine, models: Path) -> None:
    stock = make_engine(Settings(engine="embedded", model_dir=models, optimize="off"))
    stock.start()
    wanted = job(pictures.png(), DEMO)
    plain, faster = stock.encode(wanted, Call()), engine.encode(wanted, Call())
    assert (plain.record["optimized"], faster.record["optimized"]) == (None, True)
    assert not torch.equal(samples(plain), samples(faster))
    assert (samples(plain) - samples(faster)).abs().max() < 2e-5


def test_a_difference_turns_it_off(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_encoder, "NEAR", 0.0)
    monkeypatch.setattr(fast_encoder, "MOST_ADDED", 0.0)
    careful = EmbeddedEngine(models)
    careful.start()
    assert careful.encode(job(pictures.png(), DEMO), Call()).record["optimized"] is False


def test_its_bytes_are_a_latent_file(engine: EmbeddedEngine, tmp_path: Path) -> None:
    encoded = engine.encode(job(pictures.png(), DEMO), Call())
    placed = place_latent(encoded.content, tmp_path, "a", record=encoded.record)
    loaded = load_latent(placed.path)
    assert loaded.verified
    assert torch.equal(loaded.latent["samples"], samples(encoded))


def test_the_same_picture_gives_the_same_numbers(engine: EmbeddedEngine) -> None:
    first, second = (samples(engine.encode(job(pictures.png(), DEMO), Call())) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", pictures.good())
def test_odd_pictures_have_their_size(kind: str) -> None:
    good = pictures.good()[kind]
    assert to_pixels(decode_image(good.data)[1]).shape == (good.size[1], good.size[0], 3)


def test_sixteen_bit_grey_is_not_white() -> None:
    pixels = to_pixels(decode_image(pictures.good()["gray-16-bit"].data)[1])
    eight = to_pixels(decode_image(pictures.good()["gray"].data)[1])
    assert abs(pixels * 255 - eight).max() < 1e-4


def test_scaling_is_refused_before_the_vae_is_loaded(engine: EmbeddedEngine, loads: list[str]) -> None:
    assert code_of(engine, pictures.png(1, 4000), DEMO) == "SCALING_FAILED"
    assert code_of(engine, pictures.png(), DEMO, resolution_steps=256, megapixels=0.01) == "SCALING_FAILED"
    assert loads == []


def test_a_vae_is_loaded_once(engine: EmbeddedEngine, loads: list[str]) -> None:
    with ThreadPoolExecutor(6) as pool:
        jobs = [job(pictures.png(seed=number % 3), DEMO) for number in range(12)]
        latents = [samples(encoded) for encoded in pool.map(lambda each: engine.encode(each, Call()), jobs)]
    assert loads == [DEMO]
    for number, latent in enumerate(latents):  # the threads did not mix up each other's pictures
        assert torch.equal(latent, latents[number % 3])
    assert not torch.equal(latents[0], latents[1])


def test_a_replaced_file_is_loaded_anew(engine: EmbeddedEngine, models: Path, loads: list[str]) -> None:
    before = engine.encode(job(pictures.png(), DEMO), Call())
    weights = load_file(models / "vae" / DEMO)
    weights["conv1.bias"] += 1
    save_file(weights, models / "vae" / "new")
    os.replace(models / "vae" / "new", models / "vae" / DEMO)
    after = engine.encode(job(pictures.png(), DEMO), Call())
    assert loads == [DEMO, DEMO]
    assert torch.allclose(samples(after), samples(before) + 1, atol=0.01)  # the file holds 16 bits
    assert after.record["vae_sha256"] == file_sha256(models / "vae" / DEMO) != before.record["vae_sha256"]
    (models / "vae" / DEMO).unlink()
    assert code_of(engine, pictures.png(), DEMO) == "VAE_MODEL_NOT_FOUND"


def test_two_vaes_are_kept(engine: EmbeddedEngine, models: Path, loads: list[str]) -> None:
    names = ["a.safetensors", "sub/b.safetensors", "c.safetensors"]
    for name in names:
        (models / "vae" / name).parent.mkdir(exist_ok=True)
        (models / "vae" / name).symlink_to(models / "vae" / DEMO)
    for name in [*names[:2], *names[:2], names[2], names[1], names[0]]:
        engine.encode(job(pictures.png(), name, megapixels=0.01), Call())
    assert loads == [*names[:2], names[2], names[0]]


def test_the_next_picture_is_prepared_while_one_encodes(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding, prepared, both = threading.Event(), threading.Event(), []

    def hold(part: float) -> None:
        encoding.set()
        both.append(prepared.wait(30))

    def noticed(*arguments: object) -> object:
        scaled = real(*arguments)
        if encoding.is_set():
            prepared.set()
        return scaled

    real = embedded.scale
    monkeypatch.setattr(embedded, "scale", noticed)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(engine.encode, job(pictures.png(), DEMO), Call(on_progress=hold))
        assert encoding.wait(30)
        second = pool.submit(engine.encode, job(pictures.png(seed=1), DEMO), Call())
        assert first.result(60).record["image_sha256"] != second.result(60).record["image_sha256"]
    assert all(both)


def test_progress_goes_from_nothing_to_done(engine: EmbeddedEngine) -> None:
    parts: list[float] = []
    engine.encode(job(pictures.png(), DEMO), Call(on_progress=parts.append))
    assert parts == sorted(parts)
    assert parts[0] == 0 and 0.8 < parts[-1] <= 1 and len(parts) >= 15


def test_a_cancelled_call_ends_between_two_layers(engine: EmbeddedEngine, models: Path) -> None:
    seen: list[float] = []

    def cancel(part: float) -> None:
        seen.append(part)
        if part > 0.3:
            call.cancel()

    call = Call(on_progress=cancel)
    assert code_of(engine, pictures.png(), DEMO, call=call) == "INTERRUPTED"
    assert seen[-1] < 0.5
    fresh = EmbeddedEngine(models)
    assert code_of(fresh, pictures.png(), DEMO) == "ENGINE_UNAVAILABLE"  # before it is started
    fresh.start()
    wanted = job(pictures.png(), DEMO)
    assert torch.equal(samples(engine.encode(wanted, Call())), samples(fresh.encode(wanted, Call())))


def test_a_call_past_its_time_ends(engine: EmbeddedEngine) -> None:
    engine.encode(job(pictures.png(), DEMO), Call())
    parts = [0.0]
    late = Call(0.4, on_progress=parts.append)
    assert code_of(engine, pictures.png(), DEMO, megapixels=4.0, call=late) == "TIMEOUT"
    assert parts[-1] < 0.9
    assert code_of(engine, pictures.png(), DEMO, call=Call(0.0)) == "TIMEOUT"


def test_who_waits_for_another_picture_may_go(engine: EmbeddedEngine) -> None:
    encoding, go_on = threading.Event(), threading.Event()

    def hold(part: float) -> None:
        encoding.set()
        go_on.wait(30)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(engine.encode, job(pictures.png(), DEMO), Call(on_progress=hold))
        assert encoding.wait(30)
        assert code_of(engine, pictures.png(), DEMO, call=Call(0.5)) == "TIMEOUT"
        go_on.set()
        assert first.result(60)


def test_a_closed_engine_takes_no_work(engine: EmbeddedEngine) -> None:
    encoding, closed = threading.Event(), threading.Event()

    def hold(part: float) -> None:
        encoding.set()
        closed.wait(30)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(code_of, engine, pictures.png(), DEMO, call=Call(on_progress=hold))
        assert encoding.wait(30)
        engine.close()
        closed.set()
        assert running.result(60) == "ENGINE_UNAVAILABLE"
    assert code_of(engine, pictures.png(), DEMO) == "ENGINE_UNAVAILABLE"
    with pytest.raises(LatentEncoderError):
        engine.check()
    engine.start()
    engine.check()
    assert engine.encode(job(pictures.png(), DEMO), Call())


def test_the_processor_computes_in_32_bits() -> None:
    assert pick_dtype(torch.device("cpu"), [torch.bfloat16, torch.float16]) == torch.float32
    assert pick_device().type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("decoded", [True, False], ids=["decoded", "bytes"])
@pytest.mark.parametrize("method", UPSCALE_METHODS)
def test_a_picture_as_large_as_it_came_is_not_kept_while_it_is_encoded(
    engine: EmbeddedEngine, method: str, decoded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[object]] = []
    images: list[Image.Image] = []
    real = embedded.to_pixels

    def watched(image: Image.Image) -> object:
        pixels = real(image)
        made.append(weakref.ref(pixels))
        images.append(image)
        return pixels

    monkeypatch.setattr(embedded, "to_pixels", watched)
    wanted = job(pictures.png(), DEMO, upscale_method=method)
    if decoded:  # as the doors hand it on
        image = decode_image(wanted.picture.data)[1]
        wanted = replace(wanted, picture=replace(wanted.picture, image=image))
    kept: list[bool] = []
    engine.encode(wanted, Call(on_progress=lambda _: kept.append(made[0]() is not None)))
    assert kept and not any(kept)
    with pytest.raises(ValueError, match="closed"):
        images[0].tobytes()


def test_a_picture_is_prepared_after_a_short_encode_and_beside_a_long_one(engine: EmbeddedEngine) -> None:
    def seconds_of_waiting() -> float:
        begin = time.monotonic()
        engine.wait_to_prepare()
        return time.monotonic() - begin

    assert seconds_of_waiting() < embedded.SHORT_SECONDS * 0.9
    with engine._encoding:
        assert seconds_of_waiting() >= embedded.SHORT_SECONDS * 0.9
    assert not engine._encoding.locked()
