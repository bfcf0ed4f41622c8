"""In every cache mode that a host can run, the VAE is loaded as often as in the chain wired by hand, not more."""

from __future__ import annotations

import pictures
import pytest
from comfyui.folders import put
from comfyui.hosts import CACHE_MODES
from comfyui.prompts import by_hand, encode, node, run, save
from comfyui.servers import Server, Servers
from comfyui.small_vae import NAME as SMALL_VAE

PROMPTS = 5


def server_of(servers: Servers, mode: str) -> Server:
    if mode != "default" and mode not in servers.host.cache_modes:
        pytest.skip(f"--cache-{mode} is no mode of its own on this ComfyUI")
    if mode == "none" and not servers.host.expands_without_cache:
        pytest.skip(
            "this ComfyUI cannot expand nodes with --cache-none (a bug of the host's: KeyError in its caching.py)"
        )
    return servers.get(mode)


@pytest.mark.parametrize("mode", ["default", *CACHE_MODES])
def test_vae_loads(servers: Servers, prefix: str, mode: str) -> None:
    server = server_of(servers, mode)
    images = [put(server, f"{prefix}/{n}.png", pictures.png(seed=n)) for n in range(PROMPTS)]
    before = len(server.state()["vae_loads"])
    for image in images:
        assert run(server, encode(image, server.host.demo_vae, filename_prefix=f"{prefix}/a", megapixels=0.01)).record
    loads = len(server.state()["vae_loads"]) - before
    assert loads == (PROMPTS if mode == "none" else 1)


@pytest.mark.parametrize("mode", ["default", *CACHE_MODES])
def test_vae_loads_with_two_encodes_in_a_prompt(servers: Servers, prefix: str, mode: str) -> None:
    server = server_of(servers, mode)
    before = len(server.state()["vae_loads"])
    for n in range(3):
        image = put(server, f"{prefix}/{n}.png", pictures.png(seed=n))
        prompt = encode(image, SMALL_VAE, filename_prefix=f"{prefix}/a", megapixels=0.01)
        prompt["3"] = prompt["2"] | {
            "inputs": prompt["2"]["inputs"] | {"filename_prefix": f"{prefix}/b", "megapixels": 0.02}
        }
        result = run(server, prompt)
        assert result.success, result.text
        assert len(result.records) == 2
    loads = len(server.state()["vae_loads"]) - before
    assert loads == (3 if mode == "none" else 1)


@pytest.mark.parametrize("mode", ["default", *CACHE_MODES])
def test_identical_prompt_saves_again(servers: Servers, prefix: str, mode: str) -> None:
    server = server_of(servers, mode)
    image = put(server, f"{prefix}/a.png", pictures.png())
    prompt = encode(image, SMALL_VAE, filename_prefix=f"{prefix}/a")
    names = [run(server, prompt).record["filename"] for _ in range(3)]
    assert names == [f"a_0000{n}_.safetensors" for n in (1, 2, 3)]


def test_encode_is_not_run_again_for_a_side_branch(server: Server, prefix: str) -> None:
    """Wired as the README says, to both a consumer and SaveLatentToDisk, an identical prompt encodes nothing anew."""
    image = put(server, f"{prefix}/a.png", pictures.png())
    prompt = by_hand(image, SMALL_VAE, "unused")
    prompt["5"] = save(["4", 0], f"{prefix}/a")
    prompt["6"] = node("ProbeDigest", samples=["4", 0])
    first, second = run(server, prompt), run(server, prompt)
    assert first.success, first.text
    cached = next(data["nodes"] for event, data in second.messages if event == "execution_cached")
    assert {"1", "2", "3", "4", "6"} <= set(cached)
    assert second.record["filename"] == "a_00002_.safetensors"
