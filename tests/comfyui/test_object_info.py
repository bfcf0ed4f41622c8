"""What ``/object_info`` says of the nodes: this is what the editor and API clients see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from comfyui.prompts import run as run_prompt
from comfyui.prompts import save_probe
from comfyui.servers import PACK_NAME, Server

DISPLAY_NAMES = {
    "EncodeToLatentFile": "Encode to Latent File",
    "SaveLatentToDisk": "Save Latent to Disk",
    "LoadLatentFromDisk": "Load Latent from Disk",
    "PublishLatentToKafka": "Publish Latent to Kafka",
    "OptimizeVAEForEncoding": "Optimize VAE for Encoding",
}
INPUTS = {
    "EncodeToLatentFile": [
        "image",
        "vae",
        "upscale_method",
        "megapixels",
        "resolution_steps",
        "filename_prefix",
        "file_format",
        "if_exists",
        "folder",
        "preview",
    ],
    "SaveLatentToDisk": ["samples", "filename_prefix", "file_format", "if_exists", "folder", "preview"],
    "LoadLatentFromDisk": ["latent_file", "vae"],
    "PublishLatentToKafka": ["record", "topic", "key", "payload", "correlation_id"],
    "OptimizeVAEForEncoding": ["vae"],
}
OUTPUTS = {
    "EncodeToLatentFile": ["LATENT", "LATENT_RECORD", "STRING"],
    "SaveLatentToDisk": ["LATENT", "LATENT_RECORD", "STRING"],
    "LoadLatentFromDisk": ["LATENT", "LATENT_RECORD"],
    "PublishLatentToKafka": ["LATENT_RECORD", "STRING"],
    "OptimizeVAEForEncoding": ["VAE"],
}
NOT_OUTPUT_NODES = ("LoadLatentFromDisk", "OptimizeVAEForEncoding")
ENGLISH = json.loads((Path(__file__).parents[2] / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
DEFAULTS = {
    "upscale_method": "lanczos",
    "megapixels": 1.0,
    "resolution_steps": 1,
    "filename_prefix": "latent",
    "file_format": "safetensors",
    "if_exists": "number",
    "folder": "output",
    "preview": True,
}
CHOICES = {
    "file_format": ["safetensors", "latent", "pt", "npy"],
    "if_exists": ["number", "overwrite", "fail"],
    "folder": ["output", "temp"],
}


def inputs_of(info: dict) -> dict[str, tuple]:
    """Every input of a node by name, required ones first."""
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


@pytest.mark.parametrize("name", DISPLAY_NAMES)
def test_node_is_listed(server: Server, name: str) -> None:
    info = server.client.object_info(name)[name]
    assert info["display_name"] == DISPLAY_NAMES[name]
    assert info["python_module"] == f"custom_nodes.{PACK_NAME}"
    assert "latent" in info["category"].lower()
    assert info["description"]
    assert info["output"] == OUTPUTS[name]
    assert info["output_node"] is (name not in NOT_OUTPUT_NODES)


@pytest.mark.parametrize("name", DISPLAY_NAMES)
def test_every_input_has_a_tooltip(server: Server, name: str) -> None:
    inputs = inputs_of(server.client.object_info(name)[name])
    assert list(inputs) == INPUTS[name]
    for input_name, (_, options) in inputs.items():
        assert options.get("tooltip", "").strip(), input_name


@pytest.mark.parametrize("name", DISPLAY_NAMES)
def test_the_english_texts_are_the_schemas(server: Server, name: str) -> None:
    info, text = server.client.object_info(name)[name], ENGLISH[name]
    assert (text["display_name"], text["description"]) == (info["display_name"], info["description"])
    told = {key: options["tooltip"] for key, (_, options) in inputs_of(info).items()}
    assert {key: words["tooltip"] for key, words in text["inputs"].items()} == told
    # The editor's i18n would read an @ as a link to another text.
    outputs = dict(
        enumerate(
            tip.replace("topic[partition]@offset", "its topic, partition and offset") for tip in info["output_tooltips"]
        )
    )
    assert {int(key): words["tooltip"] for key, words in text["outputs"].items()} == outputs


def test_defaults_and_choices(server: Server) -> None:
    for name in ("EncodeToLatentFile", "SaveLatentToDisk"):
        for input_name, (kind, options) in inputs_of(server.client.object_info(name)[name]).items():
            if input_name in DEFAULTS:
                assert options["default"] == DEFAULTS[input_name]
            if input_name in CHOICES:
                choices = kind if isinstance(kind, list) else options["options"]
                assert choices == CHOICES[input_name]


def test_image_has_an_upload_button_and_vae_is_a_lazy_raw_link(server: Server) -> None:
    inputs = inputs_of(server.client.object_info("EncodeToLatentFile")["EncodeToLatentFile"])
    assert inputs["image"][1]["image_upload"] is True
    assert inputs["vae"][0] == "VAE"
    assert inputs["vae"][1]["rawLink"] is True
    assert inputs["vae"][1]["lazy"] is True


def test_the_servers_log_knows_of_no_import_failure(server: Server) -> None:
    assert "IMPORT FAILED" not in server.log()
    assert PACK_NAME in server.log()


def test_smallest_prompt(server: Server, prefix: str) -> None:
    """The smallest prompt there is: whatever else fails, this says whether the pack works at all."""
    record = run_prompt(server, save_probe("plain", f"{prefix}/latent")).record
    assert record["latent_shape"] == [1, 16, 1, 12, 16]
