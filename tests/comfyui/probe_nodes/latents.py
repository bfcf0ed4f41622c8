"""Odd LATENTs by name, and their comparison. Every kind is made again from its name and seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch

DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "complex64",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
]
"""Every dtype that safetensors reads and writes."""


def _samples(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape or (1, 16, 1, 12, 16), generator=generator)


def _nested(seed: int) -> dict:
    from comfy.nested_tensor import NestedTensor

    video, audio = _samples(seed, 1, 16, 3, 4, 6), _samples(seed + 1, 1, 8, 25, 16)
    masks = NestedTensor((torch.ones(1, 1, 3, 4, 6), torch.zeros(1, 1, 25, 16)))
    return {"samples": NestedTensor((video, audio)), "noise_mask": masks, "type": "audio_video"}


def _odd_tensors(seed: int) -> dict:
    whole = _samples(seed, 2, 8, 12, 16)
    return {
        "samples": whole.transpose(2, 3),
        "expanded": torch.arange(4.0).expand(3, 4),
        "strided": whole[:, ::2, 1:, ::3],
        "scalar": torch.tensor(3.5),
        "same_memory": whole[0],
    }


def _json_keys(seed: int) -> dict:
    return {
        "samples": _samples(seed),
        "batch_index": [4, 7],
        "text": 'größe 猫 "quoted"\nline',
        "number": 0.1,
        "whole": 2**53 + 1,
        "yes": True,
        "nothing": None,
        "deep": {"list": [1, [2, {"a": None}]], "empty": {}},
    }


KINDS: dict[str, Callable[[int], dict]] = {
    "plain": lambda seed: {"samples": _samples(seed)},
    "image-4d": lambda seed: {"samples": _samples(seed, 2, 4, 8, 8)},
    "noise-mask": lambda seed: {"samples": _samples(seed), "noise_mask": _samples(seed + 1, 1, 1, 96, 128) > 0},
    "batch-index": lambda seed: {"samples": _samples(seed, 3, 4, 8, 8), "batch_index": [2, 0, 5]},
    "unknown-tensor": lambda seed: {"samples": _samples(seed), "my tensor/ü": _samples(seed + 1, 7).to(torch.int32)},
    "json-keys": _json_keys,
    "non-contiguous": _odd_tensors,
    "zero-batch": lambda seed: {"samples": _samples(seed, 0, 16, 1, 12, 16)},
    "empty-mask": lambda seed: {"samples": _samples(seed), "noise_mask": torch.zeros(0, 96, 128)},
    "not-finite": lambda seed: {"samples": torch.tensor([[[[float("nan"), float("inf"), -0.0, -float("inf")]]]])},
    "large": lambda seed: {"samples": _samples(seed, 1, 16, 1, 512, 512)},
    "nested": _nested,
    "complex128": lambda seed: {"samples": _of_dtype(seed, "complex128")},
    "float8_e8m0fnu": lambda seed: {"samples": _of_dtype(seed, "float8_e8m0fnu")},
    "no-samples": lambda seed: {"batch_index": [0]},
    "object-key": lambda seed: {"samples": _samples(seed), "callback": print},
    **{f"dtype-{name}": lambda seed, name=name: {"samples": _of_dtype(seed, name)} for name in DTYPES},
}


def _of_dtype(seed: int, name: str) -> torch.Tensor:
    dtype = getattr(torch, name)
    values = _samples(seed) * 3
    if dtype == torch.bool:
        return values > 0
    if dtype.is_complex:
        return torch.complex(values, values.flip(0)).to(dtype)
    return values.to(dtype) if dtype.is_floating_point else values.abs().to(torch.int32).to(dtype)


def make(kind: str, seed: int = 0) -> dict:
    """The LATENT of that kind; the same one for the same seed."""
    return KINDS[kind](seed)


def differences(found: object, wanted: object, name: str = "latent") -> list[str]:
    """What differs, in words; an empty list where nothing does. Tensors are compared by dtype, shape and bytes."""
    if isinstance(wanted, torch.Tensor):
        return _tensor_differences(found, wanted, name)
    if type(found) is not type(wanted):
        return [f"{name}: {type(found).__name__} in the place of {type(wanted).__name__}"]
    if getattr(wanted, "is_nested", False):
        found, wanted = list(found.unbind()), list(wanted.unbind())
    if isinstance(wanted, list):
        found, wanted = dict(enumerate(found)), dict(enumerate(wanted))
    if isinstance(wanted, dict):
        if found.keys() != wanted.keys():
            return [f"{name}: {list(found)} in the place of {list(wanted)}"]
        return [text for key in wanted for text in differences(found[key], wanted[key], f"{name}.{key}")]
    return [] if found == wanted else [f"{name}: {found!r} in the place of {wanted!r}"]


def _tensor_differences(found: object, wanted: torch.Tensor, name: str) -> list[str]:
    if not isinstance(found, torch.Tensor):
        return [f"{name}: {type(found).__name__} in the place of a tensor"]
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return [f"{name}: {found.dtype} {tuple(found.shape)} in the place of {wanted.dtype} {tuple(wanted.shape)}"]
    return [] if _bytes(found) == _bytes(wanted) else [f"{name}: other values"]


def digest(latent: dict) -> dict:
    """Shape, dtype and SHA-256 (of the contiguous bytes) of a LATENT's samples."""
    samples = latent["samples"]
    return {
        "shape": list(samples.shape),
        "dtype": str(samples.dtype),
        "sha256": hashlib.sha256(_bytes(samples)).hexdigest(),
    }


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
