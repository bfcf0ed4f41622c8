"""The prompts that are compared, ComfyUI's own chain and our node, with the same recipe; and running one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from latent_encoder.service.engines.comfyui.client import ComfyUIClient

_SAVING = {"file_format": "safetensors", "if_exists": "number", "folder": "output", "preview": True}


@dataclass(frozen=True)
class Ran:
    """A prompt that has run.

    Attributes:
        begun: when it was submitted, in seconds as ``time.time`` tells them.
        ended: ComfyUI's own time stamp of its end: the client polls too seldom to tell.
        outputs: by node id.
    """

    begun: float
    ended: float
    outputs: dict[str, Any]

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


def run(client: ComfyUIClient, prompt: dict[str, Any]) -> Ran:
    """Run a prompt.

    Raises:
        RuntimeError: it failed.
    """
    begun = time.time()
    entry = client.run(prompt)
    events = dict(entry["status"]["messages"])
    if "execution_success" not in events:
        raise RuntimeError(f"the prompt failed: {entry['status']}")
    return Ran(begun, events["execution_success"]["timestamp"] / 1000, entry["outputs"])


def recipes(megapixels: float) -> Iterator[float]:
    """Megapixels that no two prompts share, so that ComfyUI's cache answers none of them, for one and the same size of
    the picture.
    """
    return (megapixels + 1e-9 * number for number in itertools.count())


def stock(*, picture: str, vae: str, megapixels: float) -> dict[str, Any]:
    """LoadImage, ImageScaleToTotalPixels, VAEEncode, SaveLatent."""
    return {
        "1": _node("VAELoader", vae_name=vae),
        "3": _node("LoadImage", image=picture),
        "4": _node("ImageScaleToTotalPixels", image=["3", 0], **_recipe(megapixels)),
        "5": _node("VAEEncode", pixels=["4", 0], vae=["1", 0]),
        "6": _node("SaveLatent", samples=["5", 0], filename_prefix="stock"),
    }


def ours(*, pictures: Sequence[str], vae: str, megapixels: float, optimize: bool) -> dict[str, Any]:
    """An EncodeToLatentFile for each picture, behind OptimizeVAEForEncoding or not."""
    prompt = {"1": _node("VAELoader", vae_name=vae)}
    if optimize:
        prompt["2"] = _node("OptimizeVAEForEncoding", vae=["1", 0])
    for number, picture in enumerate(pictures):
        inputs = {"image": picture, "vae": ["2" if optimize else "1", 0], **_recipe(megapixels)}
        prompt[f"1{number}"] = _node("EncodeToLatentFile", **inputs, filename_prefix="ours", **_SAVING)
    return prompt


def _recipe(megapixels: float) -> dict[str, Any]:
    return {"upscale_method": "lanczos", "megapixels": megapixels, "resolution_steps": 1}


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
