"""SaveLatentToDisk: a LATENT becomes a file."""

from typing import Any

from comfy_api.latest import io

from ..latent_encoder.provenance import describe_chain, measure
from . import comfyui_host
from .optimize_vae_for_encoding import was_optimized
from .saving import DEFAULT_PREFIX, SaveOptions, save, save_inputs, saved_outputs


class SaveLatentToDisk(io.ComfyNode):
    """Saves a LATENT with every key that it has. As the child of EncodeToLatentFile it is told of the picture too."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveLatentToDisk",
            display_name="Save Latent to Disk",
            category=comfyui_host.CATEGORY,
            description="Saves a latent as a file with a checksum and a record of where it comes from.",
            is_output_node=True,
            inputs=[io.Latent.Input("samples", tooltip="The latent to save."), *save_inputs()],
            outputs=saved_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return comfyui_host.always_run()

    @classmethod
    def validate_inputs(cls, filename_prefix="", file_format="", if_exists="", folder="", preview=True) -> bool:
        """Names every widget: ``execute`` checks them, so that a mistake has the same words on every ComfyUI."""
        return True

    @classmethod
    def execute(
        cls,
        samples: dict[str, Any],
        filename_prefix: str = DEFAULT_PREFIX,
        file_format: str = "safetensors",
        if_exists: str = "number",
        folder: str = "output",
        preview: bool = True,
        **links: Any,
    ) -> io.NodeOutput:
        options = SaveOptions(filename_prefix, file_format, if_exists, folder, preview)
        graph, node_id = cls.hidden.dynprompt, cls.hidden.unique_id
        node = graph.get_node(node_id)
        known = describe_chain(graph.get_node, node["inputs"].get("samples"))
        picture = None
        told = (node.get("_meta") or {}).get("latent_encoder")
        if told and graph.get_parent_node_id(node_id) is not None:  # no client can write the _meta of such a node
            picture = links["scaled_image"]
            known |= told | measure(picture.shape, samples["samples"].shape)
        known["optimized"] = was_optimized(samples)
        known["vae_sha256"] = comfyui_host.vae_sha256(known.get("vae_name"))
        return save(samples, options, known, picture, cls.hidden)
