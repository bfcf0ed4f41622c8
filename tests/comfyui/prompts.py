"""Prompts for ``/prompt``, and what came of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfyui.servers import Server

from latent_encoder.errors import find_code
from latent_encoder.service.engines.comfyui.client import PromptRejected

Prompt = dict[str, dict[str, Any]]

SMALL = 0.02
"""Megapixels of most tests' pictures: a latent of some 20 x 15, which a full-width VAE makes in about a second."""


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """A node of a prompt."""
    return {"class_type": class_type, "inputs": inputs}


def encode(image: Any, vae: str, **inputs: Any) -> Prompt:
    """VAELoader ("1") and EncodeToLatentFile ("2"); ``inputs`` replaces its widgets' values."""
    widgets = {
        "image": image,
        "vae": ["1", 0],
        "upscale_method": "lanczos",
        "megapixels": SMALL,
        "resolution_steps": 1,
        "filename_prefix": "latent",
        "file_format": "safetensors",
        "if_exists": "number",
        "folder": "output",
        "preview": True,
    }
    return {"1": node("VAELoader", vae_name=vae), "2": node("EncodeToLatentFile", **{**widgets, **inputs})}


def by_hand(
    image: str, vae: str, prefix: str, *, method: str = "lanczos", megapixels: float = SMALL, steps: int = 1
) -> Prompt:
    """The same chain of stock nodes, with stock SaveLatent."""
    scale = {"upscale_method": method, "megapixels": megapixels, "resolution_steps": steps}
    return {
        "1": node("VAELoader", vae_name=vae),
        "2": node("LoadImage", image=image),
        "3": node("ImageScaleToTotalPixels", image=["2", 0], **scale),
        "4": node("VAEEncode", pixels=["3", 0], vae=["1", 0]),
        "5": node("SaveLatent", samples=["4", 0], filename_prefix=prefix),
    }


def save(samples: list[Any], prefix: str, **inputs: Any) -> dict[str, Any]:
    """A SaveLatentToDisk node; ``inputs`` replaces its widgets' values."""
    widgets = {"file_format": "safetensors", "if_exists": "number", "folder": "output", "preview": False}
    return node("SaveLatentToDisk", samples=samples, filename_prefix=prefix, **{**widgets, **inputs})


def save_probe(kind: str, prefix: str, seed: int = 0, **inputs: Any) -> Prompt:
    """A made-up LATENT, saved."""
    return {"1": node("ProbeLatent", kind=kind, seed=seed), "2": save(["1", 0], prefix, **inputs)}


def load(latent_file: str, vae: str | None = None) -> Prompt:
    """LoadLatentFromDisk ("2") and its digest ("3"); with ``vae``, a VAELoader wired in."""
    wired = {"vae": ["1", 0]} if vae else {}
    prompt = {
        "2": node("LoadLatentFromDisk", latent_file=latent_file, **wired),
        "3": node("ProbeDigest", samples=["2", 0]),
    }
    return {"1": node("VAELoader", vae_name=vae), **prompt} if vae else prompt


@dataclass(frozen=True)
class Outcome:
    """What came of a prompt.

    Attributes:
        success: it was accepted and every node ran.
        text: what was said where it failed.
        outputs: the ``ui`` of its nodes, by their id, as in ``/history``.
        messages: the history's events.
    """

    success: bool
    text: str
    outputs: dict[str, dict[str, Any]]
    messages: list[Any]

    @property
    def code(self) -> str | None:
        """The code of the catalogue that its text carries."""
        return find_code(self.text)

    def all(self, key: str) -> list[Any]:
        """What the nodes say under that key of their ``ui``, put together."""
        return [item for output in self.outputs.values() for item in (output or {}).get(key, [])]

    @property
    def records(self) -> list[dict[str, Any]]:
        return self.all("latent_record")

    @property
    def record(self) -> dict[str, Any]:
        """The one LatentRecord; anything else is a failure of the test, with the server's words."""
        assert self.success, self.text
        assert len(self.records) == 1, self.outputs
        return self.records[0]


def outcome(entry: dict[str, Any]) -> Outcome:
    """What a ``/history`` entry says."""
    status = entry["status"]
    errors = [data for event, data in status["messages"] if event in ("execution_error", "execution_interrupted")]
    text = "\n".join(str(error.get("exception_message", error)) for error in errors)
    success = status["status_str"] == "success" and not errors
    return Outcome(success, text, entry["outputs"], status["messages"])


def run(server: Server, prompt: Prompt, *, extra_data: dict[str, Any] | None = None) -> Outcome:
    """Send the prompt, wait for its end, and say what came of it; a refusal at the door is an outcome, too."""
    try:
        prompt_id = server.client.submit(prompt, extra_data=extra_data)
    except PromptRejected as refusal:
        return Outcome(False, f"{refusal.error} {refusal.node_errors}", {}, [])
    return outcome(server.client.wait(prompt_id, timeout=120))
