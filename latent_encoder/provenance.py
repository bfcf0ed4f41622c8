"""Where a latent comes from, as far as a ComfyUI graph says, and whether a VAE can decode it.

A graph is read through ``get_node(id)``, which returns ``{"class_type", "inputs"}``; a link is ``[id, slot]``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import LatentEncoderError

REQUEST_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")

GetNode = Callable[[str], Mapping[str, Any]]


def describe_chain(get_node: GetNode, samples: Any) -> dict[str, Any]:
    """The record's fields that a directly linked VAEEncode <- ImageScaleToTotalPixels <- LoadImage tells.

    Args:
        samples: the link that the latent arrives by. Widgets that are fed by a link, and nodes of another class, tell
            nothing.

    Returns:
        some of ``vae_name, image_name, upscale_method, megapixels, resolution_steps``.
    """
    encode = _inputs(get_node, samples, "VAEEncode")
    scale = _inputs(get_node, encode.get("pixels"), "ImageScaleToTotalPixels")
    load = _inputs(get_node, scale.get("image") if scale else encode.get("pixels"), "LoadImage")
    told = {key: scale.get(key) for key in ("upscale_method", "megapixels", "resolution_steps")}
    told |= {"image_name": load.get("image"), "vae_name": vae_name(get_node, encode.get("vae"))}
    return {key: value for key, value in told.items() if isinstance(value, (str, int, float))}


def vae_name(get_node: GetNode, vae: Any) -> str | None:
    """The file that the VAELoader behind the link ``vae`` names, or None. OptimizeVAEForEncoding may be in between."""
    while behind := _inputs(get_node, vae, "OptimizeVAEForEncoding").get("vae"):
        vae = behind
    name = _inputs(get_node, vae, "VAELoader").get("vae_name")
    return name if isinstance(name, str) else None


def downscale(scaled_size: tuple[int, int], latent_size: tuple[int, int]) -> int | None:
    """How many pixels of the picture one number of the latent stands for, per side: a power of two.

    Both sizes are (width, height). A VAE crops to a multiple of its factor, so the quotient is a little more than it.
    """
    if min(latent_size) < 1:
        return None
    ratio = min(pixels / numbers for pixels, numbers in zip(scaled_size, latent_size, strict=True))
    return 2 ** math.floor(math.log2(ratio)) if ratio >= 1 else None


def measure(picture_shape: Sequence[int], latent_shape: Sequence[int]) -> dict[str, Any]:
    """The record's fields that the scaled picture and its latent tell; one picture in must be one latent out.

    Args:
        picture_shape: ComfyUI's (batch, height, width, channels).
        latent_shape: (batch, channels, [frames,] height, width).

    Raises:
        LatentEncoderError: IMAGE_INVALID where the host took the file for several pictures.
    """
    if picture_shape[0] != 1 or latent_shape[0] != 1 or (len(latent_shape) == 5 and latent_shape[2] != 1):
        raise LatentEncoderError(
            "IMAGE_INVALID",
            f"ComfyUI read {picture_shape[0]} pictures from one file and made a latent of shape {list(latent_shape)}.",
            "Export the picture that you mean as a PNG.",
        )
    size = (picture_shape[2], picture_shape[1])
    return {"scaled_size": size, "downscale": downscale(size, (latent_shape[-1], latent_shape[-2]))}


def graph_metadata(prompt: Mapping[str, Any] | None, extra_pnginfo: Any) -> dict[str, str]:
    """The header's ``prompt``, ``workflow`` and the like, as ComfyUI's own SaveLatent writes them.

    Args:
        extra_pnginfo: what the client sent along; ComfyUI does not check that it is an object. With
            ``latent_encoder.keep_graph`` false nothing is kept: the service's graph names its own temporary files.
    """
    # ComfyUI leaves each node's fingerprint in the prompt, and a NaN there is no JSON for anybody but Python.
    nodes = {key: {k: v for k, v in node.items() if k != "is_changed"} for key, node in (prompt or {}).items()}
    metadata = {"prompt": json.dumps(nodes)} if nodes else {}
    extra = extra_pnginfo if isinstance(extra_pnginfo, Mapping) else {}
    told = extra.get("latent_encoder")
    if isinstance(told, Mapping) and told.get("keep_graph") is False:
        return {}
    return metadata | {key: json.dumps(value) for key, value in extra.items()}


def requested(extra_pnginfo: Any) -> dict[str, str]:
    """The record's ``request_id`` and ``image_name`` as far as the sender of the prompt told them, in
    ``extra_data.extra_pnginfo.latent_encoder``.

    Raises:
        LatentEncoderError: INVALID_REQUEST for a ``request_id`` that is not like ``REQUEST_ID``, or a name that is no
            text.
    """
    told = extra_pnginfo.get("latent_encoder") if isinstance(extra_pnginfo, dict) else None
    if not isinstance(told, dict):
        return {}
    facts = {key: told[key] for key in ("request_id", "image_name") if told.get(key) is not None}
    for key, value in facts.items():
        if not isinstance(value, str) or (key == "request_id" and not REQUEST_ID.fullmatch(value)):
            raise LatentEncoderError(
                "INVALID_REQUEST",
                f"'extra_pnginfo.latent_encoder.{key}' is {str(value)[:160]!r}.",
                "A request_id has 1 to 128 letters, digits, '.', '_' and '-', and begins with a letter or digit.",
            )
    return facts


def check_decodable(
    record: Mapping[str, Any], *, channels: int | None, dimensions: int | None, vae: str | None
) -> None:
    """Refuse a latent that a VAE of so many latent channels and dimensions (2: pictures, 3: video) cannot decode.

    Args:
        record: the latent's LatentRecord as JSON values; nested latents are left to the host.
        vae: the VAE's name, where it is known.

    Raises:
        LatentEncoderError: VAE_MISMATCH.
    """
    shape = record.get("latent_shape")
    if shape is None or (shape and isinstance(shape[0], list)):
        return
    if 0 in shape or not shape:
        raise LatentEncoderError(
            "VAE_MISMATCH", f"This latent has the shape {shape}: nothing that a VAE could decode.", "Encode it again."
        )
    wrong = []
    if channels is not None and len(shape) > 1 and shape[1] != channels:
        wrong.append(f"{channels} channels, not {shape[1]}")
    if dimensions in (2, 3) and len(shape) != dimensions + 2:
        wrong.append(f"tensors of {dimensions + 2} dimensions, not {len(shape)}")
    if wrong:
        maker = record.get("vae_name")
        made_by = f"was made by the VAE '{maker}'" if maker else "was made by an unknown VAE"
        given = f"The VAE '{vae}'" if vae else "The VAE that is wired in"
        hint = f"Wire in '{maker}'." if maker else None
        raise LatentEncoderError(
            "VAE_MISMATCH",
            f"This latent {made_by} and has the shape {shape}. {given} takes {', and it takes '.join(wrong)}.",
            hint,
        )


def _inputs(get_node: GetNode, link: Any, class_type: str) -> Mapping[str, Any]:
    """The inputs of the node behind a link, if it is of this class; else nothing."""
    if not (isinstance(link, (list, tuple)) and len(link) == 2):
        return {}
    try:
        node = get_node(str(link[0]))
    except Exception:  # the host has an exception class of its own for an unknown id
        return {}
    inputs = node.get("inputs", {}) if node.get("class_type") == class_type else {}
    return inputs if isinstance(inputs, Mapping) else {}
