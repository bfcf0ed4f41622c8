"""What may be opened as an image: format, size, wholeness and the number of frames, checked before a host sees the
bytes.

ComfyUI 0.33's own LoadImage encodes half a picture with success and lets a VAE fold the frames of an animation into
time; here such files are refused. The check decodes the picture once with Pillow.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from .errors import LatentEncoderError, check_choice

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 178_956_970
"""The largest picture, in pixels: the size at which Pillow itself takes a file for a decompression bomb."""

MAX_FILE_BYTES = 1 << 30
"""The largest picture file, in bytes: an uncompressed TIFF or BMP of ``MAX_PIXELS`` fits."""

UpscaleMethod = Literal["lanczos", "nearest-exact", "bilinear", "area", "bicubic"]
UPSCALE_METHODS: tuple[str, ...] = get_args(UpscaleMethod)
MIN_MEGAPIXELS, MAX_MEGAPIXELS = 0.01, 16.0
MAX_RESOLUTION_STEPS = 256
MIN_SIDE = 8
"""The shortest side, in pixels, of which the usual VAEs make a latent."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".tif", ".tiff")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_IGNORED_CHUNKS = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}


@dataclass(frozen=True)
class PictureInfo:
    """What the check learnt: Pillow's name of the format, and the size as it is shown (EXIF orientation applied)."""

    format: str
    width: int
    height: int


def check_image(data: bytes) -> PictureInfo:
    """What ``decode_image`` says of a picture whose pixels nobody wants."""
    return decode_image(data)[0]


def decode_image(data: bytes) -> tuple[PictureInfo, Image.Image]:
    """Decode ``data`` once; say what it is, and give the picture, its pixels loaded and not yet turned.

    A multi-picture JPEG (MPO, as cameras write it) counts as the JPEG that it begins with.

    Raises:
        LatentEncoderError: IMAGE_INVALID for what is empty, no picture of ``FORMATS``, cut short, damaged or has more
            than one frame or page; IMAGE_TOO_LARGE beyond ``MAX_PIXELS``, before the pixels are decoded.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise LatentEncoderError("IMAGE_INVALID", "The picture is empty (0 bytes).", "Copy or upload the file again.")
    try:
        with _open_image(data) as image:
            return _check(image), image
    except LatentEncoderError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # where warnings are errors
        raise _too_large() from error
    except UnidentifiedImageError as error:
        raise LatentEncoderError(
            "IMAGE_INVALID",
            "The file is not a picture of a known format, or its beginning is damaged.",
            f"Use one of {', '.join(FORMATS)}.",
        ) from error
    except MemoryError as error:
        raise LatentEncoderError("OUT_OF_MEMORY", "There is not enough memory to decode the picture.") from error
    except Exception as error:  # Pillow's plugins raise whatever their parsing ran into
        raise LatentEncoderError("IMAGE_INVALID", f"The picture is damaged or cut short ({error}).") from error


@contextmanager
def _open_image(data: bytes) -> Iterator[Image.Image]:
    """The picture, opened with the limits of ``_StrictPillow``; its pixels are to be loaded inside the block."""
    from PIL import Image

    with _strict_pillow, Image.open(io.BytesIO(_without_png_texts(data)), formats=FORMATS) as image:
        yield image


def _check(image: Image.Image) -> PictureInfo:
    from PIL import ExifTags

    if image.width * image.height > MAX_PIXELS:
        raise _too_large(image.width, image.height)
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames != 1:
        raise LatentEncoderError(
            "IMAGE_INVALID",
            f"The {image.format} file has {frames} frames or pages; one picture gives one latent.",
            "Export the frame that you mean as a picture of its own.",
        )
    image.load()
    turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    width, height = (image.height, image.width) if turned else image.size
    return PictureInfo("JPEG" if image.format == "MPO" else str(image.format), width, height)


def _too_large(width: int = 0, height: int = 0) -> LatentEncoderError:
    size = f"{width} x {height} pixels" if width else "too many pixels"
    return LatentEncoderError("IMAGE_TOO_LARGE", f"The picture has {size}; at most {MAX_PIXELS:,} are decoded.")


class _StrictPillow:
    """Pillow with our limit and nothing cut short, whatever another pack in this process has set its globals to.

    Pillow itself refuses more than twice the limit, and ``_check`` the rest, before the pixels are decoded. Several
    threads may decode at once, which takes the memory of all their pictures; what was set before the first of them is
    set again after the last.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._users = 0
        self._before: tuple[bool, int | None] = (False, None)

    def __enter__(self) -> None:
        from PIL import Image, ImageFile

        with self._guard:
            if not self._users:
                self._before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
            self._users += 1
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            Image.MAX_IMAGE_PIXELS = MAX_PIXELS

    def __exit__(self, *_: object) -> None:
        from PIL import Image, ImageFile

        with self._guard:
            self._users -= 1
            if not self._users:
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = self._before


_strict_pillow = _StrictPillow()


def _without_png_texts(data: bytes) -> bytes:
    """A PNG without its text and colour profile chunks: Pillow refuses a picture with over 1 MB of them."""
    if not data.startswith(_PNG_SIGNATURE):
        return data
    kept = [_PNG_SIGNATURE]
    position = len(_PNG_SIGNATURE)
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        end = position + 12 + length
        if data[position + 4 : position + 8] not in _PNG_IGNORED_CHUNKS:
            kept.append(data[position:end])
        position = end
    return b"".join(kept) if position > sum(map(len, kept)) else data


def check_recipe(upscale_method: str, megapixels: float, resolution_steps: int) -> None:
    """Raise INVALID_REQUEST where ImageScaleToTotalPixels does not offer one of these values."""
    check_choice("upscale_method", upscale_method, UPSCALE_METHODS)
    ranges: dict[str, tuple[float, float, float]] = {
        "megapixels": (megapixels, MIN_MEGAPIXELS, MAX_MEGAPIXELS),
        "resolution_steps": (resolution_steps, 1, MAX_RESOLUTION_STEPS),
    }
    for field, (value, least, most) in ranges.items():
        if not least <= value <= most:  # a NaN is in no range
            hint = f"Choose a number from {least:g} to {most:g}."
            raise LatentEncoderError("INVALID_REQUEST", f"'{field}' is {value}.", hint)


def scaled_size(width: int, height: int, megapixels: float, resolution_steps: int = 1) -> tuple[int, int]:
    """The size that ComfyUI 0.33's ImageScaleToTotalPixels gives a picture, in pixels; a megapixel is 1024 x 1024.

    Raises:
        LatentEncoderError: SCALING_FAILED for a side of less than 8 pixels, of which no VAE makes a latent.
    """
    factor = math.sqrt(megapixels * 1024 * 1024 / (width * height))
    scaled = tuple(round(side * factor / resolution_steps) * resolution_steps for side in (width, height))
    if min(scaled) < MIN_SIDE:
        hint = "Choose fewer resolution_steps, or more megapixels." if resolution_steps > 1 else None
        raise LatentEncoderError(
            "SCALING_FAILED",
            f"{width} x {height} pixels become {scaled[0]} x {scaled[1]}; a side needs at least {MIN_SIDE}.",
            hint,
        )
    return scaled[0], scaled[1]
