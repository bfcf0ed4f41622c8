"""The folded encoder against one that pads time with zeros and convolves in 3-D, as Wan 2.1's paper has it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from latent_encoder import fast_encoder
from latent_encoder.fast_encoder import FastEncoder, encode_frame, understands

Weights = dict[str, torch.Tensor]
LATENT_CHANNELS = 4


def random_weights(width: int = 8, picture_channels: int = 3) -> Weights:
    """An encoder of the family, small: four levels, attention in the middle."""
    generator = torch.Generator().manual_seed(0)
    weights: Weights = {}

    def conv(name: str, inputs: int, outputs: int, *kernel: int) -> None:
        scale = (inputs * kernel[-1] ** 2) ** -0.5 if kernel else 1
        weights[f"{name}.weight"] = torch.randn((outputs, inputs, *kernel), generator=generator) * scale
        weights[f"{name}.bias"] = torch.randn(outputs, generator=generator) / 10

    def gamma(name: str, channels: int, axes: int = 3) -> None:
        weights[f"{name}.gamma"] = 1 + torch.randn((channels, *[1] * axes), generator=generator) / 10

    def residual(name: str, inputs: int, outputs: int) -> None:
        gamma(f"{name}.residual.0", inputs)
        conv(f"{name}.residual.2", inputs, outputs, 3, 3, 3)
        gamma(f"{name}.residual.3", outputs)
        conv(f"{name}.residual.6", outputs, outputs, 3, 3, 3)
        if inputs != outputs:
            conv(f"{name}.shortcut", inputs, outputs, 1, 1, 1)

    conv("encoder.conv1", picture_channels, width, 3, 3, 3)
    number, inputs = 0, width
    for level, outputs in enumerate((width, 2 * width, 4 * width, 4 * width)):
        for _ in range(2):
            residual(f"encoder.downsamples.{number}", inputs, outputs)
            number, inputs = number + 1, outputs
        if level < 3:
            conv(f"encoder.downsamples.{number}.resample.1", outputs, outputs, 3, 3)
            if level:
                conv(f"encoder.downsamples.{number}.time_conv", outputs, outputs, 3, 1, 1)
            number += 1
    residual("encoder.middle.0", inputs, inputs)
    gamma("encoder.middle.1.norm", inputs, 2)
    conv("encoder.middle.1.to_qkv", inputs, 3 * inputs, 1, 1)
    conv("encoder.middle.1.proj", inputs, inputs, 1, 1)
    residual("encoder.middle.2", inputs, inputs)
    gamma("encoder.head.0", inputs)
    conv("encoder.head.2", inputs, 2 * LATENT_CHANNELS, 3, 3, 3)
    conv("conv1", 2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1, 1, 1)
    return weights


def encode_in_3d(weights: Weights, pixels: torch.Tensor) -> torch.Tensor:
    """The plain way, layer after layer, with the past as zeros."""

    def conv(x: torch.Tensor, name: str) -> torch.Tensor:
        kernel = weights[f"{name}.weight"]
        time, space = kernel.shape[2] - 1, kernel.shape[3] // 2
        padded = functional.pad(x, (space, space, space, space, time, 0))
        return functional.conv3d(padded, kernel, weights[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        gamma = weights[f"{name}.gamma"].reshape(-1, 1, 1, 1)
        return functional.normalize(x, dim=1) * x.shape[1] ** 0.5 * gamma

    def residual(x: torch.Tensor, name: str) -> torch.Tensor:
        h = conv(functional.silu(norm(x, f"{name}.residual.0")), f"{name}.residual.2")
        h = conv(functional.silu(norm(h, f"{name}.residual.3")), f"{name}.residual.6")
        return h + (conv(x, f"{name}.shortcut") if f"{name}.shortcut.weight" in weights else x)

    def downsampled(x: torch.Tensor, name: str) -> torch.Tensor:
        padded = functional.pad(x[:, :, 0], (0, 1, 0, 1))
        kernel, bias = weights[f"{name}.resample.1.weight"], weights[f"{name}.resample.1.bias"]
        return functional.conv2d(padded, kernel, bias, stride=2).unsqueeze(2)

    def attention(x: torch.Tensor, name: str) -> torch.Tensor:
        def conv_2d(x: torch.Tensor, layer: str) -> torch.Tensor:
            return functional.conv2d(x, weights[f"{name}.{layer}.weight"], weights[f"{name}.{layer}.bias"])

        q, k, v = (part.flatten(2).mT for part in conv_2d(norm(x, f"{name}.norm")[:, :, 0], "to_qkv").chunk(3, dim=1))
        mixed = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1) @ v
        return x + conv_2d(mixed.mT.reshape(x[:, :, 0].shape), "proj").unsqueeze(2)

    x = conv(pixels, "encoder.conv1")
    for number in range(11):
        name = f"encoder.downsamples.{number}"
        x = downsampled(x, name) if f"{name}.resample.1.weight" in weights else residual(x, name)
    x = residual(attention(residual(x, "encoder.middle.0"), "encoder.middle.1"), "encoder.middle.2")
    x = conv(conv(functional.silu(norm(x, "encoder.head.0")), "encoder.head.2"), "conv1")
    return x.chunk(2, dim=1)[0]


def picture(height: int = 64, width: int = 88, batch: int = 1, frames: int = 1, channels: int = 3) -> torch.Tensor:
    shape = (batch, channels, frames, height, width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(height)) * 2 - 1


def fast(weights: Weights, stock: Callable[[torch.Tensor], torch.Tensor] | None = None, **options: Any) -> FastEncoder:
    return FastEncoder(
        stock or (lambda pixels: encode_in_3d(cast(weights, pixels), pixels)), lambda: weights, **options
    )


def cast(weights: Weights, like: torch.Tensor) -> Weights:
    return {key: weight.to(like) for key, weight in weights.items()}


@pytest.mark.parametrize("rows", [None, 2, 6, 16, 64, 1000])
@pytest.mark.parametrize("size", [(64, 88), (8, 8), (24, 200), (200, 24)])
def test_equal_to_the_3d_encoder(size: tuple[int, int], rows: int | None) -> None:
    """Whole, and in strips of any height."""
    weights, pixels = random_weights(), picture(*size)
    expected = encode_in_3d(weights, pixels)
    got = encode_frame(weights, pixels, strip_rows=rows)
    assert got.shape == expected.shape == (1, LATENT_CHANNELS, 1, size[0] // 8, size[1] // 8)
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() < 2e-5
    assert expected.std() > 0.1


@pytest.mark.parametrize("rows", [None, 16])
@pytest.mark.parametrize("size", [(66, 90), (67, 35), (45, 64)])
def test_sides_that_are_no_multiples_of_8(size: tuple[int, int], rows: int | None) -> None:
    """ComfyUI crops before; others who call a VAE may not."""
    weights, pixels = random_weights(), picture(*size)
    expected, got = encode_in_3d(weights, pixels), encode_frame(weights, pixels, strip_rows=rows)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < 2e-5


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("channels", [3, 4])
def test_batches_and_layered_pictures(batch: int, channels: int) -> None:
    weights, pixels = random_weights(picture_channels=channels), picture(batch=batch, channels=channels)
    assert (encode_frame(weights, pixels) - encode_in_3d(weights, pixels)).abs().max() < 2e-5


def test_pixels_and_weights_are_left_as_they_are() -> None:
    weights, pixels = random_weights(), picture()
    before = {key: weight.clone() for key, weight in weights.items()}, pixels.clone()
    encode_frame(weights, pixels)
    assert torch.equal(pixels, before[1])
    assert all(torch.equal(weights[key], before[0][key]) for key in weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_numbers_are_as_near_as_their_rounding(dtype: torch.dtype) -> None:
    weights, pixels = random_weights(), picture()
    exact = encode_in_3d(weights, pixels)
    rounded = pixels.to(dtype)
    stock, got = encode_in_3d(cast(weights, rounded), rounded), encode_frame(weights, rounded)
    assert got.dtype == dtype
    assert (got - exact).norm() < 1.2 * (stock - exact).norm()
    encoder = fast(weights)
    assert encoder.trusts(rounded)
    assert encoder.trusts(pixels)


def test_attention_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, pixels = random_weights(), picture()
    whole = encode_frame(weights, pixels)
    monkeypatch.setattr(fast_encoder, "ATTENTION_NUMBERS", 700)  # of 88 squared
    told: list[float] = []
    assert (encode_frame(weights, pixels, on_layer=told.append) - whole).abs().max() < 1e-5
    assert max(Counter(told).values()) == 1 + 13, "13 parts of 7 rows can each be interrupted"


def test_weights_that_are_trained_make_no_graph() -> None:
    weights = {key: weight.requires_grad_() for key, weight in random_weights().items()}
    encoder = fast(weights)
    assert not encoder.encode(picture()).requires_grad
    assert encoder.optimized
    assert encoder.encode(picture().requires_grad_()).requires_grad, "whoever wants a gradient has one"
    assert encoder.optimized is False


def test_changed_weights_count_at_once() -> None:
    weights = random_weights()
    encoder = fast(weights)
    first = encoder.encode(picture())
    weights["conv1.bias"] = weights["conv1.bias"] + 1
    assert (encoder.encode(picture()) - first - 1).abs().max() < 1e-5


@pytest.mark.parametrize("rows", [None, 16])
def test_progress_grows(rows: int | None) -> None:
    parts: list[float] = []
    encode_frame(random_weights(), picture(), strip_rows=rows, on_layer=parts.append)
    assert parts == sorted(parts)
    assert parts[0] == 0.0
    assert 0.9 < parts[-1] <= 1
    assert len(parts) == 16 if rows is None else len(parts) > 16


def test_what_progress_raises_ends_the_call() -> None:
    class Stopped(Exception):
        pass

    def stop(part: float) -> None:
        raise Stopped

    encoder = fast(random_weights(), on_layer=stop)
    with pytest.raises(Stopped):
        encoder.encode(picture())
    assert encoder.trusts(picture())


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("encoder.middle.1.proj.bias"),
        lambda weights: weights.pop("conv1.bias"),
        lambda weights: weights.update({"encoder.downsamples.0.avg_shortcut.weight": torch.zeros(1)}),
        lambda weights: weights.update({"encoder.extra.weight": torch.zeros(1)}),
        dict.clear,
    ],
)
def test_other_encoders_are_not_understood(change: Callable[[Weights], object]) -> None:
    weights = random_weights()
    assert understands(weights)
    assert understands([*weights, "conv2.weight", "decoder.conv1.weight"])
    change(weights)
    assert not understands(weights)


def test_videos_go_the_models_own_way() -> None:
    weights, video, marker = random_weights(), picture(frames=5), torch.zeros(1)
    encoder = fast(weights, lambda pixels: marker if pixels.shape[2] > 1 else encode_in_3d(weights, pixels))
    assert encoder.encode(video) is marker
    assert encoder.optimized is False
    encoder.encode(picture())
    assert encoder.optimized is False, "the last tile of a video is not all of it"
    encoder.optimized = None
    encoder.encode(picture())
    assert encoder.optimized


def test_pictures_that_cannot_be_halved_go_the_models_own_way() -> None:
    marker = torch.zeros(1)
    for size in ((7, 100), (100, 1)):
        encoder = fast(random_weights(), lambda pixels: marker)
        assert encoder.encode(picture(*size)) is marker
        assert encoder.optimized is False


@pytest.mark.parametrize("off_by", [1e-3, float("nan")])
def test_a_difference_switches_it_off(off_by: float, caplog: pytest.LogCaptureFixture) -> None:
    weights = random_weights()
    calls = []

    def stock(pixels: torch.Tensor) -> torch.Tensor:
        calls.append(pixels.shape)
        return encode_in_3d(weights, pixels) + off_by

    encoder = fast(weights, stock)
    with caplog.at_level(logging.WARNING):
        encoder.encode(picture())
        encoder.encode(picture())
    assert encoder.optimized is False
    assert len(calls) == 3, "one check, two pictures"
    assert [record.getMessage() for record in caplog.records if "it is off" in record.getMessage()][1:] == []
    assert "from float64" in caplog.text


def test_a_failure_switches_it_off(caplog: pytest.LogCaptureFixture) -> None:
    weights = random_weights()
    encoder = FastEncoder(lambda pixels: encode_in_3d(weights, pixels), dict)
    assert torch.equal(encoder.encode(picture()), encode_in_3d(weights, picture()))
    assert encoder.optimized is False
    assert "does not run here" in caplog.text


def test_want_of_memory_does_not() -> None:
    weights, full = random_weights(), True

    def read() -> Weights:
        if full:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return weights

    encoder = FastEncoder(lambda pixels: encode_in_3d(cast(weights, pixels), pixels), read)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        encoder.encode(picture())
    full = False
    encoder.encode(picture())
    assert encoder.optimized
