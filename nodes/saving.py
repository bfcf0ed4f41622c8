"""What the two saving nodes share: their widgets, and the way from a LATENT to a file with its record."""

import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..latent_encoder.errors import check_choice, from_os_error
from ..latent_encoder.latent_file import IF_EXISTS, PREVIEW_SUFFIX, SavedLatent, check_stem, save_latent
from ..latent_encoder.latent_format import FILE_FORMATS
from ..latent_encoder.paths import resolve_inside
from ..latent_encoder.provenance import graph_metadata, requested
from . import comfyui_host
from .latent_colors import latent_picture

FOLDERS = ("output", "temp")
DEFAULT_PREFIX = "latent"

LatentRecordType = io.Custom("LATENT_RECORD")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveOptions:
    """The saving widgets' values, checked.

    Raises:
        LatentEncoderError: INVALID_REQUEST or PATH_NOT_ALLOWED.
    """

    filename_prefix: str
    file_format: str
    if_exists: str
    folder: str
    preview: bool

    def __post_init__(self) -> None:
        check_choice("file_format", self.file_format, FILE_FORMATS)
        check_choice("if_exists", self.if_exists, IF_EXISTS)
        check_choice("folder", self.folder, FOLDERS)
        resolve_inside(comfyui_host.folder_of_type(self.folder), self.filename_prefix, "filename_prefix")
        check_stem(PurePosixPath(self.filename_prefix).name, "filename_prefix")


def save_inputs() -> list[io.Input]:
    """The widgets of a saving node."""
    return [
        io.String.Input(
            "filename_prefix",
            default=DEFAULT_PREFIX,
            tooltip="The file's name without number and suffix; 'a/b' makes the subfolder 'a'. "
            "%year%, %month%, %day%, %hour%, %minute%, %second%, %width% and %height% are filled in.",
        ),
        io.Combo.Input(
            "file_format",
            options=list(FILE_FORMATS),
            default=FILE_FORMATS[0],
            tooltip="safetensors: the whole latent with its record. latent: the same bytes, named so that "
            "ComfyUI's LoadLatent finds it. pt, npy: the bare tensor for PyTorch or numpy.",
        ),
        io.Combo.Input(
            "if_exists",
            options=list(IF_EXISTS),
            default=IF_EXISTS[0],
            tooltip="number: the next free number is added to the name. overwrite: the file of that name is replaced. "
            "fail: nothing is saved if there is a file of that name.",
        ),
        io.Combo.Input(
            "folder",
            options=list(FOLDERS),
            default=FOLDERS[0],
            tooltip="output: ComfyUI's output folder. temp: its temporary folder, which it empties at its next start.",
        ),
        io.Boolean.Input(
            "preview",
            default=True,
            tooltip="Write a small WebP picture beside the file: the picture behind the latent, or, where only the VAE "
            "is known, the latent's own rough colours.",
        ),
    ]


def saved_outputs() -> list[io.Output]:
    """The outputs of a saving node."""
    return [
        io.Latent.Output("latent", display_name="LATENT", tooltip="The latent, unchanged."),
        LatentRecordType.Output(
            "record", display_name="LATENT_RECORD", tooltip="What is known of the file: see the help."
        ),
        io.String.Output("path", display_name="path", tooltip="The file's absolute path."),
    ]


def save(
    samples: dict[str, Any],
    options: SaveOptions,
    known: dict[str, Any],
    picture: Any,
    hidden: Any,
) -> io.NodeOutput:
    """Save a LATENT and answer as a saving node does.

    Args:
        known: the record's fields that the node has found out.
        picture: the scaled picture, a float tensor (1, height, width, channels) in [0, 1], or None.
        hidden: the node's hidden inputs ``prompt`` and ``extra_pnginfo``.

    Raises:
        LatentEncoderError: see ``save_latent``.
    """
    width, height = known.get("scaled_size") or (0, 0)
    root = comfyui_host.folder_of_type(options.folder)
    try:
        directory, stem, number, subfolder, _ = folder_paths.get_save_image_path(
            options.filename_prefix, str(root), width, height
        )
    except OSError as error:
        raise from_os_error(error, root) from error
    subfolder = Path(subfolder).as_posix() if subfolder else ""
    resolve_inside(root, subfolder or ".", "filename_prefix")  # what %year% and the like have named may be a link
    preview = _preview(picture, samples, known.get("vae_name")) if options.preview else None
    record = known | {
        **requested(hidden.extra_pnginfo),
        "subfolder": subfolder,
        "type": options.folder,
        "engine": "comfyui",
        "engine_version": comfyui_host.engine_version(),
    }
    saved = save_latent(
        samples,
        Path(directory),
        stem,
        file_format=options.file_format,
        if_exists=options.if_exists,
        first_number=number,
        record=record,
        metadata={} if comfyui_host.metadata_disabled() else graph_metadata(hidden.prompt, hidden.extra_pnginfo),
        preview=preview,
    )
    return io.NodeOutput(samples, saved.record, str(saved.path), ui=_ui(saved, has_preview=preview is not None))


def _ui(saved: SavedLatent, *, has_preview: bool) -> dict[str, list[dict[str, Any]]]:
    item = {key: saved.record[key] for key in ("filename", "subfolder", "type")}
    preview = item | {"filename": item["filename"] + PREVIEW_SUFFIX}
    return {"latents": [item], "latent_record": [saved.record], "latent_previews": [preview] if has_preview else []}


def _preview(picture: Any, samples: dict[str, Any], vae_name: str | None) -> bytes | None:
    from ..latent_encoder.previews import webp_preview

    try:
        shown = latent_picture(samples["samples"], vae_name) if picture is None else picture
        return None if shown is None else webp_preview(shown)
    except Exception as error:  # a Pillow without WebP, say: no reason to lose the latent
        logger.warning("Latent Encoder: no preview (%s).", error)
        return None
