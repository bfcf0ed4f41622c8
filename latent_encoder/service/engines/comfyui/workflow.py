"""The prompt that encodes one picture: the built-in workflow, or one of the user's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.engines.base import EncodeJob

Prompt = dict[str, dict[str, Any]]

ENCODE, SAVE, OPTIMIZE = "EncodeToLatentFile", "SaveLatentToDisk", "OptimizeVAEForEncoding"
CHILDREN = 4  # what EncodeToLatentFile expands into
FIELDS = ("image", "vae_model_name", "upscale_method", "megapixels", "resolution_steps")
"""What a workflow takes from a request, by the request's own names (``image``: the picture)."""


@dataclass(frozen=True)
class Target:
    """An input of a node."""

    node: str
    input: str


@dataclass(frozen=True)
class Workflow:
    """A prompt in API format, and where in it the fields of a request go.

    Attributes:
        prompt: by node id, ``{"class_type", "inputs"}``.
        saver: the id of the EncodeToLatentFile or SaveLatentToDisk whose file is the result.
        targets: an input for each of ``FIELDS``.
    """

    prompt: Prompt
    saver: str
    targets: Mapping[str, Target]

    @property
    def node_classes(self) -> frozenset[str]:
        """The nodes that a server must have."""
        return frozenset(node["class_type"] for node in self.prompt.values())

    @property
    def size(self) -> int:
        """How many nodes run, as far as one can tell."""
        expanded = [node for node in self.prompt.values() if node["class_type"] == ENCODE]
        return len(self.prompt) + CHILDREN * len(expanded)

    @property
    def vae_node(self) -> str:
        """The id of the node that loads the VAE."""
        return self.targets["vae_model_name"].node

    @property
    def knows_picture(self) -> bool:
        """Whether the saver reads the picture itself, and so says its checksum."""
        return self.targets["image"] == Target(self.saver, "image") and self.prompt[self.saver]["class_type"] == ENCODE

    def fill(self, job: EncodeJob, image: str, prefix: str) -> Prompt:
        """The prompt for one job.

        Args:
            image: the picture's annotated name on the server.
            prefix: the latent file's name in the server's temp folder, without its suffix.
        """
        prompt = copy.deepcopy(self.prompt)
        values = {
            "image": image,
            "vae_model_name": job.vae_name,
            "upscale_method": job.upscale_method,
            "megapixels": job.megapixels,
            "resolution_steps": job.resolution_steps,
        }
        for field, value in values.items():
            target = self.targets[field]
            prompt[target.node]["inputs"][target.input] = value
        prompt[self.saver]["inputs"].update(
            filename_prefix=prefix, file_format=job.file_format, if_exists="overwrite", folder="temp", preview=False
        )
        return prompt

    def check_steps(self, job: EncodeJob, takes_resolution_steps: bool) -> None:
        """Refuse a rounding that the server's ImageScaleToTotalPixels would leave out; EncodeToLatentFile does so
        itself.

        Raises:
            LatentEncoderError: INVALID_REQUEST.
        """
        node = self.prompt[self.targets["resolution_steps"].node]["class_type"]
        if job.resolution_steps != 1 and node == "ImageScaleToTotalPixels" and not takes_resolution_steps:
            raise LatentEncoderError(
                "INVALID_REQUEST",
                f"'resolution_steps' is {job.resolution_steps}, and this ComfyUI cannot round sizes.",
                "Set it to 1, or update ComfyUI.",
            )

    def record_in(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """The LatentRecord of the saver's file, from the prompt's entry of ``/history``.

        Raises:
            LatentEncoderError: ENCODING_FAILED where it saved none, or several.
        """
        records: list[dict[str, Any]] = []
        for node_id, output in entry["outputs"].items():
            # What a node expands into has ids of its own; `meta` tells whose children they are.
            owner = (entry.get("meta") or {}).get(node_id, {}).get("real_node_id", node_id)
            if self.saver in (owner, node_id):
                records += (output or {}).get("latent_record") or []
        if len(records) != 1:
            raise LatentEncoderError(
                "ENCODING_FAILED",
                f"The workflow's node {self.saver} saved {len(records)} files for one picture.",
                "It must save the latent of this picture alone.",
            )
        return dict(records[0])


def built_in(*, optimize: bool = True) -> Workflow:
    """VAELoader and EncodeToLatentFile, as ``workflows/api/encode.json`` has them.

    Args:
        optimize: put OptimizeVAEForEncoding between them.
    """
    # The VAELoader is a node of the prompt, not of the expansion: else ComfyUI loads the VAE anew for each picture.
    prompt: Prompt = {
        "1": {"class_type": "VAELoader", "inputs": {}},
        "2": {"class_type": ENCODE, "inputs": {"vae": ["1", 0]}},
    }
    if optimize:
        prompt["3"] = {"class_type": OPTIMIZE, "inputs": {"vae": ["1", 0]}}
        prompt["2"]["inputs"]["vae"] = ["3", 0]
    targets = {field: Target("2", field) for field in FIELDS} | {"vae_model_name": Target("1", "vae_name")}
    return Workflow(prompt, "2", targets)
