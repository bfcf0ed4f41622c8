"""From a picture's bytes to scaled pixels, as ComfyUI's LoadImage and ImageScaleToTotalPixels make them.

Decoding is Pillow's, as in ComfyUI 0.3.64; scaling gives the same numbers as ComfyUI does, to the bit.
``docs/engines.md`` says where ComfyUI 0.33's FFmpeg decodes otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from PIL import Image

    Pixels = npt.NDArray[Any]

SCALED_BY_PILLOW = ("lanczos",)
"""Of ``images.UPSCALE_METHODS``; the others are torch's."""


def to_pixels(image: Image.Image) -> Pixels:
    """The pixels of a picture that ``images.decode_image`` has loaded.

    EXIF orientation is applied, a palette and greys become RGB, alpha and colour profiles are dropped. 16-bit grey
    keeps its precision; 16-bit colour is what Pillow makes of it, its upper 8 bits.

    Returns:
        shape (height, width, 3): uint8, or float32 from 0 to 1 for 16-bit grey.
    """
    import numpy as np
    from PIL import ImageOps

    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # Pillow, and with it ComfyUI 0.3.64, would clip it at 255: all white
        grey = np.clip(np.asarray(image, dtype=np.float32) * np.float32(1 / 65535), 0, 1)  # as FFmpeg rounds it
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def scale(pixels: Pixels, size: tuple[int, int], method: str) -> torch.Tensor:
    """Scale to ``size`` (width, height) with one of ``images.UPSCALE_METHODS``.

    Args:
        pixels: as ``to_pixels`` gives them.

    Returns:
        float32 of shape (1, 3, height, width), from 0 to 1 (``bicubic`` may step over it).
    """
    import numpy as np
    import torch
    from PIL import Image

    if method in SCALED_BY_PILLOW:  # on 8 bits, as ComfyUI does it; what is finer is cut off
        if pixels.dtype != np.uint8:
            pixels = (255 * pixels).astype(np.uint8)
        return _as_tensor(np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)))
    width, height = size
    return torch.nn.functional.interpolate(_as_tensor(pixels), size=(height, width), mode=method)


def _as_tensor(pixels: Pixels) -> torch.Tensor:
    """(height, width, 3) as float32 of shape (1, 3, height, width).

    The numbers stay in the order of the picture: torch scales other layouts with other code, and rounds otherwise.
    """
    import numpy as np
    import torch

    numbers = pixels.astype(np.float32) / 255 if pixels.dtype == np.uint8 else pixels
    return torch.from_numpy(numbers)[None].movedim(-1, 1)
