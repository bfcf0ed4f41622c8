"""The VAEs in a ComfyUI ``models`` folder: their names, as VAELoader lists them, and their files' weights."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from latent_encoder.errors import LatentEncoderError
from latent_encoder.latent_format import SAFE_PT_TORCH
from latent_encoder.paths import check_relative

from .devices import is_out_of_memory

if TYPE_CHECKING:
    import torch

    Weights = dict[str, torch.Tensor]

PIXEL_SPACE = "pixel_space"
TINY_NAMES = ("taesd", "taesdxl", "taesd3", "taef1")
FLUX2_TINY_NAME = "taef2"
VIDEO_TINY_NAMES = ("taehv", "lighttaew2_2", "lighttaew2_1", "lighttaehy1_5", "taeltx_2", "taeh3")
SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".bin", ".pth", ".pkl")
MAX_NAMES = 20

ASK_COMFYUI = "If ComfyUI can load it, use the engine 'comfyui'; docs/engines.md lists what 'embedded' knows."
REPLACE = "Download the VAE file again."


@dataclass(frozen=True)
class VaeFiles:
    """A VAE's name and where it lies: one file; the encoder's and the decoder's of a tiny one; none of pixel_space."""

    name: str
    paths: tuple[Path, ...]

    def state(self) -> tuple[tuple[str, int, int, int], ...]:
        """Another value once a file is another one.

        Raises:
            LatentEncoderError: VAE_MODEL_NOT_FOUND.
        """
        try:
            stats = [(str(path), path.stat()) for path in self.paths]
        except OSError as error:
            raise LatentEncoderError(
                "VAE_MODEL_NOT_FOUND", f"The VAE '{self.name}' cannot be read ({error.strerror})."
            ) from error
        return tuple((path, status.st_ino, status.st_size, status.st_mtime_ns) for path, status in stats)


def list_vaes(models: Path) -> list[str]:
    """The names that ``find_vae`` finds: relative paths under ``models/vae``, the tiny ones, and pixel_space."""
    tiny = [name for name in TINY_NAMES if _tiny_files(models, name)]
    return [*sorted(_files_under(models / "vae")), *tiny, PIXEL_SPACE]


def find_vae(models: Path, name: str) -> VaeFiles:
    """The files of the VAE with that name.

    Symbolic links are followed wherever they lead: they are the owner's, and models often lie on another disk.

    Raises:
        LatentEncoderError: PATH_NOT_ALLOWED for an absolute name or one with ``..``; VAE_MODEL_NOT_FOUND, with the
            names of those that are there; VAE_MODEL_INVALID for a tiny one that only ComfyUI knows.
    """
    check_relative(name, "vae_model_name")
    if name == PIXEL_SPACE:
        return VaeFiles(name, ())
    if name in TINY_NAMES and (files := _tiny_files(models, name)):
        return VaeFiles(name, files)
    path = models / "vae" / name
    plain = PurePosixPath(name).as_posix() == name
    if plain and path.suffix.lower() in SUFFIXES and path.is_file():
        return VaeFiles(name, (path,))
    if _is_tiny_of_comfyui(models, name):
        raise LatentEncoderError("VAE_MODEL_INVALID", f"'embedded' cannot encode with '{name}'.", ASK_COMFYUI)
    raise LatentEncoderError(
        "VAE_MODEL_NOT_FOUND",
        f"There is no VAE '{name}'. {listed(list_vaes(models))}",
        "Put the file into the folder 'vae' of MODEL_DIR, or choose a VAE that is there.",
    )


def listed(names: Sequence[str]) -> str:
    """A sentence with the first of these names of VAEs."""
    more = f", and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"There are: {', '.join(names[:MAX_NAMES])}{more}." if names else "There are none."


def read_weights(path: Path) -> Weights:
    """The tensors of a weights file by name, on the CPU. Of a pickled file nothing but tensors is read.

    Raises:
        LatentEncoderError: VAE_MODEL_INVALID for a damaged file, or one that holds something else; OUT_OF_MEMORY.
    """
    import torch

    try:
        weights = _read_safetensors(path) if path.suffix.lower() in (".safetensors", ".sft") else _read_pickled(path)
    except LatentEncoderError:
        raise
    except Exception as error:  # safetensors and torch.load raise their own types and many more
        if is_out_of_memory(error):
            raise LatentEncoderError("OUT_OF_MEMORY", f"There is not enough memory to load '{path.name}'.") from error
        reason = str(error).partition("\n")[0][:200]
        raise LatentEncoderError(
            "VAE_MODEL_INVALID", f"'{path.name}' is damaged or no file of weights ({reason}).", REPLACE
        ) from error
    if not weights or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise LatentEncoderError("VAE_MODEL_INVALID", f"'{path.name}' holds no weights.", REPLACE)
    return weights


def _read_safetensors(path: Path) -> Weights:
    import safetensors.torch

    # Read, not mapped: a file that is cut short under a mapping ends the process.
    return safetensors.torch.load(path.read_bytes())


def _read_pickled(path: Path) -> Weights:
    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_PT_TORCH:
        raise LatentEncoderError(
            "VAE_MODEL_INVALID", f"torch {torch.__version__} cannot read '{path.name}' safely.", "Update torch to 2.6."
        )
    value = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    if not isinstance(value, dict):
        raise ValueError("it is no dict")
    inner = value.get("state_dict", next(iter(value.values())) if len(value) == 1 else value)
    weights: Weights = inner if isinstance(inner, dict) else value
    return weights


def _tiny_files(models: Path, name: str) -> tuple[Path, ...]:
    """The encoder's and the decoder's file of a tiny VAE; nothing unless both are there."""
    found = []
    for part in ("encoder", "decoder"):
        candidates = sorted((models / "vae_approx").glob(f"{name}_{part}.*"))
        found += [path for path in candidates if path.suffix.lower() in SUFFIXES and path.is_file()][:1]
    return tuple(found) if len(found) == 2 else ()


def _is_tiny_of_comfyui(models: Path, name: str) -> bool:
    if name == FLUX2_TINY_NAME:
        return bool(_tiny_files(models, name))
    return name.startswith(VIDEO_TINY_NAMES) and (models / "vae_approx" / name).is_file()


def _files_under(folder: Path) -> list[str]:
    names, seen = [], set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        names += [
            (Path(root) / file).relative_to(folder).as_posix() for file in files if file.lower().endswith(SUFFIXES)
        ]
    return names
