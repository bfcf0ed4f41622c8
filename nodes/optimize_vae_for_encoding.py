"""OptimizeVAEForEncoding: a VAE that encodes the same latents in less time."""

import copy
import functools
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
    if _encoder_of(vae):
        return vae
    if model is None or not understands(name for name, _ in model.named_parameters()):
        kind = type(vae if model is None else model).__name__
        logger.info("Latent Encoder: a VAE of kind %s stays as it is; Wan 2.1's and Qwen-Image's can be faster.", kind)
        return vae
    encoder = FastEncoder(
        model.encode,
        lambda: dict(model.named_parameters()),
        on_layer=lambda part: comfyui_host.stop_if_interrupted(),
    )
    faster = copy.copy(vae)
    faster.first_stage_model = copy.copy(model)
    faster.first_stage_model.encode = encoder.encode
    faster.__class__ = _noting(type(vae))
    return faster


def was_optimized(latent: dict[str, Any]) -> bool | None:
    """Whether this very LATENT was encoded the faster way; None where no optimized VAE made it."""
    samples = latent.get("samples")
    return _optimized.get(samples) if isinstance(samples, torch.Tensor) else None


@functools.cache
def _noting(vae_class: type) -> type:
    """A subclass that notes of each latent which way it was encoded.

    Its methods look for the encoder when they are called: ComfyUI copies a VAE and gives the copy another model.
    """

    def noting(name: str) -> Callable[..., Any]:
        def encode(self: Any, *args: Any, **options: Any) -> Any:
            encoder = _encoder_of(self)
            if encoder:
                encoder.optimized = None  # one call may encode many tiles
            latent = getattr(super(noted, self), name)(*args, **options)
            if encoder:
                _optimized[latent] = encoder.optimized
            return latent

        return encode

    methods = {name: noting(name) for name in ("encode", "encode_tiled") if hasattr(vae_class, name)}
    noted = type(vae_class.__name__, (vae_class,), methods)
    return noted


def _encoder_of(vae: Any) -> FastEncoder | None:
    """What makes this VAE faster, if anything does."""
    encode = getattr(getattr(vae, "first_stage_model", None), "encode", None)
    encoder = getattr(encode, "__self__", None)
    return encoder if isinstance(encoder, FastEncoder) else None
