"""Latent Encoder: ComfyUI pictures become latent files. ComfyUI calls ``comfy_entrypoint`` at its start."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI's V3 extension; imported here, so that pytest can import this file where there is no ComfyUI."""
    from .nodes import LatentEncoderExtension

    return LatentEncoderExtension()
