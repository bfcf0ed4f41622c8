"""What the nodes need of the ComfyUI that they run in: its folders, graph, versions, interrupts and nested tensors."""

import logging
from pathlib import Path
from typing import Any

import folder_paths

from ..latent_encoder.checksum import file_sha256
from ..latent_encoder.paths import check_relative, resolve_inside, split_annotated

CATEGORY = "latent encoder"

logger = logging.getLogger(__name__)


def always_run() -> float:
    """A fingerprint that never equals another (``math.nan`` is one shared object, which the cache finds equal)."""
    return float("nan")


def folder_of_type(folder_type: str) -> Path:
    """ComfyUI's own ``input``, ``output`` or ``temp`` folder."""
    return Path(folder_paths.get_directory_by_type(folder_type))


def resolve_annotated(name: str, field: str) -> tuple[Path, str, str]:
    """The file that ComfyUI's annotated name (``sub/a.png [output]``; without annotation ``input``) means.

    Returns:
        its real path, its subfolder inside ComfyUI's folder, and the folder's type.

    Raises:
        LatentEncoderError: PATH_NOT_ALLOWED or INVALID_REQUEST.
    """
    relative, folder_type = split_annotated(check_relative(name, field))
    root = folder_of_type(folder_type)
    path = resolve_inside(root, relative, field)
    subfolder = path.parent.relative_to(root.resolve()).as_posix()
    return path, "" if subfolder == "." else subfolder, folder_type


def model_folders() -> list[str]:
    """Every folder that ComfyUI looks for models in; some lie in its output folder."""
    return [folder for folders, _ in folder_paths.folder_names_and_paths.values() for folder in folders]


def vae_sha256(vae_name: str | None) -> str | None:
    """The sha256 of the one file that VAELoader reads for this name; None for taesd, pixel_space and the like."""
    if vae_name is None:
        return None
    import nodes as comfyui_nodes

    video_taes = getattr(comfyui_nodes.VAELoader, "video_taes", ())  # these alone come from the other folder
    path = folder_paths.get_full_path("vae_approx" if Path(vae_name).stem in video_taes else "vae", vae_name)
    try:
        return file_sha256(path) if path else None
    except OSError as error:
        logger.warning("Latent Encoder: no checksum of the VAE '%s': %s", vae_name, error)
        return None


def engine_version() -> str | None:
    """ComfyUI's version."""
    try:
        from comfyui_version import __version__
    except ImportError:
        return None
    return str(__version__)


def takes_resolution_steps() -> bool:
    """Whether this ComfyUI's ImageScaleToTotalPixels has the input ``resolution_steps`` (0.3.64 has none)."""
    import nodes as comfyui_nodes

    return "resolution_steps" in comfyui_nodes.NODE_CLASS_MAPPINGS["ImageScaleToTotalPixels"].INPUT_TYPES()["required"]


def nested_tensor_class() -> Any:
    """ComfyUI's NestedTensor, which takes a list of tensors, or None where it has none (0.3.64)."""
    try:
        from comfy.nested_tensor import NestedTensor
    except ImportError:
        return None
    return NestedTensor


def stop_if_interrupted() -> None:
    """Raise ComfyUI's InterruptProcessingException where the user has interrupted the prompt."""
    from comfy.model_management import throw_exception_if_processing_interrupted

    throw_exception_if_processing_interrupted()


def metadata_disabled() -> bool:
    """Whether ComfyUI was started with ``--disable-metadata``."""
    from comfy.cli_args import args

    return bool(args.disable_metadata)
