"""Every good and bad picture that the tests need, as bytes; nothing here is read from the repository.

``good()`` are odd pictures that must encode, ``bad()`` are files that must be refused, each with its error code.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, PngImagePlugin


@dataclass(frozen=True)
class Good:
    """A picture that must encode.

    ``size`` is its width and height as shown, EXIF orientation applied; ``megapixels`` leaves each side at least 8 px.
    """

    filename: str
    data: bytes
    size: tuple[int, int]
    megapixels: float = 0.01


@dataclass(frozen=True)
class Bad:
    """A file that must be refused with ``code``."""

    filename: str
    data: bytes
    code: str


def photo(width: int = 128, height: int = 96, seed: int = 0) -> Image.Image:
    """An RGB picture with soft gradients and some texture; another one for each seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [np.sin(x / rng.uniform(5, 30) + y / rng.uniform(5, 30) + rng.uniform(0, 6)) for _ in range(3)]
    pixels = np.stack(waves, axis=-1) * 90 + 128 + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    """The picture in a file format of Pillow's."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def png(width: int = 128, height: int = 96, seed: int = 0) -> bytes:
    """An 8-bit RGB PNG; another picture for each seed."""
    return encode(photo(width, height, seed))


def frames(count: int = 3) -> list[Image.Image]:
    """Pictures of one size, each different."""
    return [photo(64, 64, seed) for seed in range(count)]


@cache
def good() -> dict[str, Good]:
    """Odd pictures that must encode."""
    image, size = photo(), (128, 96)
    turned = Image.Exif()
    turned[0x0112] = 6  # shown a quarter turn clockwise
    gray16 = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    gray_alpha = Image.merge("LA", (image.convert("L"), image.convert("L")))
    workflow = PngImagePlugin.PngInfo()
    workflow.add_text("workflow", "x" * 1_500_000, zip=True)
    return {
        "rgb": Good("rgb.png", encode(image), size),
        "rgba": Good("rgba.png", encode(image.convert("RGBA")), size),
        "palette": Good("palette.png", encode(image.convert("P")), size),
        "gray": Good("gray.png", encode(image.convert("L")), size),
        "gray-alpha": Good("gray alpha.png", encode(gray_alpha), size),
        "gray-16-bit": Good("gray16.png", encode(gray16), size),
        "one-bit": Good("one bit.png", encode(image.convert("1")), size),
        "rgb-16-bit": Good("rgb16.png", _png_rgb16(image), size),
        "long-text": Good("long text.png", encode(image, pnginfo=workflow), size),
        "jpeg": Good("photo.jpg", encode(image, "JPEG", quality=90), size),
        "progressive": Good("progressive.jpg", encode(image, "JPEG", progressive=True), size),
        "cmyk": Good("cmyk.jpg", encode(image.convert("CMYK"), "JPEG"), size),
        "exif-rotated": Good("turned.jpg", encode(image, "JPEG", exif=turned), (96, 128)),
        "mpo": Good("camera.jpg", encode(image, "MPO", save_all=True, append_images=[photo(seed=1)]), size),
        "webp": Good("photo.webp", encode(image, "WEBP", lossless=True), size),
        "gif": Good("still.gif", encode(image.convert("P"), "GIF"), size),
        "bmp": Good("photo.bmp", encode(image, "BMP"), size),
        "tiff": Good("photo.tif", encode(image, "TIFF"), size),
        "one-pixel": Good("one pixel.png", png(1, 1), (1, 1)),
        "thin": Good("thin.png", png(1, 4000), (1, 4000), 0.3),
        "odd-name": Good("größe #1 100% [draft] 猫.png", encode(image), size),
    }


@cache
def bad() -> dict[str, Bad]:
    """Files that must be refused, each with its error code."""
    image, invalid = photo(), "IMAGE_INVALID"
    whole = {"png": encode(image), "jpg": encode(image, "JPEG"), "webp": encode(image, "WEBP", lossless=True)}
    more = {"save_all": True, "append_images": frames()[1:]}
    first = frames()[0]
    return {
        "empty": Bad("empty.png", b"", invalid),
        "text": Bad("text.png", b"this is no picture\n" * 20, invalid),
        "svg": Bad("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>', invalid),
        "cut-png": Bad("cut.png", whole["png"][: len(whole["png"]) // 2], invalid),
        "cut-jpeg": Bad("cut.jpg", whole["jpg"][: len(whole["jpg"]) // 2], invalid),
        "cut-webp": Bad("cut.webp", whole["webp"][: len(whole["webp"]) // 2], invalid),
        "header-only": Bad("header.png", whole["png"][:33], invalid),
        "wrong-crc": Bad("crc.png", _flip_bit(whole["png"], len(whole["png"]) // 2), invalid),
        "bomb": Bad("bomb.png", _png_bomb(30_000, 30_000), "IMAGE_TOO_LARGE"),
        "animated-gif": Bad("moving.gif", encode(first, "GIF", **more), invalid),
        "animated-webp": Bad("moving.webp", encode(first, "WEBP", lossless=True, **more), invalid),
        "animated-png": Bad("moving.png", encode(first, "PNG", **more), invalid),
        "pages": Bad("pages.tif", encode(first, "TIFF", **more), invalid),
    }


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [_chunk(b"IHDR", header), _chunk(b"IDAT", rows), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _png_rgb16(image: Image.Image) -> bytes:
    """Pillow writes no 16-bit colour."""
    pixels = (np.asarray(image).astype(np.uint16) * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return _png(image.width, image.height, 16, 2, zlib.compress(rows))


def _png_bomb(width: int, height: int) -> bytes:
    """A black 1-bit PNG: some 100 kB that decode to hundreds of megabytes."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row * 1000) for _ in range(height // 1000)) + packer.flush()
    return _png(width, height, 1, 0, rows)


def _flip_bit(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
