"""OptimizeVAEForEncoding: a VAE that encodes the same latents in less time."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
from comfy_api.latest import io
from torch.utils.weak import WeakIdKeyDictionary

from ..latent_encoder.fast_encoder import FastEncoder, understands
from . import comfyui_host

logger = logging.getLogger(__name__)

_optimized: WeakIdKeyDictionary = WeakIdKeyDictionary()  # latents that such a VAE made, and whether the faster way


class OptimizeVAEForEncoding(io.ComfyNode):
    """Gives back a copy that shares everything with the VAE but how it encodes one frame."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OptimizeVAEForEncoding",
            display_name="Optimize VAE for Encoding",
            category=comfyui_host.CATEGORY,
            description="Makes Wan 2.1's and Qwen-Image's VAE encode pictures faster, with the same latents; another "
            "VAE stays as it is.",
            inputs=[io.Vae.Input("vae", tooltip="The VAE, from a VAELoader.")],
            outputs=[
                io.Vae.Output(  # 0.3.64 wants other ids for outputs than for inputs
                    "optimized_vae", display_name="VAE", tooltip="The same VAE, faster where it can be."
                )
            ],
        )

    @classmethod
    def execute(cls, vae: Any) -> io.NodeOutput:
        return io.NodeOutput(optimize(vae))


def optimize(vae: Any) -> Any:
    """A copy of ComfyUI's VAE with a faster ``encode``; the VAE itself where its kind is not known.

    Model, weights and ModelPatcher are shared, so ComfyUI loads, moves and frees them as before.
    """
    model = getattr(vae, "first_stage_model", None)
    if isinstance(getattr(getattr(model, "encode", None), "__self__", None), FastEncoder):
        return vae
    if model is None or not understands(name for name, _ in model.named_parameters()):
        logger.info(
            "Latent Encoder: %s stays as it is; Wan 2.1's and Qwen-Image's VAE can be made faster.", type(model)
        )
        return vae
    encoder = FastEncoder(model.encode, lambda: dict(model.named_parameters()))
    faster = copy.copy(vae)
    faster.first_stage_model = copy.copy(model)
    faster.first_stage_model.encode = encoder.encode
    for name in ("encode", "encode_tiled"):
        setattr(faster, name, _telling(getattr(type(vae), name).__get__(faster), encoder))
    return faster


def was_optimized(latent: dict[str, Any]) -> bool | None:
    """Whether this very LATENT was encoded the faster way; None where no optimized VAE made it."""
    samples = latent.get("samples")
    return _optimized.get(samples) if isinstance(samples, torch.Tensor) else None


def _telling(encode: Callable[..., Any], encoder: FastEncoder) -> Callable[..., Any]:
    def telling(*args: Any, **options: Any) -> Any:
        latent = encode(*args, **options)
        _optimized[latent] = encoder.optimized
        return latent

    return telling
