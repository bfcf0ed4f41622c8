"""ComfyUI's refusals and failures as errors of the catalogue. A node's exception arrives as text only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latent_encoder.errors import CATALOGUE, LatentEncoderError, find_code

from .client import PromptRejected

UNKNOWN_CLASS = ("missing_node_type", "invalid_prompt")  # ComfyUI 0.33's words, and 0.3.64's
OUT_OF_MEMORY = ("outofmemory", "out of memory", "not enough memory", "can't allocate memory", "allocation on device")
LONGEST_TEXT = 1000  # a state dict's mismatch can fill pages


def from_rejection(rejected: PromptRejected, vae_node: str | None = None) -> LatentEncoderError:
    """ComfyUI's refusal of a prompt.

    Args:
        vae_node: the node that the VAE's name went into, where it is no VAELoader.
    """
    for node_id, entry in rejected.node_errors.items():
        errors = entry.get("errors") or [{}]
        kinds = [error.get("type") for error in errors]
        named = (errors[0].get("extra_info") or {}).get("received_value")
        if (entry.get("class_type") == "VAELoader" or node_id == vae_node) and "value_not_in_list" in kinds:
            return LatentEncoderError("VAE_MODEL_NOT_FOUND", f"ComfyUI has no VAE '{named}' in models/vae.")
        if entry.get("class_type") == "LoadImage" and "custom_validation_failed" in kinds:
            return LatentEncoderError("IMAGE_NOT_FOUND", f"ComfyUI does not find the picture ({_short(rejected)}).")
    if not rejected.node_errors and rejected.error.get("type") in UNKNOWN_CLASS:
        return LatentEncoderError("NODES_MISSING", f"ComfyUI does not have every node of the workflow: {rejected}")
    return LatentEncoderError("INVALID_REQUEST", f"ComfyUI refused the workflow: {_short(rejected)}")


def from_history(entry: Mapping[str, Any], vae_node: str | None = None) -> LatentEncoderError | None:
    """What went wrong with a prompt, by its entry of ``/history``; None where it succeeded."""
    status = entry["status"]
    for event, message in status["messages"]:
        if event == "execution_error":
            kind, node_id = str(message.get("exception_type", "")), str(message.get("node_id", ""))
            loads_vae = message.get("node_type") == "VAELoader" or node_id == vae_node
            return from_failure(str(message["exception_message"]), kind, loads_vae=loads_vae)
    if status["status_str"] != "success":
        return LatentEncoderError("INTERRUPTED", "Somebody interrupted the prompt in ComfyUI.")
    return None


def from_failure(text: str, kind: str = "", *, loads_vae: bool = False) -> LatentEncoderError:
    """A node's failure. Our own nodes' text is ``[CODE] message``, a newline, the hint; others' carry no code.

    Args:
        text: the exception's message.
        kind: the exception's type.
        loads_vae: whether it is the node that loads the VAE.
    """
    code = find_code(text)
    if code is not None:
        message, _, hint = text.partition(f"[{code}]")[2].strip().partition("\n")
        return LatentEncoderError(code, message, hint.strip() or CATALOGUE[code].hint)
    said = f"{kind} {text}".lower()
    if kind.endswith("MemoryError") or any(words in said for words in OUT_OF_MEMORY):
        return LatentEncoderError("OUT_OF_MEMORY", f"ComfyUI ran out of memory: {_short(text)}")
    if loads_vae:
        return LatentEncoderError(
            "VAE_MODEL_INVALID",
            f"ComfyUI cannot load the VAE: {_short(text)}",
            "Download the file again, update ComfyUI, or see whether the engine 'embedded' knows this VAE.",
        )
    return LatentEncoderError("ENCODING_FAILED", f"ComfyUI failed: {_short(text) or kind}")


def _short(said: object) -> str:
    text = str(said).strip()
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} ..."
