"""Odd LATENTs for the unit tests: strategies that make them, and a comparison down to the bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import safetensors.torch
import torch
from hypothesis import strategies as st

# Every dtype that safetensors holds; float8 as far as this torch has them all.
DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "complex64",
    "int64",
    "int32",
    "int16",
    "int8",
    "bool",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
]
NOT_IN_NUMPY = {"bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"}
LAYOUTS = ("plain", "transposed", "sliced", "expanded", "offset")
ODD_KEYS = [
    "noise_mask",
    "batch_index",
    "latent_tensor",
    "latent_format_version_0",
    "latent.a",
    "latent.a.0",
    "a",
    "a.0",
    "a_",
    "__metadata__",
    "latent_structure",
    "latent_record",
    "tensor_sha256",
    "json",
    "tensor",
    "nested",
    "path",
    "größe",
    "猫",
    "",
    " ",
    ".",
    "a\x00b",
    '"',
    "\\",
    "line\nbreak",
]


class Nested:
    """Stands in for a host's nested tensor: all that the core knows of it is ``is_nested`` and ``unbind()``."""

    is_nested = True

    def __init__(self, parts: list[torch.Tensor]) -> None:
        self.parts = parts

    def unbind(self) -> Iterator[torch.Tensor]:
        return iter(self.parts)


def random_tensor(dtype: str, shape: tuple[int, ...], layout: str = "plain", seed: int = 0) -> torch.Tensor:
    """A tensor of random bytes (every NaN, infinity and denormal may occur), laid out oddly in its storage."""
    count = len(shape)
    base = shape
    if layout == "transposed":
        base = shape[::-1]
    elif layout == "sliced":
        base = tuple(2 * size + 1 for size in shape)
    elif layout == "expanded" and count:
        base = (1, *shape[1:])
    numbers = 1
    for size in base:
        numbers *= size
    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, ((numbers + 1) * kind.itemsize,), dtype=torch.uint8, generator=generator)
    flat = (raw & 1).bool() if kind == torch.bool else raw.view(kind)
    tensor = (flat[1:] if layout == "offset" else flat[:numbers]).view(base)
    if layout == "transposed":
        return tensor.permute(tuple(range(count)[::-1]))
    if layout == "sliced":
        return tensor[tuple(slice(1, None, 2) for _ in shape)]
    return tensor.expand(shape)


shapes = st.lists(st.integers(0, 4), max_size=5).map(tuple)
tensors = st.builds(random_tensor, st.sampled_from(DTYPES), shapes, st.sampled_from(LAYOUTS), st.integers(0, 2**32 - 1))
nested = st.lists(tensors, min_size=1, max_size=3).map(Nested)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
keys = st.sampled_from(ODD_KEYS) | texts
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
latents = st.builds(
    lambda others, samples: others | {"samples": samples},
    st.dictionaries(keys, tensors | nested | json_values, max_size=5),
    tensors | nested,
)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """A tensor's numbers in row order, bit for bit."""
    # clone(): a view of one number counts as contiguous whatever its strides are.
    flat = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format).reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def assert_same(found: Any, wanted: Any, name: str = "latent") -> None:
    """``found`` is ``wanted`` by type, dtype, shape and bytes."""
    if isinstance(wanted, torch.Tensor):
        assert isinstance(found, torch.Tensor), f"{name}: {type(found)}"
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), name
        assert raw_bytes(found) == raw_bytes(wanted), f"{name}: other values"
        assert not found.requires_grad, name
    elif isinstance(wanted, Nested):
        assert isinstance(found, Nested), f"{name}: {type(found)}"
        assert_same(list(found.unbind()), list(wanted.unbind()), name)
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted), f"{name}: other keys, or in another order"
        for key, value in wanted.items():
            assert_same(found[key], value, f"{name}[{key!r}]")
    elif isinstance(wanted, list):
        assert type(found) is list and len(found) == len(wanted), name
        for index, value in enumerate(wanted):
            assert_same(found[index], value, f"{name}[{index}]")
    else:
        assert type(found) is type(wanted) and repr(found) == repr(wanted), f"{name}: {found!r}"  # repr: -0.0


def file_of(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file as anybody else writes it."""
    return safetensors.torch.save(tensors, metadata)


NOT_PLAIN: dict[str, torch.Tensor] = {
    "sparse": torch.eye(3).to_sparse(),
    "sparse csr": torch.eye(3).to_sparse_csr(),
    "meta": torch.zeros(3, device="meta"),
    "torch's nested": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
}
"""Tensors without numbers of their own in rows."""
