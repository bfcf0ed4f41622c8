"""The two engines give the same latent, record and error code: ComfyUI 0.33's own nodes against diffusers' classes.

``pixel_space`` shows the scaled pixels themselves (twice, minus one). Only decoders differ, and ``DECODED_OTHERWISE``
states by how much; ``docs/engines.md`` holds the same figures.
"""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pytest
import torch
from comfyui.hosts import HostUnavailable, find_hosts
from comfyui.servers import Server, Servers, demo_vae
from PIL import Image
from safetensors.torch import load
from service import vae_files
from service.encode_jobs import job_of_bytes as job
from service.encode_jobs import samples

from latent_encoder.errors import LatentEncoderError
from latent_encoder.images import UPSCALE_METHODS
from latent_encoder.service.engines.base import Call, EncodeJob
from latent_encoder.service.engines.comfyui.engine import ComfyUIEngine
from latent_encoder.service.engines.embedded import EmbeddedEngine
from latent_encoder.service.engines.vae_files import TINY_NAMES

TOLERANCE = 1e-4
DEMO, FLUX, CUT = "demo_vae.safetensors", "flux_diffusers.safetensors", "cut.safetensors"
SAME_SIZE = 128 * 96 / 2**20
"""In megapixels: scaling leaves a picture of 128 x 96 as it is."""

FAMILIES: dict[str, Callable[[], vae_files.Weights] | None] = {
    DEMO: None,
    "qwen_96.safetensors": vae_files.wan,
    "qwen_layered.safetensors": lambda: vae_files.wan(16, picture_channels=4),
    "sd.safetensors": vae_files.kl,
    FLUX: vae_files.kl_of_diffusers,
    **dict.fromkeys(TINY_NAMES),
    "pixel_space": None,
}
SHAPES = {
    "sd.safetensors": (1, 4, 15, 21),
    FLUX: (1, 16, 15, 21),
    **dict.fromkeys(TINY_NAMES, (1, 4, 15, 21)),
    "pixel_space": (1, 3, 124, 170),
}

Both = tuple[ComfyUIEngine, EmbeddedEngine]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI that reads the VAE's width from its file."""
    hosts = [host for host in find_hosts() if host.reads_vae_width]
    if not hosts:
        pytest.skip("no ComfyUI checkout of 0.33 or newer is found: set COMFYUI_PATH")
    pool = Servers(hosts[0], tmp_path_factory.mktemp("agree"))
    try:
        server = pool.get()
    except HostUnavailable as reason:
        pytest.skip(str(reason))
    for name, make in FAMILIES.items():
        if make and name != FLUX:
            vae_files.write(make(), server.folder / "models" / "vae" / name)
    vae_files.write_tiny(TINY_NAMES, server.folder / "models" / "vae_approx")
    (server.folder / "models" / "vae" / CUT).write_bytes(demo_vae(padded=False).read_bytes()[:100_000])
    yield server
    pool.stop()
    shutil.rmtree(server.folder / "models")  # hundreds of megabytes


@pytest.fixture(scope="module")
def engines(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    comfyui = ComfyUIEngine(urls=[server.process.url], state_dir=tmp_path_factory.mktemp("state"))
    embedded = EmbeddedEngine(server.folder / "models")
    comfyui.start()
    embedded.start()
    yield comfyui, embedded
    comfyui.close()
    embedded.close()


def latents(engines: Both, wanted: EncodeJob) -> tuple[torch.Tensor, torch.Tensor]:
    """Both engines' latents; their shapes are equal."""
    theirs, ours = (samples(engine.encode(wanted, Call(120))) for engine in engines)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.float32
    return theirs, ours


@pytest.mark.parametrize("vae", [pytest.param(vae, marks=[pytest.mark.soak] * (vae == FLUX)) for vae in FAMILIES])
def test_every_family_gives_the_same_latent(server: Server, engines: Both, vae: str) -> None:
    """The scaled picture, 170 x 124, is no multiple of 8: both crop it alike."""
    if vae == FLUX:
        vae_files.write(vae_files.kl_of_diffusers(), server.folder / "models" / "vae" / vae)
    theirs, ours = latents(engines, job(pictures.png(133, 97), vae))
    difference = (ours - theirs).abs().max().item()
    print(f"{vae}: {difference:.1e} of {theirs.std():.2f}")
    assert ours.shape == SHAPES.get(vae, (1, 16, 1, 15, 21))
    assert 0.2 < theirs.std() < 20, "too small or large to tell a difference"
    assert difference < TOLERANCE


@pytest.mark.parametrize("method", UPSCALE_METHODS)
@pytest.mark.parametrize(("size", "steps"), [((97, 61), 1), ((333, 210), 16)], ids=["up", "down"])
def test_scaling_is_equal_to_the_bit(engines: Both, method: str, size: tuple[int, int], steps: int) -> None:
    scaled = job(pictures.png(*size), "pixel_space", upscale_method=method, resolution_steps=steps)
    theirs, ours = latents(engines, scaled)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "kind", ["rgba", "palette", "one-bit", "tiff", "long-text", "one-pixel", "thin", "gray-16-bit"]
)
def test_lossless_pictures_decode_alike(engines: Both, kind: str) -> None:
    good = pictures.good()[kind]
    theirs, ours = latents(engines, job(good.data, "pixel_space", megapixels=max(good.megapixels, 0.02)))
    assert torch.equal(ours, theirs)


DECODED_OTHERWISE = {
    "JPEG, full colour": (3.1, 0.1, 0.05),
    "JPEG, half colour": (16.0, 3.2, 0.2),
    "JPEG, CMYK": (3.1, 1.6, 0.1),
    "JPEG, grey": (2.1, 0.6, 0.1),
    "WebP, lossy": (2.5, 0.7, 0.1),
    "WebP, lossless": (1.1, 0.6, 0.05),
    "PNG, 16-bit colour": (1.1, 0.5, 0.1),
    "PNG, grey": (1.1, 0.6, 0.05),
    "GIF": (1.2, 0.6, 0.05),
    "BMP": (1.1, 0.6, 0.05),
}
"""By how much ComfyUI 0.33's pixels differ from ours at most, and at the mean, in 255ths; then the demo VAE's latents
at most, whose spread is 1.1. Of a picture with some noise and strong colours."""


def decoded_otherwise() -> dict[str, bytes]:
    image, good = pictures.photo(), pictures.good()
    return {
        "JPEG, full colour": pictures.encode(image, "JPEG", quality=95, subsampling=0),
        "JPEG, half colour": pictures.encode(image, "JPEG", quality=95, subsampling=2),
        "JPEG, CMYK": good["cmyk"].data,
        "JPEG, grey": pictures.encode(image.convert("L"), "JPEG", quality=95),
        "WebP, lossy": pictures.encode(image, "WEBP", quality=90),
        "WebP, lossless": good["webp"].data,
        "PNG, 16-bit colour": fine_png(image),
        "PNG, grey": good["gray"].data,
        "GIF": good["gif"].data,
        "BMP": good["bmp"].data,
    }


def fine_png(image: Image.Image) -> bytes:
    """A PNG of 16 bits a channel that 8 bits cannot hold; Pillow writes none."""
    noise = np.random.default_rng(0).integers(0, 257, (image.height, image.width, 3))
    fine = (np.asarray(image).astype(int) * 256 + noise).clip(0, 65535).astype(">u2")
    rows = fine.reshape(image.height, -1).view(np.uint8)
    filtered = np.pad(rows, ((0, 0), (1, 0))).tobytes()  # each row begins with its filter, none
    header = struct.pack(">IIBBBBB", *image.size, 16, 2, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(filtered)), (b"IEND", b"")):
        file += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return file


@pytest.mark.parametrize("kind", DECODED_OTHERWISE)
def test_other_decoders_differ_by_so_much(engines: Both, kind: str) -> None:
    data = decoded_otherwise()[kind]
    theirs, ours = latents(engines, job(data, "pixel_space", megapixels=SAME_SIZE, upscale_method="area"))
    pixels = (ours - theirs).abs() * 127.5
    theirs, ours = latents(engines, job(data, DEMO))
    measured = pixels.max().item(), pixels.mean().item(), (ours - theirs).abs().max().item()
    print(kind, *(f"{number:.3f}" for number in measured))
    assert measured[2] > TOLERANCE
    assert all(number <= stated for number, stated in zip(measured, DECODED_OTHERWISE[kind], strict=True))


@pytest.mark.soak
def test_an_older_comfyui_decodes_the_same_to_the_bit(tmp_path: Path) -> None:
    """0.3.64 decodes with Pillow, too; of 16-bit grey it makes white."""
    hosts = [host for host in find_hosts() if not host.reads_vae_width]
    if not hosts:
        pytest.skip("no older ComfyUI checkout is found")
    pool = Servers(hosts[0], tmp_path / "servers")
    server = pool.get()
    embedded = EmbeddedEngine(server.folder / "models")
    comfyui = ComfyUIEngine(urls=[server.process.url], state_dir=tmp_path / "state")
    try:
        comfyui.start()
        embedded.start()
        odd = [(name, good.data, good.megapixels) for name, good in pictures.good().items() if name != "gray-16-bit"]
        more = [(name, data, SAME_SIZE) for name, data in decoded_otherwise().items()]
        for name, data, megapixels in odd + more:
            theirs, ours = latents((comfyui, embedded), job(data, "pixel_space", megapixels=megapixels))
            assert torch.equal(ours, theirs), name
    finally:
        comfyui.close()
        pool.stop()


@pytest.mark.parametrize("vae", [DEMO, "qwen_layered.safetensors", "taesd", "pixel_space"])
def test_records_are_the_same(engines: Both, vae: str) -> None:
    wanted = job(pictures.png(133, 97), vae, request_id="one", resolution_steps=3)
    theirs, ours = (engine.encode(wanted, Call(60)).record for engine in engines)
    differing = {"engine", "engine_version", "created_at", "file_sha256", "file_bytes"}
    assert {key for key in ours if ours[key] != theirs[key]} <= differing
    assert ours["scaled_size"] == [171, 123]
    assert (ours["vae_sha256"] is None) == (vae in ("taesd", "pixel_space"))


@pytest.mark.parametrize("file_format", ["latent", "pt", "npy"])
def test_the_other_formats_hold_the_same(engines: Both, file_format: str) -> None:
    theirs, ours = (
        engine.encode(job(pictures.png(), "pixel_space", file_format=file_format), Call(60)).content
        for engine in engines
    )
    read = {
        "latent": lambda content: load(content)["latent_tensor"],
        "pt": lambda content: torch.load(io.BytesIO(content), weights_only=True),
        "npy": lambda content: torch.from_numpy(np.load(io.BytesIO(content))),
    }[file_format]
    assert torch.equal(read(ours), read(theirs))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"vae": "nowhere.safetensors"}, "VAE_MODEL_NOT_FOUND"),
        ({"vae": CUT}, "VAE_MODEL_INVALID"),
        ({"megapixels": 0.01, "resolution_steps": 256}, "SCALING_FAILED"),
    ],
)
def test_errors_have_the_same_code(engines: Both, changes: dict[str, Any], code: str) -> None:
    wanted = job(pictures.png(300, 40), **{"vae": DEMO} | changes)
    for engine in engines:
        with pytest.raises(LatentEncoderError) as caught:
            engine.encode(wanted, Call(60))
        assert caught.value.code == code, engine.name
