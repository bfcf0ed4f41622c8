"""EncodeToLatentFile: a picture becomes a latent file, by ComfyUI's own nodes.

It expands into LoadImage -> ImageScaleToTotalPixels -> VAEEncode -> SaveLatentToDisk. The VAE stays outside, as a raw
and lazy link to its loader: ComfyUI then keeps it loaded between prompts, and does not load it for a picture that is
refused.
"""

import hashlib
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder, is_link

from ..latent_encoder.errors import LatentEncoderError
from ..latent_encoder.file_list import list_files
from ..latent_encoder.images import (
    MAX_FILE_BYTES,
    MAX_MEGAPIXELS,
    MAX_RESOLUTION_STEPS,
    MIN_MEGAPIXELS,
    SUFFIXES,
    UPSCALE_METHODS,
    check_image,
    check_recipe,
    scaled_size,
)
from ..latent_encoder.paths import read_regular_file
from ..latent_encoder.provenance import requested
from ..latent_encoder.staged_pictures import StagedPictures
from . import comfyui_host
from .saving import DEFAULT_PREFIX, SaveOptions, save_inputs, saved_outputs

STAGING_FOLDER = "latent_encoder"

_staged = StagedPictures()


class EncodeToLatentFile(io.ComfyNode):
    """Encodes one picture of ComfyUI's folders with the VAE wired in, and saves the latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EncodeToLatentFile",
            display_name="Encode to Latent File",
            category=comfyui_host.CATEGORY,
            description="Loads a picture, scales it, encodes it with the VAE and saves the latent: the chain "
            "LoadImage, ImageScaleToTotalPixels, VAEEncode, SaveLatentToDisk in one node.",
            is_output_node=True,
            enable_expand=True,
            inputs=[
                io.Combo.Input(
                    "image",
                    options=sorted(file.name for file in list_files(comfyui_host.folder_of_type("input"), SUFFIXES)),
                    upload=io.UploadType.image,
                    tooltip="A picture in ComfyUI's input folder. A name may also end in [temp] or [output].",
                ),
                io.Vae.Input("vae", lazy=True, extra_dict={"rawLink": True}, tooltip="The VAE, from a VAELoader."),
                *_recipe_inputs(),
                *save_inputs(),
            ],
            outputs=saved_outputs(),
            hidden=[io.Hidden.dynprompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return comfyui_host.always_run()

    @classmethod
    def validate_inputs(
        cls, image="", upscale_method="", megapixels=1.0, resolution_steps=1,
        filename_prefix="", file_format="", if_exists="", folder="", preview=True,
    ) -> bool:  # fmt: skip
        """Names every widget: ``execute`` checks them, so that a mistake has the same words on every ComfyUI."""
        return True

    @classmethod
    def execute(
        cls,
        image: str,
        vae: Any,
        upscale_method: str = "lanczos",
        megapixels: float = 1.0,
        resolution_steps: int = 1,
        filename_prefix: str = DEFAULT_PREFIX,
        file_format: str = "safetensors",
        if_exists: str = "number",
        folder: str = "output",
        preview: bool = True,
    ) -> io.NodeOutput:
        if not is_link(vae):
            raise LatentEncoderError("INVALID_REQUEST", "'vae' is no link.", "Wire a VAELoader into it.")
        check_recipe(upscale_method, megapixels, resolution_steps)
        options = SaveOptions(filename_prefix, file_format, if_exists, folder, preview)
        scaling = _scaling_inputs(upscale_method, megapixels, resolution_steps)
        requested(cls.hidden.extra_pnginfo)  # what the save would refuse is refused before the VAE loads
        staged, picture = _stage(image, megapixels, resolution_steps, cls.hidden.dynprompt)

        graph = GraphBuilder()
        load = graph.node("LoadImage", "load", image=staged)
        scale = graph.node("ImageScaleToTotalPixels", "scale", image=load.out(0), **scaling)
        encode = graph.node("VAEEncode", "encode", pixels=scale.out(0), vae=vae)
        save = graph.node("SaveLatentToDisk", "save", samples=encode.out(0), scaled_image=scale.out(0), **vars(options))
        expansion = graph.finalize()
        expansion[save.id]["_meta"] = {"latent_encoder": picture | {"resolution_steps": resolution_steps}}
        return io.NodeOutput(save.out(0), save.out(1), save.out(2), expand=expansion)


def _recipe_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "upscale_method",
            options=list(UPSCALE_METHODS),
            default=UPSCALE_METHODS[0],
            tooltip="How the picture is scaled, up or down.",
        ),
        io.Float.Input(
            "megapixels",
            default=1.0,
            min=MIN_MEGAPIXELS,
            max=MAX_MEGAPIXELS,
            step=0.01,
            tooltip="The size that the picture is scaled to, in units of 1024 x 1024 pixels; its proportions stay.",
        ),
        io.Int.Input(
            "resolution_steps",
            default=1,
            min=1,
            max=MAX_RESOLUTION_STEPS,
            tooltip="Both sides become multiples of this many pixels. Older ComfyUI versions know only 1.",
        ),
    ]


def _scaling_inputs(upscale_method: str, megapixels: float, resolution_steps: int) -> dict[str, Any]:
    """The widgets of ImageScaleToTotalPixels as this ComfyUI has them: an expansion fills in no default."""
    inputs = {"upscale_method": upscale_method, "megapixels": megapixels}
    if comfyui_host.takes_resolution_steps():
        return inputs | {"resolution_steps": resolution_steps}
    if resolution_steps != 1:
        raise LatentEncoderError(
            "INVALID_REQUEST",
            f"'resolution_steps' is {resolution_steps}, and this ComfyUI cannot round sizes.",
            "Set it to 1, or update ComfyUI.",
        )
    return inputs


def _stage(image: str, megapixels: float, resolution_steps: int, prompt: object) -> tuple[str, dict[str, Any]]:
    """Read the picture once, check it, and lay a copy of the checked bytes where LoadImage reads them.

    Returns:
        the copy's annotated name, and what the record says of the picture.
    """
    path, _, _ = comfyui_host.resolve_annotated(image, "image")
    data = read_regular_file(
        path, not_found="IMAGE_NOT_FOUND", invalid="IMAGE_INVALID", too_large="IMAGE_TOO_LARGE", limit=MAX_FILE_BYTES
    )
    info = check_image(data)
    scaled_size(info.width, info.height, megapixels, resolution_steps)  # refuses a picture that would shrink to nothing
    digest = hashlib.sha256(data).hexdigest()
    folder = comfyui_host.folder_of_type("temp") / STAGING_FOLDER
    copy = _staged.stage(folder, data, digest, path.suffix, prompt)
    known = {"image_name": image, "image_sha256": digest, "original_size": [info.width, info.height]}
    return f"{STAGING_FOLDER}/{copy.name} [temp]", known
