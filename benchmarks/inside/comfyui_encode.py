"""Encodes pixels with ComfyUI's VAE, as it is or by way of OptimizeVAEForEncoding; tells time and memory."""

from __future__ import annotations

import resource
import time
from typing import Any

import host

answers = host.start()

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import nodes  # noqa: E402  ComfyUI's

_vaes: dict[tuple[str, str], Any] = {}


def encode(vae: str, pixels: str, latent: str, pack: str = "") -> dict[str, Any]:
    """One encode of the pixels in a file; the latent is written to another.

    Args:
        pack: the folder of this pack, to make the VAE faster by its node; without it the VAE stays as it is.
    """
    image = load_file(pixels)["pixels"]
    with torch.inference_mode():  # as ComfyUI's executor
        model = _load(vae, pack)
        begin = time.perf_counter()
        samples = model.encode(image)
        seconds = time.perf_counter() - begin
    save_file({"latent": samples.float().contiguous()}, latent)
    return {
        "seconds": seconds,
        "peak_mb": _peak(model.device) / 2**20,
        "dtype": str(model.vae_dtype).removeprefix("torch."),
        "device": str(model.device),
    }


def _peak(device: torch.device) -> int:
    """The most memory so far, in bytes: of the GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _load(vae: str, pack: str) -> Any:
    if (vae, pack) not in _vaes:
        (loaded,) = nodes.VAELoader().load_vae(vae)
        if pack:
            host.load_pack(pack)
            loaded = nodes.NODE_CLASS_MAPPINGS["OptimizeVAEForEncoding"].execute(loaded).args[0]
        _vaes[vae, pack] = loaded
    return _vaes[vae, pack]


host.serve(encode, answers)
