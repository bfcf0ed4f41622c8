"""LoadLatentFromDisk: a file becomes a LATENT."""

import logging
import os
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..latent_encoder.file_list import list_files
from ..latent_encoder.latent_file import PREVIEW_SUFFIX, load_latent
from ..latent_encoder.latent_format import FILE_FORMATS
from ..latent_encoder.provenance import check_decodable, vae_name
from ..latent_encoder.records import SIDECAR_SUFFIX
from . import comfyui_host
from .saving import LatentRecordType

_SUFFIXES = tuple(f".{file_format}" for file_format in FILE_FORMATS)

logger = logging.getLogger(__name__)


class LoadLatentFromDisk(io.ComfyNode):
    """Loads a latent file of any of the four formats, and the .latent files of ComfyUI's own SaveLatent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadLatentFromDisk",
            display_name="Load Latent from Disk",
            category=comfyui_host.CATEGORY,
            description="Loads a latent file, and checks it against its checksum and the VAE that is wired in.",
            inputs=[
                _latent_file_input(),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Optional: the VAE that shall decode the latent. If it cannot, the node says why.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="LATENT", tooltip="The latent, with every key that was saved."),
                LatentRecordType.Output("record", display_name="LATENT_RECORD", tooltip="What is known of the file."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def fingerprint_inputs(cls, latent_file: str = "", **_: Any) -> str:
        path, _subfolder, _type = comfyui_host.resolve_annotated(latent_file, "latent_file")
        return " ".join(_state_of(Path(f"{path}{suffix}")) for suffix in ("", SIDECAR_SUFFIX))

    @classmethod
    def validate_inputs(cls, latent_file="") -> bool:
        """Names the widget: ``execute`` checks it, so that a mistake has the same words on every ComfyUI."""
        return True

    @classmethod
    def execute(cls, latent_file: str, vae: Any = None) -> io.NodeOutput:
        path, subfolder, folder_type = comfyui_host.resolve_annotated(latent_file, "latent_file")
        loaded = load_latent(path, nested=comfyui_host.nested_tensor_class())
        record = loaded.record | {"subfolder": subfolder, "type": folder_type}
        if not loaded.verified:
            logger.info("Latent Encoder: '%s' has no sidecar, so it is unverified.", latent_file)
        if vae is not None:
            _check_vae(record, vae, cls.hidden)
        return io.NodeOutput(loaded.latent, record)


def _latent_file_input() -> io.Combo.Input:
    """The files to choose from, newest first; for the editor's picker also which of them have a preview, a record."""
    beside = {"previews": PREVIEW_SUFFIX, "records": SIDECAR_SUFFIX}
    skip = comfyui_host.model_folders()
    files = [
        (file, folder_type)
        for folder_type in ("output", "input")
        for file in list_files(comfyui_host.folder_of_type(folder_type), (*_SUFFIXES, *beside.values()), skip)
    ]
    present = {(file.name, kind) for file, kind in files}
    latents = sorted((item for item in files if item[0].name.lower().endswith(_SUFFIXES)), key=lambda i: -i[0].mtime_ns)
    choice = io.Combo.Input(
        "latent_file",
        options=[f"{file.name} [{kind}]" for file, kind in latents],
        tooltip="A latent in ComfyUI's output or input folder, newest first.",
    )
    choice.extra_dict = {  # 0.3.64's constructor does not take it
        key: [f"{file.name} [{kind}]" for file, kind in latents if (file.name + suffix, kind) in present]
        for key, suffix in beside.items()
    }
    return choice


def _state_of(path: Path) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return "absent"
    return f"{status.st_ino}.{status.st_size}.{status.st_mtime_ns}"


def _check_vae(record: dict[str, Any], vae: Any, hidden: Any) -> None:
    node = hidden.dynprompt.get_node(hidden.unique_id)
    name = vae_name(hidden.dynprompt.get_node, node["inputs"].get("vae"))
    check_decodable(
        record,
        channels=getattr(vae, "latent_channels", None),
        dimensions=getattr(vae, "latent_dim", None),
        vae=name,
    )
    digest = comfyui_host.vae_sha256(name)
    if record["vae_sha256"] and digest and record["vae_sha256"] != digest:
        logger.warning(
            "Latent Encoder: '%s' was made by another VAE file ('%s') than the one wired in ('%s').",
            record["filename"], record["vae_name"], name,
        )  # fmt: skip
