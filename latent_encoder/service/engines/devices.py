"""Where the embedded engine computes, and with which numbers: what ComfyUI would pick there for a VAE."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_BROKEN_HALF = re.compile(r"GTX 16\d\d|T500|T550|T600|MX550|MX450|CMP 30HX|T2000|T1000|T1200")
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED", re.IGNORECASE)


def pick_device() -> torch.device:
    """CUDA (or ROCm) where there is one, else Apple's MPS, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(device: torch.device, half_types: Sequence[torch.dtype]) -> torch.dtype:
    """The first of ``half_types``, in a VAE family's order, that is quick and sound on the device; else float32."""
    import torch

    works = {torch.bfloat16: _bfloat16_works, torch.float16: _float16_works}
    return next((dtype for dtype in half_types if works[dtype](device)), torch.float32)


def _bfloat16_works(device: torch.device) -> bool:
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "mps" and torch.backends.mps.is_macos_or_newer(14, 0)


def _float16_works(device: torch.device) -> bool:
    import torch

    if device.type != "cuda" or torch.version.hip:
        return device.type != "cpu"
    properties = torch.cuda.get_device_properties(device)
    return properties.major >= 8 or (properties.major == 7 and not _BROKEN_HALF.search(properties.name))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or its accelerator had too little memory; torch has no one class for it."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def free_unused(device: torch.device) -> None:
    """Give back what torch keeps of the accelerator's memory for later."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
