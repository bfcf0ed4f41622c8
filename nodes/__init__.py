"""The nodes, one file each; what they do stands in ``latent_encoder``, how they meet ComfyUI in ``comfyui_host``."""

from comfy_api.latest import ComfyExtension, io

from .encode_to_latent_file import EncodeToLatentFile
from .load_latent_from_disk import LoadLatentFromDisk
from .optimize_vae_for_encoding import OptimizeVAEForEncoding
from .publish_latent_to_kafka import PublishLatentToKafka
from .save_latent_to_disk import SaveLatentToDisk


class LatentEncoderExtension(ComfyExtension):
    """What ComfyUI registers."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack, always: none depends on what is installed."""
        return [
            EncodeToLatentFile,
            SaveLatentToDisk,
            LoadLatentFromDisk,
            PublishLatentToKafka,
            OptimizeVAEForEncoding,
        ]
