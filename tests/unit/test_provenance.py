"""Where a latent comes from, as a graph tells, and which VAE may decode it."""

from __future__ import annotations

from typing import Any

import pytest

from latent_encoder.errors import LatentEncoderError
from latent_encoder.provenance import check_decodable, describe_chain, downscale, graph_metadata, requested, vae_name

GRAPH: dict[str, dict[str, Any]] = {
    "39": {"class_type": "VAELoader", "inputs": {"vae_name": "qwen_image_vae.safetensors"}},
    "78": {"class_type": "LoadImage", "inputs": {"image": "sub/a.png [output]", "upload": "image"}},
    "93": {
        "class_type": "ImageScaleToTotalPixels",
        "inputs": {"image": ["78", 0], "upscale_method": "lanczos", "megapixels": 1.0, "resolution_steps": 8},
    },
    "88": {"class_type": "VAEEncode", "inputs": {"pixels": ["93", 0], "vae": ["39", 0]}},
}
SAMPLES = ["88", 0]


def told(changes: dict[str, dict[str, Any]] | None = None, samples: Any = SAMPLES) -> dict[str, Any]:
    return describe_chain((GRAPH | (changes or {})).__getitem__, samples)


def test_the_chain_of_the_official_template() -> None:
    assert told() == {
        "image_name": "sub/a.png [output]",
        "vae_name": "qwen_image_vae.safetensors",
        "upscale_method": "lanczos",
        "megapixels": 1.0,
        "resolution_steps": 8,
    }


def test_a_chain_without_scaling() -> None:
    encode = {"class_type": "VAEEncode", "inputs": {"pixels": ["78", 0], "vae": ["39", 0]}}
    assert told({"88": encode}) == {"image_name": "sub/a.png [output]", "vae_name": "qwen_image_vae.safetensors"}


def test_a_host_without_resolution_steps() -> None:
    inputs = {"image": ["78", 0], "upscale_method": "area", "megapixels": 0.5}
    scale = {"class_type": "ImageScaleToTotalPixels", "inputs": inputs}
    assert told({"93": scale}).keys() == {"image_name", "vae_name", "upscale_method", "megapixels"}


def test_widgets_that_a_link_feeds_tell_nothing() -> None:
    inputs = {"image": ["78", 0], "upscale_method": ["5", 0], "megapixels": ["6", 1], "resolution_steps": 1}
    changes = {
        "93": {"class_type": "ImageScaleToTotalPixels", "inputs": inputs},
        "78": {"class_type": "LoadImage", "inputs": {"image": ["7", 0]}},
        "39": {"class_type": "VAELoader", "inputs": {"vae_name": ["8", 0]}},
    }
    assert told(changes) == {"resolution_steps": 1}


@pytest.mark.parametrize("node", ["39", "78", "93", "88"])
@pytest.mark.parametrize(
    "other",
    [
        {"class_type": "SomethingElse", "inputs": {"image": "x", "vae_name": "y", "megapixels": 3}},
        {"class_type": "VAEEncode"},
        {"inputs": {}},
        {},
    ],
)
def test_other_nodes_tell_nothing(node: str, other: dict[str, Any]) -> None:
    """A node between, or of another class, may have changed everything: better nothing than a guess."""
    lost = {
        "39": {"vae_name"},
        "78": {"image_name"},
        "93": {"image_name", "upscale_method", "megapixels", "resolution_steps"},
        "88": set(told()),
    }[node]
    assert told({node: other}).keys() == set(told()) - lost


@pytest.mark.parametrize("samples", [None, "88", [], ["88"], ["88", 0, 0], ["404", 0], 3, {"88": 0}])
def test_links_to_nowhere(samples: Any) -> None:
    assert told(samples=samples) == {}


def test_the_name_of_a_vae() -> None:
    assert vae_name(GRAPH.__getitem__, ["39", 0]) == "qwen_image_vae.safetensors"
    assert vae_name(GRAPH.__getitem__, ["88", 0]) is None and vae_name(GRAPH.__getitem__, None) is None


@pytest.mark.parametrize(
    ("scaled", "latent", "factor"),
    [
        ((1024, 768), (128, 96), 8),
        ((1000, 1048), (125, 131), 8),
        ((1007, 1047), (125, 130), 8),
        ((1024, 1024), (64, 64), 16),
        ((1024, 1024), (32, 32), 32),
        ((15, 4000), (1, 500), 8),
        ((8, 8), (8, 8), 1),
        ((8, 8), (16, 16), None),
        ((0, 0), (1, 1), None),
        ((64, 64), (0, 8), None),
    ],
)
def test_downscale(scaled: tuple[int, int], latent: tuple[int, int], factor: int | None) -> None:
    assert downscale(scaled, latent) == factor


QWEN = {"latent_shape": [1, 16, 1, 12, 16], "vae_name": "qwen_image_vae.safetensors"}


@pytest.mark.parametrize(
    ("record", "channels", "dimensions"),
    [
        (QWEN, 16, 3),
        (QWEN, None, None),
        (QWEN, 16, 1),  # audio: what that host means by it is left to it
        ({"latent_shape": [1, 4, 8, 8]}, 4, 2),
        ({"latent_shape": None}, 4, 2),
        ({}, 4, 2),
        ({"latent_shape": [[1, 16, 1, 8, 8], [1, 8, 25, 16]]}, 16, 3),
    ],
)
def test_latents_that_fit(record: dict[str, Any], channels: int | None, dimensions: int | None) -> None:
    check_decodable(record, channels=channels, dimensions=dimensions, vae=None)


@pytest.mark.parametrize(
    ("channels", "dimensions", "words"),
    [(4, None, ["4 channels"]), (16, 2, ["4 dimensions"]), (4, 2, ["4 channels", "4 dimensions"])],
)
def test_latents_that_do_not_fit(channels: int, dimensions: int | None, words: list[str]) -> None:
    """The sentence says which VAE made it, how many channels it has, and what was given."""
    with pytest.raises(LatentEncoderError) as caught:
        check_decodable(QWEN, channels=channels, dimensions=dimensions, vae="sd.safetensors")
    assert caught.value.code == "VAE_MISMATCH"
    for word in ["qwen_image_vae.safetensors", "sd.safetensors", "16", *words]:
        assert word in caught.value.message
    with pytest.raises(LatentEncoderError) as caught:
        check_decodable({"latent_shape": [1, 16, 1, 12, 16]}, channels=channels, dimensions=dimensions, vae=None)
    assert "unknown" in caught.value.message


@pytest.mark.parametrize("shape", [[], [0, 16, 1, 8, 8], [1, 4, 0, 8]])
def test_latents_of_nothing(shape: list[int]) -> None:
    """They are loaded as they are, and refused where a VAE shall decode them."""
    with pytest.raises(LatentEncoderError, match="VAE_MISMATCH"):
        check_decodable({"latent_shape": shape}, channels=None, dimensions=None, vae=None)


@pytest.mark.parametrize("extra", [None, 5, "text", [], {}, {"latent_encoder": 5}, {"latent_encoder": {"other": 1}}])
def test_a_prompt_that_asks_for_nothing(extra: Any) -> None:
    assert requested(extra) == {}
    assert isinstance(graph_metadata({"1": {"class_type": "A"}}, extra)["prompt"], str)


def test_a_graph_that_its_sender_does_not_want_kept() -> None:
    graph = {"1": {"class_type": "A"}}
    assert graph_metadata(graph, {"latent_encoder": {"keep_graph": False}, "workflow": {}}) == {}
    assert graph_metadata(graph, {"latent_encoder": {"keep_graph": 0, "request_id": "a"}}).keys() > {"prompt"}


def test_what_a_prompt_asks_for() -> None:
    told = {"request_id": "order-17", "image_name": "a b/ü.png"}
    assert requested({"latent_encoder": told | {"other": 1}}) == told


@pytest.mark.parametrize("wrong", ["", "-a", "a/b", "a" * 129, "ä", "a\n", 5, ["a"], {}])
def test_an_odd_request_id_is_refused(wrong: Any) -> None:
    with pytest.raises(LatentEncoderError, match="INVALID_REQUEST"):
        requested({"latent_encoder": {"request_id": wrong}})
