"""What is taken for a picture: odd good ones with their size, bad ones with their code, every way to be cut short."""

from __future__ import annotations

import io
import struct
import sys
import threading
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pictures
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, PngImagePlugin, features

from latent_encoder.errors import LatentEncoderError
from latent_encoder.images import (
    FORMATS,
    MAX_PIXELS,
    SUFFIXES,
    check_image,
)


def refusal(data: bytes) -> LatentEncoderError:
    with pytest.raises(LatentEncoderError) as caught:
        check_image(data)
    return caught.value


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    return pictures.encode(image, image_format, **options)


@pytest.mark.parametrize("name", pictures.good())
def test_odd_pictures_that_pass(name: str) -> None:
    picture = pictures.good()[name]
    found = check_image(picture.data)
    assert (found.width, found.height) == picture.size
    assert found.format in FORMATS and picture.filename.endswith(SUFFIXES)


@pytest.mark.parametrize("name", pictures.bad())
def test_bad_pictures(name: str) -> None:
    picture = pictures.bad()[name]
    error = refusal(picture.data)
    assert error.code == picture.code and error.hint


SMALL = pictures.photo(40, 30)
TURNED = [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("orientation", [*TURNED, 0, 9])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_size_is_the_one_shown(image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(SMALL, image_format, exif=exif)
    found = check_image(data)
    with Image.open(io.BytesIO(data)) as image:
        assert (found.width, found.height) == ImageOps.exif_transpose(image).size
    assert (found.width, found.height) == ((30, 40) if orientation in (5, 6, 7, 8) else (40, 30))


MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "JPEG": ["L", "RGB", "CMYK", "YCbCr"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["1", "L", "P", "RGB"],
    "BMP": ["1", "L", "P", "RGB", "RGBA"],
    "TIFF": ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "LAB"],
}


@pytest.mark.parametrize(("image_format", "mode"), [(key, mode) for key, modes in MODES.items() for mode in modes])
def test_every_mode_of_every_format(image_format: str, mode: str) -> None:
    if mode == "LAB":
        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        image = ImageCms.applyTransform(SMALL, to_lab)
        assert image is not None
    else:
        image = SMALL.convert("L").convert(mode) if mode == "I;16" else SMALL.convert(mode)
    found = check_image(encoded(image, image_format))
    assert (found.format, found.width, found.height) == (image_format, 40, 30)


@pytest.mark.parametrize("image_format", ["PPM", "ICO", "TGA", "PCX", "JPEG2000", "AVIF", "EPS", "PDF", "DDS", "ICNS"])
def test_formats_that_are_not_taken(image_format: str) -> None:
    """Each further format is one more parser for strangers to try."""
    if image_format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    image = pictures.photo(64, 64)
    assert refusal(encoded(image, image_format)).code == "IMAGE_INVALID"


# Cut short


def tiff_tags() -> list[str]:
    return ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"] if features.check("libtiff") else ["raw"]


WHOLE: dict[str, bytes] = {
    "PNG": encoded(SMALL, "PNG"),
    "PNG palette": encoded(SMALL.convert("P"), "PNG"),
    "JPEG": encoded(SMALL, "JPEG", quality=90),
    "JPEG progressive": encoded(SMALL, "JPEG", progressive=True),
    "WebP lossy": encoded(SMALL, "WEBP"),
    "WebP lossless": encoded(SMALL, "WEBP", lossless=True),
    "WebP with alpha": encoded(SMALL.convert("RGBA"), "WEBP"),
    "GIF": encoded(SMALL.convert("P"), "GIF"),
    "GIF interlaced": encoded(SMALL.convert("P"), "GIF", interlace=1),
    "BMP": encoded(SMALL, "BMP"),
    "BMP palette": encoded(SMALL.convert("P"), "BMP"),
    **{f"TIFF {tag}": encoded(SMALL, "TIFF", compression=tag) for tag in tiff_tags()},
}


def pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGBA").tobytes()


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow tells of each odd TIFF tag
@pytest.mark.parametrize("name", WHOLE)
def test_cut_at_any_length(name: str) -> None:
    """Refused; or, where only what follows the pixels is missing, the very same pixels."""
    whole = WHOLE[name]
    check_image(whole)
    wanted = pixels(whole)
    passed = []
    for length in {*range(0, len(whole), 1 + len(whole) // 250), *range(len(whole) - 40, len(whole))}:
        try:
            check_image(whole[:length])
        except LatentEncoderError as error:
            assert error.code in {"IMAGE_INVALID", "IMAGE_TOO_LARGE"}
        else:
            passed.append(length)
            assert pixels(whole[:length]) == wanted, f"half a picture of {length} of {len(whole)} bytes passes"
    assert not [length for length in passed if length < len(whole) // 2], "pixels from nowhere"


def test_a_png_whose_pixels_end_early_without_being_cut() -> None:
    """All of its chunks are whole; only the compressed rows in them end too soon."""
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.asarray(SMALL)))
    header = struct.pack(">IIBBBBB", 40, 30, 8, 2, 0, 0, 0)
    assert check_image(png(header, rows)).height == 30
    assert check_image(png(header, rows[:100], b"", rows[100:])).height == 30
    for length in (0, 1, 100, len(rows) // 2, len(rows) - 8):
        assert refusal(png(header, rows[:length])).code == "IMAGE_INVALID"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(header: bytes, *data: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), *(chunk(b"IDAT", part) for part in data), chunk(b"IEND", b"")]
    )


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("damage", ["whole", "wrong checksum", "no data"])
def test_what_stands_beside_the_pixels_of_a_png(kind: bytes, damage: str) -> None:
    """A workflow of 5 MB, or a colour profile, is no reason to refuse the pixels."""
    text = b"x" * 5_000_000
    packed = zlib.compress(text)
    data = {
        b"tEXt": b"workflow\0" + text,
        b"zTXt": b"workflow\0\0" + packed,
        b"iTXt": b"workflow\0\1\0\0\0" + packed,
        b"iCCP": b"profile\0\0" + packed,
    }[kind]
    extra = chunk(kind, b"" if damage == "no data" else data)
    if damage == "wrong checksum":
        extra = extra[:-1] + bytes([extra[-1] ^ 1])
    whole = WHOLE["PNG"]
    for position in (33, len(whole) - 12):  # after IHDR, and before IEND
        found = check_image(whole[:position] + extra + whole[position:])
        assert (found.width, found.height) == (40, 30)


def test_a_png_chunk_that_says_it_is_endless() -> None:
    whole = WHOLE["PNG"]
    endless = struct.pack(">I", 0xFFFFFFFF) + b"tEXt" + b"x"
    assert refusal(whole[:33] + endless + whole[33:]).code == "IMAGE_INVALID"


# More than one picture


def more(count: int) -> list[Image.Image]:
    return [pictures.photo(40, 30, seed) for seed in range(1, count + 1)]


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("GIF", {}),
        ("GIF", {"loop": 0, "disposal": 2, "duration": 100}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 50, "duration": 40}),
        ("PNG", {}),
        ("PNG", {"default_image": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("count", [1, 9])
def test_more_frames_or_pages_are_refused(image_format: str, options: dict[str, Any], count: int) -> None:
    data = encoded(SMALL, image_format, save_all=True, append_images=more(count), **options)
    error = refusal(data)
    assert error.code == "IMAGE_INVALID" and "frame" in error.message


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_one_frame_saved_as_many_passes(image_format: str) -> None:
    assert check_image(encoded(SMALL, image_format, save_all=True)).width == 40


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow tells of each odd TIFF tag
def test_an_animation_cut_in_its_second_frame_is_not_its_first() -> None:
    """Cut anywhere behind its first frame's end, a file still says that there is more."""
    for image_format, options in (("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        data = encoded(SMALL, image_format, save_all=True, append_images=more(2), **options)
        for length in range(60, len(data), 61):
            assert refusal(data[:length]).code == "IMAGE_INVALID", f"{image_format} of {length} bytes"


def test_a_cameras_mpo_is_the_jpeg_it_begins_with() -> None:
    for count in (1, 3):
        found = check_image(encoded(SMALL, "MPO", save_all=True, append_images=more(count)))
        assert (found.format, found.width, found.height) == ("JPEG", 40, 30)


# Size


def test_a_bomb_is_refused_before_it_goes_off() -> None:
    data = pictures.bad()["bomb"].data
    assert len(data) < 250_000
    tracemalloc.start()
    before, start = _peak_memory(), time.perf_counter()
    error = refusal(data)
    seconds = time.perf_counter() - start
    _, traced = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.code == "IMAGE_TOO_LARGE"
    assert traced < 10 << 20 and _peak_memory() - before < 64 << 20, "900 megapixels were decoded"
    assert seconds < 5
    print(f"\nthe bomb is refused in {seconds * 1000:.0f} ms")


def _peak_memory() -> int:
    """The most memory that this process has ever held, in bytes."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def bilevel_png(width: int, height: int) -> bytes:
    row = b"\0" + bytes((width + 7) // 8)
    return png(struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0), zlib.compress(row * height, 1))


def test_the_limit_to_the_pixel() -> None:
    width = MAX_PIXELS // 10
    assert width * 10 == MAX_PIXELS
    assert check_image(bilevel_png(width, 10)).width == width
    error = refusal(bilevel_png(width + 1, 10))
    assert error.code == "IMAGE_TOO_LARGE"
    assert refusal(bilevel_png(2 * width, 10)).code == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize("image_format", ["GIF", "BMP", "TIFF", "JPEG"])
def test_headers_that_promise_too_much(image_format: str) -> None:
    """Only the size in the header is changed; the file stays small."""
    data = bytearray(encoded(SMALL.convert("P") if image_format == "GIF" else SMALL, image_format))
    if image_format == "GIF":
        data[6:10] = struct.pack("<HH", 65535, 65535)
    elif image_format == "BMP":
        data[18:26] = struct.pack("<ii", 60_000, 60_000)
    elif image_format == "JPEG":
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", 65500, 65500)
    else:
        old = {256: (40, 60_000), 257: (30, 60_000)}
        count = struct.unpack_from("<H", data, struct.unpack_from("<I", data, 4)[0])[0]
        for index in range(count):
            entry = struct.unpack_from("<I", data, 4)[0] + 2 + 12 * index
            tag = struct.unpack_from("<H", data, entry)[0]
            if tag in old:
                struct.pack_into("<HII", data, entry + 2, 4, 1, old[tag][1])
    assert refusal(bytes(data)).code == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize("image_format", ["GIF", "WEBP"])
def test_headers_that_promise_a_little_too_much(image_format: str) -> None:
    """Pillow itself refuses only twice our limit; no more than a canvas of that size is held by then."""
    before = _peak_memory()
    side = 16383
    if image_format == "GIF":  # a frame that is to be cleared, the worst case
        frame = struct.pack("<BHHHHB", 0x2C, 0, 0, side, side, 0) + b"\2\2\x4c\1\0;"
        control = b"\x21\xf9\4\x08\0\0\0\0"
        data = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + control + frame
    else:
        data = encoded(SMALL, "WEBP", lossless=True)
        start = data.index(b"VP8L") + 9
        data = data[:start] + struct.pack("<I", (side - 1) | (side - 1) << 14) + data[start + 4 :]
    assert refusal(data).code == "IMAGE_TOO_LARGE"
    assert _peak_memory() - before < 2 * side * side


# Pillow's globals belong to everybody


def pillow_globals() -> tuple[bool, int | None]:
    return ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS


@contextmanager
def globals_set_to(truncated: bool, limit: int | None) -> Iterator[None]:
    before = pillow_globals()
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = truncated, limit
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


@pytest.mark.parametrize("truncated", [True, False])
@pytest.mark.parametrize("limit", [None, 10, 1 << 40])
def test_what_other_packs_set_changes_nothing(truncated: bool, limit: int | None) -> None:
    with globals_set_to(truncated, limit), warnings.catch_warnings():
        warnings.simplefilter("error")
        for good in pictures.good().values():
            assert (check_image(good.data).width, check_image(good.data).height) == good.size
            assert pillow_globals() == (truncated, limit)
        for bad in pictures.bad().values():
            assert refusal(bad.data).code == bad.code
            assert pillow_globals() == (truncated, limit)
        filters = list(warnings.filters)
        assert filters[0][0] == "error", "the filters are as they were"


def test_a_text_limit_that_others_set_changes_nothing() -> None:
    before = PngImagePlugin.MAX_TEXT_CHUNK
    PngImagePlugin.MAX_TEXT_CHUNK = 10
    try:
        assert check_image(pictures.good()["long-text"].data).width == 128
    finally:
        PngImagePlugin.MAX_TEXT_CHUNK = before


def test_checks_in_many_threads() -> None:
    """One check's globals must not leak into another's, nor stay behind."""
    good, bad = pictures.good()["jpeg"].data, pictures.bad()["cut-jpeg"].data
    wrong: list[str] = []

    def check(number: int) -> None:
        for _ in range(20):
            try:
                check_image(good if number % 2 else bad)
            except LatentEncoderError:
                wrong.extend(["good"] if number % 2 else [])
            else:
                wrong.extend([] if number % 2 else ["bad"])

    with globals_set_to(True, None):
        threads = [threading.Thread(target=check, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong and pillow_globals() == (True, None)


# Damage of every kind


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(list(WHOLE.values()))))
    for _ in range(draw(st.integers(1, 5))):
        position = draw(st.integers(0, len(data)) | st.integers(0, min(len(data), 200)))
        length = draw(st.integers(0, 8) | st.integers(0, len(data)))
        data[position : position + length] = draw(st.binary(max_size=8) | st.just(bytes(length)))
    return bytes(data)


signatures = st.sampled_from([data[:length] for data in WHOLE.values() for length in (4, 12, 30)])


@given(damaged() | st.builds(bytes.__add__, signatures, st.binary(max_size=200)) | st.binary(max_size=100))
@settings(max_examples=250)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow tells of each odd TIFF tag
def test_only_our_errors_come_out(data: bytes) -> None:
    try:
        found = check_image(data)
    except LatentEncoderError as error:
        assert error.code in {"IMAGE_INVALID", "IMAGE_TOO_LARGE", "OUT_OF_MEMORY"}
        str(error).encode()
    else:
        assert found.format in FORMATS and 0 < found.width * found.height <= MAX_PIXELS
