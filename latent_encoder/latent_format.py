"""The four formats of a latent file, as bytes: how a ComfyUI LATENT becomes a file's content, and back.

A LATENT is a dict with at least ``samples``, a tensor of shape (batch, channels, height, width), with a time axis
before the height for video VAEs, or a nested tensor (audio and video side by side). ``docs/latent-file.md`` specifies
the bytes.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from .errors import LatentEncoderError

if TYPE_CHECKING:
    import torch

FileFormat = Literal["safetensors", "latent", "pt", "npy"]
FILE_FORMATS: tuple[str, ...] = get_args(FileFormat)

TENSOR = "latent_tensor"
VERSION_TENSOR = "latent_format_version_0"
STRUCTURE = "latent_structure"
RECORD = "latent_record"
TENSOR_SHA256 = "tensor_sha256"
RESERVED_METADATA = {STRUCTURE, RECORD, TENSOR_SHA256}

SAFE_PT_TORCH = (2, 6)  # before it, weights_only=True could be made to run code (CVE-2025-32434)
MAX_HEADER_BYTES = 100_000_000  # what the safetensors library reads
SD_SCALE = 0.18215  # the factor in ComfyUI's first .latent files, which have no version tensor

Nested = Callable[[list["torch.Tensor"]], Any]
"""Makes the host's nested tensor of its parts."""


@dataclass(frozen=True)
class SafetensorsContent:
    """A safetensors file before its data's checksum is known.

    Attributes:
        metadata: what the header holds besides the tensors.
        tensors: the header's entry of each tensor.
        buffers: the data section's parts, in order, sharing memory with the tensors.
    """

    metadata: dict[str, str]
    tensors: dict[str, dict[str, Any]]
    buffers: list[memoryview]

    def header(self, tensor_sha256: str) -> bytes:
        """The file's first bytes: eight of length, then JSON; equally long for every checksum."""
        metadata = self.metadata | {TENSOR_SHA256: tensor_sha256}
        text = json.dumps({"__metadata__": metadata} | self.tensors, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def safetensors_content(latent: dict[str, Any], metadata: dict[str, str]) -> SafetensorsContent:
    """Lay out a whole LATENT: every key, whatever its name.

    Raises:
        LatentEncoderError: FORMAT_UNSUPPORTED for a value that is neither a tensor of a dtype that safetensors holds,
            nor a nested tensor of such, nor plain JSON; LATENT_INVALID without ``samples``.
    """
    tensors, structure = _flatten(latent)
    entries: dict[str, dict[str, Any]] = {}
    buffers: list[memoryview] = []
    position = 0
    names = {dtype: name for name, dtype in _safetensors_dtypes().items()}
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].element_size()):  # keeps each one aligned
        if tensor.dtype not in names:
            raise _unsupported("safetensors", f"'{name}' is {tensor.dtype}")
        buffer = _bytes_of(tensor)
        entries[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + len(buffer)],
        }
        buffers.append(buffer)
        position += len(buffer)
    content = SafetensorsContent(metadata | {STRUCTURE: json.dumps(structure)}, entries, buffers)
    if len(content.header("0" * 64)) > MAX_HEADER_BYTES:
        raise _unsupported("safetensors", f"its header would have more than {MAX_HEADER_BYTES:,} bytes")
    return content


def bare_tensor_content(latent: dict[str, Any], file_format: str) -> bytes:
    """The bytes of a ``pt`` or ``npy`` file, which hold the one tensor ``samples`` and nothing else.

    Raises:
        LatentEncoderError: FORMAT_UNSUPPORTED for a LATENT with more keys, a nested one, or a dtype that numpy lacks.
    """
    import numpy
    import torch

    samples = _samples_of(latent)
    others = sorted(str(key) for key in latent if key != "samples")
    if others:
        raise _unsupported(file_format, f"it holds one tensor; this latent also has {', '.join(others)}")
    if not isinstance(samples, torch.Tensor) or samples.is_nested:
        raise _unsupported(file_format, f"'samples' is {_describe(samples)}")
    samples = _on_cpu(samples, "samples", file_format).contiguous()
    buffer = io.BytesIO()
    if file_format == "pt":
        if samples.untyped_storage().nbytes() != samples.nbytes:
            samples = samples.clone()  # torch.save writes the whole storage that a view looks into
        torch.save(samples, buffer)
    else:
        try:
            numpy.save(buffer, samples.numpy(), allow_pickle=False)
        except TypeError as error:
            raise _unsupported(file_format, f"'samples' is {samples.dtype}") from error
    return buffer.getvalue()


def parse(data: bytes, file_format: str, nested: Nested | None) -> tuple[dict[str, Any], dict[str, str]]:
    """A file's bytes as a LATENT on the CPU, and its header's metadata (none for ``pt`` and ``npy``).

    Raises:
        LatentEncoderError: LATENT_INVALID; FORMAT_UNSUPPORTED for nested tensors without ``nested``, and for ``pt``
            where torch cannot read it safely; OUT_OF_MEMORY.
    """
    try:
        if file_format == "pt":
            return {"samples": _parse_pt(data)}, {}
        if file_format == "npy":
            return {"samples": _parse_npy(data)}, {}
        return _parse_safetensors(data, nested)
    except MemoryError as error:
        raise LatentEncoderError("OUT_OF_MEMORY", "There is not enough memory to load the latent.") from error


def data_section(data: bytes) -> memoryview:
    """The bytes that ``tensor_sha256`` is taken of: all behind a safetensors header."""
    return memoryview(data)[8 + int.from_bytes(data[:8], "little") :]


def header_metadata(data: bytes) -> dict[str, str]:
    """The metadata in a safetensors file's header.

    Raises:
        ValueError, AttributeError, RecursionError: the bytes begin with no such header.
    """
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    return metadata


def _samples_of(latent: dict[str, Any]) -> Any:
    if "samples" not in latent:
        raise LatentEncoderError("LATENT_INVALID", "The LATENT has no 'samples'.", "Wire in a VAEEncode or a sampler.")
    return latent["samples"]


def _flatten(latent: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    import torch

    _samples_of(latent)
    tensors = {VERSION_TENSOR: torch.empty(0)}
    structure: dict[str, Any] = {}

    def add(name: str, tensor: torch.Tensor) -> str:
        while name in tensors:
            name += "_"
        tensors[name] = _on_cpu(tensor, name, "safetensors")
        return name

    for key, value in latent.items():
        name = TENSOR if key == "samples" else f"latent.{key}"
        if not isinstance(key, str) or as_text(key) != key:
            raise _unsupported("safetensors", f"the key {key!r} is no text")
        if isinstance(value, torch.Tensor) and not value.is_nested:
            structure[key] = {"tensor": add(name, value)}
        elif getattr(value, "is_nested", False) and not isinstance(value, torch.Tensor):
            structure[key] = {"nested": [add(f"{name}.{i}", part) for i, part in enumerate(value.unbind())]}
        elif key != "samples" and _is_json(value):
            structure[key] = {"json": value}
        else:
            raise _unsupported("safetensors", f"'{key}' is {_describe(value)}")
    return tensors, structure


def as_text(value: str) -> str:
    """``value`` with a question mark for what UTF-8 cannot write, such as bytes of a Linux file name."""
    return value.encode("utf-8", "replace").decode()


def _on_cpu(tensor: torch.Tensor, name: str, file_format: str) -> torch.Tensor:
    import torch

    if tensor.layout != torch.strided or tensor.is_meta:
        raise _unsupported(file_format, f"'{name}' is a tensor of {tensor.layout} on the device '{tensor.device}'")
    return tensor.detach().cpu().resolve_conj().resolve_neg()


def _is_json(value: Any) -> bool:
    """Whether ``value`` comes back from JSON as it was (a tuple would not, nor a NaN or a key that is a number)."""
    try:
        json.dumps(value)  # an endless list, a number of 5,000 digits
        return _has_json_types(value)
    except (TypeError, ValueError, RecursionError):
        return False


def _has_json_types(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str for key in value) and all(map(_has_json_types, value.values()))
    if type(value) is list:
        return all(map(_has_json_types, value))
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    import torch

    dense = tensor.contiguous()
    flat = dense.as_strided((dense.numel(),), (1,))  # one number sliced out of many keeps its old stride
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


def _parse_safetensors(data: bytes, nested: Nested | None) -> tuple[dict[str, Any], dict[str, str]]:
    import safetensors.torch

    try:
        tensors = safetensors.torch.load(data)
        metadata = header_metadata(data)
    except MemoryError:
        raise
    except Exception as error:  # safetensors raises its own type, KeyError for an unknown dtype, and others
        raise LatentEncoderError("LATENT_INVALID", f"The file is no whole safetensors file ({error}).") from error
    if STRUCTURE in metadata:
        return _rebuild(tensors, metadata[STRUCTURE], nested), metadata
    if TENSOR not in tensors:
        raise LatentEncoderError(
            "LATENT_INVALID",
            f"The file holds no '{TENSOR}': it is a safetensors file, but not a latent.",
            "Choose a file that a latent-saving node has written.",
        )
    scale = 1.0 if VERSION_TENSOR in tensors else 1.0 / SD_SCALE
    return {"samples": tensors[TENSOR].float() * scale}, metadata  # as ComfyUI's own LoadLatent


def _rebuild(tensors: dict[str, torch.Tensor], structure: str, nested: Nested | None) -> dict[str, Any]:
    latent: dict[str, Any] = {}
    try:
        entries = json.loads(structure)
        for key, entry in entries.items():
            if "tensor" in entry:
                latent[key] = tensors[entry["tensor"]]
            elif "nested" not in entry:
                latent[key] = entry["json"]
            elif nested is None:
                raise LatentEncoderError(
                    "FORMAT_UNSUPPORTED",
                    f"'{key}' is a nested tensor, which this ComfyUI does not know.",
                    "Load it in a ComfyUI that has nested (audio and video) latents.",
                )
            else:
                latent[key] = nested([tensors[name] for name in entry["nested"]])
        if not (entries["samples"].get("tensor") or entries["samples"].get("nested")):
            raise TypeError("'samples' is no tensor")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise LatentEncoderError("LATENT_INVALID", f"The header's '{STRUCTURE}' does not fit ({error!r}).") from error
    return latent


def _parse_pt(data: bytes) -> torch.Tensor:
    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_PT_TORCH:
        raise LatentEncoderError(
            "FORMAT_UNSUPPORTED",
            f"torch {torch.__version__} cannot read .pt files safely.",
            "Update torch to 2.6 or newer.",
        )
    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("it is compressed, which torch.save never does")  # 1 MB may become 1 GB
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # pickle, zip and torch errors alike
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if type(error).__name__ == "UnpicklingError":  # torch's words tell how to load it all the same
            reason = "its pickle holds more than a tensor, or is damaged"
        raise LatentEncoderError(
            "LATENT_INVALID",
            f"The file is no tensor that can be loaded safely ({reason}).",
            "Only a bare tensor is read from a .pt file: other pickles could run code.",
        ) from error
    return _tensor(value)


def _parse_npy(data: bytes) -> torch.Tensor:
    import numpy
    import torch

    try:
        array = numpy.load(io.BytesIO(data), allow_pickle=False)
        return _tensor(torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False)))
    except LatentEncoderError:
        raise
    except Exception as error:  # numpy's parser raises many types, MemoryError for a shape that is a lie
        raise LatentEncoderError("LATENT_INVALID", f"The file is no .npy file of numbers ({error}).") from error


def _tensor(value: Any) -> torch.Tensor:
    import torch

    plain = isinstance(value, torch.Tensor) and value.layout == torch.strided
    if not plain or value.is_nested or value.is_meta or value.is_quantized:
        raise LatentEncoderError("LATENT_INVALID", f"The file holds {_describe(value)}, not a tensor of plain numbers.")
    if value.nbytes > value.untyped_storage().nbytes():
        raise LatentEncoderError(
            "LATENT_INVALID", f"The file holds fewer numbers than its shape {list(value.shape)} says."
        )
    tensor: torch.Tensor = value.detach()
    return tensor


def _safetensors_dtypes() -> dict[str, torch.dtype]:
    """Safetensors' name of each dtype that the installed safetensors and torch both have, and so can read back."""
    import safetensors.torch
    import torch

    names = {
        "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64",
        "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "BOOL": "bool",
        "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
        "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
        "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    }  # fmt: skip
    read = getattr(safetensors.torch, "_TYPES", names)
    return {name: getattr(torch, dtype) for name, dtype in names.items() if name in read and hasattr(torch, dtype)}


def _describe(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _unsupported(file_format: str, what: str) -> LatentEncoderError:
    hint = None if file_format != "safetensors" else "Remove that key before saving, or convert its value to a tensor."
    return LatentEncoderError(
        "FORMAT_UNSUPPORTED", f"The format '{file_format}' cannot hold this latent: {what}.", hint
    )
