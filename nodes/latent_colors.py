"""A picture of a latent by ComfyUI's own latent-to-RGB factors, where the VAE tells which of them fit."""

from typing import Any

import folder_paths

from ..latent_encoder.previews import colors_of_latent

# Names of VAELoader's that are no files, and the latent format of each in comfy.latent_formats.
BUILT_IN_VAES = {
    "pixel_space": "ChromaRadiance",
    "taef1": "Flux",
    "taef2": "Flux2",
    "taesd": "SD15",
    "taesd3": "SD3",
    "taesdxl": "SDXL",
}
# A tensor that only this class of VAE has; the first that is found counts. An AutoencoderKL of 4 channels may be SD15
# or SDXL, one of 16 SD3 or Flux: these cannot be told.
TELLING_TENSORS = {
    "decoder.upsamples.0.upsamples.0.residual.2.weight": "Wan22",
    "decoder.middle.0.residual.0.gamma": "Wan21",
    "bn.running_mean": "Flux2",
}


def latent_picture(samples: Any, vae_name: str | None) -> Any:
    """The colours of a latent's first picture: floats in [0, 1] of shape (1, height, width, 3); None where they cannot
    be told.

    Args:
        samples: shape (batch, channels, [frames,] height, width).
        vae_name: what VAELoader was asked for.
    """
    import comfy.latent_formats

    name = _format_name(vae_name)
    known = getattr(comfy.latent_formats, name, None) if name else None
    if known is None or getattr(samples, "is_nested", False):
        return None
    latent_format = known()
    if samples.shape[1] != latent_format.latent_channels or samples.ndim != latent_format.latent_dimensions + 2:
        return None
    latent = latent_format.process_in(samples[:1].float().cpu())
    reshape = getattr(latent_format, "latent_rgb_factors_reshape", None)
    return colors_of_latent(
        reshape(latent) if reshape else latent, latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias
    )


def _format_name(vae_name: str | None) -> str | None:
    if vae_name is None:
        return None
    if vae_name in BUILT_IN_VAES:
        return BUILT_IN_VAES[vae_name]
    path = folder_paths.get_full_path("vae", vae_name)
    if path is None or not path.endswith(".safetensors"):
        return None
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = set(file.keys())
    return next((name for tensor, name in TELLING_TENSORS.items() if tensor in tensors), None)
