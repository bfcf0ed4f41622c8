"""The floor of an encode: its multiplications and additions at the rate of this machine's matrix product."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import machine
from latent_encoder.fast_encoder import encode_frame

MATRIX = 8192 if machine.CUDA else 2048
"""Rows and columns: enough to keep the device busy."""


def count_operations(vae: Path, size: tuple[int, int]) -> int:
    """The multiplications and additions of one encode of a picture of (height, width); nothing is computed."""
    weights = {
        key: weight.to("meta") for key, weight in load_file(vae).items() if not key.startswith(("decoder.", "conv2."))
    }
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        encode_frame(weights, torch.empty(1, 3, 1, *size, device="meta"), strip_rows=size[0])
    return int(counter.get_total_flops())


def measure_rate(dtype: torch.dtype) -> float:
    """Operations a second of a product of two square matrices, the best of three."""
    one, other = (torch.rand(MATRIX, MATRIX, device=machine.DEVICE, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(3):
        _wait()
        begin = time.perf_counter()
        one @ other
        _wait()
        seconds.append(time.perf_counter() - begin)
    return 2 * MATRIX**3 / min(seconds)


def _wait() -> None:
    if machine.CUDA:
        torch.cuda.synchronize()
