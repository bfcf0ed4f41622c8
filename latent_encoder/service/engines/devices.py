"""Where the embedded engine computes, and with which numbers: what ComfyUI would pick there for a VAE."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_KEPT_BYTES, _MOST_FROM_HEAP = 256 << 20, 32 << 20
_MALLOC_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")

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


def keep_freed_memory() -> None:
    """Let GNU's C library keep up to 256 MB of what is freed, unless the environment has settings of its own for it.

    Else it gives the memory of a small picture's layers back and fetches it again, page by page, in some processes at
    each encode and in others never: a tenth of the time. Tensors beyond 32 MB, its most for this, go back as ever.
    """
    if sys.platform == "linux" and not any(name in os.environ for name in _MALLOC_SETTINGS):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if mallopt:
            mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
            mallopt(_M_MMAP_THRESHOLD, _MOST_FROM_HEAP)
