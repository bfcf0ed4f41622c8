"""What ComfyUI says of a failure, as it says it, becomes the right code."""

from __future__ import annotations

from typing import Any

import pytest

from latent_encoder.service.engines.comfyui.client import PromptRejected
from latent_encoder.service.engines.comfyui.failures import LONGEST_TEXT, from_failure, from_history, from_rejection

CPU_TEXT = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."


@pytest.mark.parametrize(
    ("text", "kind", "loads_vae", "code"),
    [
        ("[IMAGE_INVALID] It is cut short.\nExport it again.\n", "LatentEncoderError", False, "IMAGE_INVALID"),
        ("Allocation on device 0 would exceed allowed memory.", "torch.OutOfMemoryError", False, "OUT_OF_MEMORY"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", "torch.cuda.OutOfMemoryError", False, "OUT_OF_MEMORY"),
        (CPU_TEXT, "RuntimeError", False, "OUT_OF_MEMORY"),
        (CPU_TEXT, "RuntimeError", True, "OUT_OF_MEMORY"),
        ("", "MemoryError", False, "OUT_OF_MEMORY"),
        ("Error(s) in loading state_dict for WanVAE", "RuntimeError", True, "VAE_MODEL_INVALID"),
        ("Given groups=1, weight of size [8, 3]", "RuntimeError", False, "ENCODING_FAILED"),
        ("", "KeyError", False, "ENCODING_FAILED"),
    ],
)
def test_a_nodes_failure(text: str, kind: str, loads_vae: bool, code: str) -> None:
    assert from_failure(text, kind, loads_vae=loads_vae).code == code


def test_our_own_nodes_words_and_hint_are_kept() -> None:
    error = from_failure("Before it: [SCALING_FAILED] It would have no pixels.\nTake more megapixels.\n")
    assert (error.code, error.message) == ("SCALING_FAILED", "It would have no pixels.")
    assert error.hint == "Take more megapixels."


def test_pages_of_text_are_cut() -> None:
    assert len(from_failure("x" * 50_000).message) < LONGEST_TEXT + 100


def refused(class_type: str, kind: str, **extra: Any) -> PromptRejected:
    errors = [{"type": kind, "message": "m", "details": "d", "extra_info": extra}]
    return PromptRejected({}, {"7": {"class_type": class_type, "errors": errors}})


@pytest.mark.parametrize(
    ("rejected", "code"),
    [
        (refused("VAELoader", "value_not_in_list", received_value="v"), "VAE_MODEL_NOT_FOUND"),
        (refused("CheckpointLoaderSimple", "value_not_in_list", received_value="v"), "VAE_MODEL_NOT_FOUND"),
        (refused("VAELoader", "required_input_missing"), "INVALID_REQUEST"),
        (refused("LoadImage", "custom_validation_failed"), "IMAGE_NOT_FOUND"),
        (refused("KSampler", "value_not_in_list"), "INVALID_REQUEST"),
        (PromptRejected({"type": "missing_node_type", "message": "m"}, {}), "NODES_MISSING"),
        (PromptRejected({"type": "invalid_prompt", "message": "m"}, {}), "NODES_MISSING"),
        (PromptRejected({"type": "prompt_no_outputs", "message": "m"}, {}), "INVALID_REQUEST"),
    ],
)
def test_a_refusal(rejected: PromptRejected, code: str) -> None:
    vae_node = "7" if "CheckpointLoaderSimple" in str(rejected) else None
    assert from_rejection(rejected, vae_node).code == code


def test_an_interruption() -> None:
    messages = [["execution_start", {}], ["execution_interrupted", {"node_id": "1"}]]
    error = from_history({"status": {"status_str": "error", "messages": messages}})
    assert error is not None
    assert error.code == "INTERRUPTED"
    assert from_history({"status": {"status_str": "success", "messages": messages[:1]}}) is None
