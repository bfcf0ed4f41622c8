"""A faster way through the encoder of Wan 2.1's and Qwen-Image's VAE, for one frame.

Its causal 3-D convolutions pad the past with zeros, so a single frame meets only the last time slice of their weights:
the encoder is a 2-D one. That runs here channels-last, normalises in place, in pieces that stay in the processor's
cache, and takes large pictures in strips. All but the attention in the middle is local, so strips that overlap by what
the convolutions see give the same numbers.

The weights stay the model's own: each call reads them where they are, so there is nothing to keep up to date.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Weights = Mapping[str, torch.Tensor]
    Encode = Callable[[torch.Tensor], torch.Tensor]

RESIDUAL = frozenset(
    f"residual.{layer}" for layer in ("0.gamma", "2.weight", "2.bias", "3.gamma", "6.weight", "6.bias")
)
SHORTCUT = frozenset({"shortcut.weight", "shortcut.bias"})
ATTENTION = frozenset({"norm.gamma", "to_qkv.weight", "to_qkv.bias", "proj.weight", "proj.bias"})
DOWNSAMPLE = frozenset({"resample.1.weight", "resample.1.bias"})
TIME = "time_conv."  # halves the frames, of which there is one
ENDS = frozenset(
    {f"encoder.{key}" for key in ("conv1.weight", "conv1.bias", "head.0.gamma", "head.2.weight", "head.2.bias")}
    | {"conv1.weight", "conv1.bias"}
)

STRIP_BYTES, STRIP_ROWS = 1 << 27, 128
"""About how large a strip of a layer's picture is, and its least rows: those around it are computed as well."""

PIECE = 1 << 18
"""Numbers that are normalised at a time on a CPU: 1 MB of float32."""

ATTENTION_NUMBERS = 1 << 28
"""So many products of the attention are made at a time: where torch has no better way they take memory."""

CHECK_SIDE = 64
NEAR = 1e-5
"""How far from float64 a latent in float32 may be, as norms: about 2e-5 for its largest number."""

MOST_ADDED = 1.5
"""How much farther than the model's own way the faster one may be, where rounding is coarser."""

ROUGH = {"torch.float32": NEAR, "torch.float16": 2e-2, "torch.bfloat16": 1e-1}
ROUGH_TF32 = 1e-2
"""How far the model's own way may be from float64 for the self-check to believe that both compute the same."""

logger = logging.getLogger(__name__)


def understands(keys: Iterable[str]) -> bool:
    """Whether these names of a VAE's weights are those of an encoder that can be folded."""
    return _layers(keys) is not None


class FastEncoder:
    """Encodes single frames faster than the model's own ``encode``, and leaves everything else to that.

    The first call on a device and in a dtype encodes a small picture both ways, and once in float64. Where the faster
    way fails there, or is farther from float64 than rounding explains, the log says so, and the model's own way is
    taken from then on.

    Args:
        stock: the model's own encode: pixels (batch, channels, frames, height, width) from -1 to 1 become a latent
            (batch, channels, frames, height / 8, width / 8), not normalised.
        weights: the model's weights of now, by the names of the original file. They must be such as ``understands``
            takes.
        on_layer: called before each layer of the fast way, and within those that take long, with the part that is done;
            what it raises ends the call.

    Attributes:
        optimized: whether all calls since it was None went the fast way; None before the first.
    """

    def __init__(
        self, stock: Encode, weights: Callable[[], Weights], on_layer: Callable[[float], None] = lambda part: None
    ) -> None:
        self._stock, self._weights, self._on_layer = stock, weights, on_layer
        self._trusted: dict[str, bool] = {}
        self.optimized: bool | None = None

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode as ``stock`` does."""
        fast = _is_frame(pixels) and self.trusts(pixels)
        self.optimized = fast and self.optimized is not False
        return encode_frame(self._weights(), pixels, on_layer=self._on_layer) if fast else self._stock(pixels)

    def trusts(self, pixels: torch.Tensor) -> bool:
        """Whether a frame of this dtype and on this device goes the fast way; the first time this is tried out."""
        kind = f"{pixels.dtype} on {pixels.device}"
        if kind not in self._trusted:
            self._trusted[kind] = self._self_check(pixels, kind)
        return self._trusted[kind]

    def _self_check(self, like: torch.Tensor, kind: str) -> bool:
        import torch

        numbers = torch.rand(1, like.shape[1], 1, CHECK_SIDE, CHECK_SIDE, generator=torch.Generator().manual_seed(0))
        pixels = (numbers * 2 - 1).to(like)
        stock = self._stock(pixels)
        try:
            ours = encode_frame(self._weights(), pixels, strip_rows=CHECK_SIDE // 4)
            exact = encode_frame(self._weights(), pixels.to("cpu", torch.float64))
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise  # another time there may be more
        except Exception as error:
            logger.warning("Latent Encoder: the faster encoding does not run here, so it is off (%s).", error)
            return False
        errors = [((latent.to(exact) - exact).norm() / exact.norm()).item() for latent in (stock, ours)]
        rough = ROUGH_TF32 if _is_tf32(like) else ROUGH.get(str(like.dtype), 0.0)
        good = errors[0] <= rough and errors[1] <= max(MOST_ADDED * errors[0], NEAR)  # a NaN is no good either
        words = "Latent Encoder: the faster encoding (%s) is %.1e from float64, the usual one %.1e, so it is %s."
        level = logging.INFO if good else logging.WARNING
        logger.log(level, words, kind, errors[1], errors[0], "on" if good else "off")
        return bool(good)


def _is_frame(pixels: torch.Tensor) -> bool:
    """Whether these are single pictures that can be halved three times, and nobody wants a gradient of them."""
    return pixels.ndim == 5 and pixels.shape[2] == 1 and min(pixels.shape[3:]) >= 8 and not pixels.requires_grad


def _is_tf32(like: torch.Tensor) -> bool:
    """Whether float32 is rounded to TF32 by convolutions there, as by default on CUDA."""
    import torch

    return like.is_cuda and like.dtype == torch.float32 and torch.backends.cudnn.allow_tf32


def encode_frame(
    weights: Weights,
    pixels: torch.Tensor,
    *,
    strip_rows: int | None = None,
    on_layer: Callable[[float], None] = lambda part: None,
) -> torch.Tensor:
    """The latent's mean for one frame.

    Args:
        weights: by the names of the original file, such as ``understands`` takes.
        pixels: (batch, channels, 1, height, width), from -1 to 1; the sides are multiples of 8.
        strip_rows: how many rows of each layer's picture are worked on at a time; by default what is about
            ``STRIP_BYTES``.
        on_layer: called before each layer with the part that is done.

    Returns:
        (batch, latent channels, 1, height / 8, width / 8), in the dtype and on the device of the pixels.
    """
    import torch

    with torch.no_grad():
        x = pixels[:, :, 0].contiguous(memory_format=torch.channels_last)
        return _Pass(weights, x, strip_rows, on_layer).run().unsqueeze(2)


def _layers(keys: Iterable[str]) -> list[tuple[str, str]] | None:
    """The encoder's layers in their order, as (kind, prefix); None where a name does not belong."""
    kinds = {RESIDUAL: "residual", RESIDUAL | SHORTCUT: "residual", ATTENTION: "attention", DOWNSAMPLE: "downsample"}
    blocks: dict[tuple[str, int], set[str]] = {}
    ends = set()
    for key in keys:
        part, _, rest = key.partition(".")
        place, _, inside = rest.partition(".")
        number, _, name = inside.partition(".")
        if part == "encoder" and place in ("downsamples", "middle") and number.isdigit():
            blocks.setdefault((place, int(number)), set()).update([] if name.startswith(TIME) else [name])
        elif part in ("encoder", "conv1"):
            ends.add(key)
    layers = [(kinds.get(frozenset(blocks[at]), ""), f"encoder.{at[0]}.{at[1]}.") for at in sorted(blocks)]
    return layers if layers and ends == ENDS and all(kind for kind, _ in layers) else None


class _Pass:
    """One picture's way through the encoder."""

    def __init__(
        self, weights: Weights, pixels: torch.Tensor, strip_rows: int | None, on_layer: Callable[[float], None]
    ) -> None:
        self._weights, self._pixels, self._strip_rows = weights, pixels, strip_rows
        layers = _layers(weights)
        if layers is None:
            raise ValueError("these weights are not those of an encoder that can be folded")
        self._layers = layers
        self._on_layer, self._done = on_layer, 0.0
        self._folded: dict[str, torch.Tensor] = {}

    def run(self) -> torch.Tensor:
        x = self._pixels
        section = [("convolution", "encoder.conv1.")]
        for kind, prefix in self._layers:
            if kind == "downsample":
                x = self._downsampled(x, section, prefix)
                section = []
            else:
                section.append((kind, prefix))
        x = self._through(section, x, 1.0)
        x = self._normalised(x, "encoder.head.0.gamma", out=x)
        x = self._convolved(self._convolved(x, "encoder.head.2.", padding=1), "conv1.")
        return x.chunk(2, dim=1)[0]

    def _downsampled(self, x: torch.Tensor, section: list[tuple[str, str]], prefix: str) -> torch.Tensor:
        """Through a section and the downsampling after it, in strips where the picture is large."""
        import torch

        height, channels = x.shape[2], self._weights[f"{prefix}resample.1.weight"].shape[0]
        rows = self._rows(x, channels)
        if any(kind == "attention" for kind, _ in section) or rows >= height:
            return self._halved(self._through(section, x, 1.0), prefix, 1.0, below=True)
        seen = sum({"convolution": 1, "residual": 2}[kind] for kind, _ in section)
        shape = (x.shape[0], channels, height // 2, x.shape[3] // 2)
        result = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        for first in range(0, height // 2, rows // 2):
            last = min(height // 2, first + rows // 2)
            part = (last - first) / (height // 2)
            begin, end = 2 * first, min(height, 2 * last + 1)  # what the downsampling sees
            top, bottom = max(0, begin - seen), min(height, end + seen)
            strip = self._through(section, x[:, :, top:bottom], part)[:, :, begin - top : end - top]
            result[:, :, first:last] = self._halved(strip, prefix, part, below=2 * last + 1 > height)
        return result

    def _rows(self, x: torch.Tensor, channels: int) -> int:
        if self._strip_rows:
            return self._strip_rows
        row = x.shape[0] * channels * x.shape[3] * x.element_size()
        return max(STRIP_ROWS, STRIP_BYTES // row // 2 * 2)

    def _through(self, section: list[tuple[str, str]], x: torch.Tensor, part: float) -> torch.Tensor:
        """Args: part: how much of the picture this is."""
        layers = {"convolution": self._convolution, "residual": self._residual, "attention": self._attention}
        for kind, prefix in section:
            self._begin_layer(part)
            x = layers[kind](x, prefix)
        return x

    def _begin_layer(self, part: float) -> None:
        self._tell_progress()
        self._done += part

    def _tell_progress(self) -> None:
        self._on_layer(min(1.0, self._done / (len(self._layers) + 1)))

    def _convolution(self, x: torch.Tensor, prefix: str) -> torch.Tensor:
        return self._convolved(x, prefix, padding=1)

    def _residual(self, x: torch.Tensor, prefix: str) -> torch.Tensor:
        h = self._convolved(self._normalised(x, f"{prefix}residual.0.gamma"), f"{prefix}residual.2.", padding=1)
        h = self._convolved(self._normalised(h, f"{prefix}residual.3.gamma", out=h), f"{prefix}residual.6.", padding=1)
        shortcut = f"{prefix}shortcut."
        return h.add_(self._convolved(x, shortcut) if f"{shortcut}weight" in self._weights else x)

    def _attention(self, x: torch.Tensor, prefix: str) -> torch.Tensor:
        import torch

        normalised = self._normalised(x, f"{prefix}norm.gamma", silu=False)
        qkv = self._convolved(normalised, f"{prefix}to_qkv.").permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(1)
        q, k, v = qkv.chunk(3, dim=-1)
        rows = max(1, ATTENTION_NUMBERS // k.shape[2])
        parts = []
        for part in torch.split(q, rows, dim=2):
            self._tell_progress()  # of a large picture this takes minutes
            parts.append(torch.nn.functional.scaled_dot_product_attention(part, k, v))
        attended = torch.cat(parts, dim=2)
        back = attended.reshape(x.shape[0], *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)
        return self._convolved(back, f"{prefix}proj.").add_(x)

    def _halved(self, x: torch.Tensor, prefix: str, part: float, *, below: bool) -> torch.Tensor:
        """A convolution of stride 2 that sees a column of zeros on the right and, if ``below``, a row there."""
        import torch

        self._begin_layer(part)
        padded = torch.nn.functional.pad(x, (0, 1, 0, int(below)))
        return self._convolved(padded, f"{prefix}resample.1.", stride=2)

    def _convolved(self, x: torch.Tensor, prefix: str, *, padding: int = 0, stride: int = 1) -> torch.Tensor:
        import torch

        weight, bias = self._fold(f"{prefix}weight"), self._fold(f"{prefix}bias")
        return torch.nn.functional.conv2d(x, weight, bias, stride=stride, padding=padding)

    def _normalised(
        self, x: torch.Tensor, gamma: str, *, out: torch.Tensor | None = None, silu: bool = True
    ) -> torch.Tensor:
        """Each pixel divided by the root of its channels' mean square, times gamma; then SiLU. May be in place."""
        import torch

        out = torch.empty_like(x, memory_format=torch.channels_last) if out is None else out
        scale = self._fold(gamma).flatten() * x.shape[1] ** 0.5
        source = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        target = out.permute(0, 2, 3, 1).view(-1, x.shape[1])  # never a copy: it is written to
        step = max(1, PIECE // x.shape[1]) if x.device.type == "cpu" else len(source)
        for first in range(0, len(source), step):
            piece, result = source[first : first + step], target[first : first + step]
            norm = torch.linalg.vector_norm(piece, dim=1, keepdim=True).clamp_min_(1e-12)
            torch.div(piece, norm, out=result).mul_(scale)
            if silu:
                torch.nn.functional.silu(result, inplace=True)
        return out

    def _fold(self, key: str) -> torch.Tensor:
        """A weight as 2-D convolutions want it: on the pixels' device and in their dtype, of the last time slice."""
        import torch

        if key not in self._folded:
            weight = self._weights[key]
            weight = (weight[:, :, -1] if weight.ndim == 5 else weight).to(self._pixels)
            is_kernel = weight.ndim == 4 and key.endswith("weight")
            self._folded[key] = weight.contiguous(memory_format=torch.channels_last) if is_kernel else weight
        return self._folded[key]
