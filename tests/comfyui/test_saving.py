"""Names, collisions and formats of saved files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pictures
import pytest
from comfyui.folders import latents_in, put, snapshot
from comfyui.prompts import encode, load, node, outcome, run, save_probe
from comfyui.servers import Server, Servers
from comfyui.small_vae import NAME as SMALL_VAE

from latent_encoder.latent_file import load_latent

FORMATS = ("safetensors", "latent", "pt", "npy")


def test_number_takes_the_next_free_one(server: Server, prefix: str) -> None:
    names = [Path(run(server, save_probe("plain", f"{prefix}/a")).record["path"]).name for _ in range(3)]
    assert names == [f"a_0000{n}_.safetensors" for n in (1, 2, 3)]


def test_overwrite_replaces(server: Server, prefix: str) -> None:
    first = run(server, save_probe("plain", f"{prefix}/a", 1, if_exists="overwrite")).record
    second = run(server, save_probe("plain", f"{prefix}/a", 2, if_exists="overwrite")).record
    assert first["path"] == second["path"] == str(server.output / prefix / "a.safetensors")
    assert first["file_sha256"] != second["file_sha256"]
    assert load_latent(Path(second["path"])).verified


def test_overwrite_leaves_no_preview_of_another_picture(server: Server, prefix: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png())
    options = {"filename_prefix": f"{prefix}/a", "if_exists": "overwrite"}
    path = run(server, encode(image, SMALL_VAE, preview=True, **options)).record["path"]
    run(server, encode(image, SMALL_VAE, preview=False, **options))
    assert not Path(path + ".webp").exists()


def test_fail_keeps_the_first(server: Server, prefix: str) -> None:
    first = run(server, save_probe("plain", f"{prefix}/a", 1, if_exists="fail")).record
    before = snapshot(server)
    second = run(server, save_probe("plain", f"{prefix}/a", 2, if_exists="fail"))
    assert second.code == "FILE_EXISTS"
    assert snapshot(server) == before
    assert load_latent(Path(first["path"])).record["file_sha256"] == first["file_sha256"]


def test_failure_carries_message_and_hint(server: Server, prefix: str) -> None:
    run(server, save_probe("plain", f"{prefix}/a", if_exists="fail"))
    text = run(server, save_probe("plain", f"{prefix}/a", if_exists="fail")).text
    first, hint, *_ = text.splitlines()
    assert first.startswith("[FILE_EXISTS] ")
    assert "if_exists" in hint


@pytest.mark.parametrize("field", ["file_format", "if_exists", "folder"])
def test_unknown_choice(server: Server, prefix: str, field: str) -> None:
    before = snapshot(server)
    refused = run(server, save_probe("plain", f"{prefix}/a", **{field: "exe"}))
    assert refused.code == "INVALID_REQUEST"
    assert snapshot(server) == before


def test_sixteen_prompts_at_once(server: Server, prefix: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png())
    prompt = encode(image, SMALL_VAE, filename_prefix=f"{prefix}/latent")
    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(lambda _: server.client.submit(prompt), range(16)))
    records = [outcome(server.client.wait(prompt_id, timeout=120)).record for prompt_id in ids]
    assert len({record["path"] for record in records}) == 16
    assert len(latents_in(server.output / prefix)) == 16
    assert all(load_latent(path).verified for path in latents_in(server.output / prefix))


def test_two_servers_share_a_folder(servers: Servers, prefix: str) -> None:
    """Each ComfyUI counts for itself; neither may take a number that the other one has."""
    both = [servers.get(), servers.get("lru")]
    prompts = [save_probe("plain", f"{prefix}/a", seed) for seed in range(20)]
    queued = [(server, server.client.submit(prompt)) for prompt in prompts for server in both]
    records = [outcome(server.client.wait(prompt_id, timeout=120)).record for server, prompt_id in queued]
    assert len({record["path"] for record in records}) == 40
    assert len(latents_in(both[0].output / prefix)) == 40
    saved = {record["path"]: record["file_sha256"] for record in records}
    for path in latents_in(both[0].output / prefix):
        latent = load_latent(path)
        assert latent.verified
        assert latent.record["file_sha256"] == saved[str(path)]
    assert not list((both[0].output / prefix).glob(".latent-encoder-*"))


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_format_comes_back(server: Server, prefix: str, file_format: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png())
    prompt = encode(image, SMALL_VAE, filename_prefix=f"{prefix}/a", file_format=file_format)
    prompt["3"] = node("ProbeDigest", samples=["2", 0])
    saved = run(server, prompt)
    record = saved.record
    assert record["file_format"] == file_format
    assert record["filename"] == f"a_00001_.{file_format}"
    loaded = run(server, load(f"{prefix}/{record['filename']} [output]"))
    assert loaded.success, loaded.text
    assert loaded.all("digest") == saved.all("digest")


@pytest.mark.parametrize("file_format", ["safetensors", "latent"])
def test_stock_loadlatent_reads_it(server: Server, prefix: str, file_format: str) -> None:
    record = run(server, save_probe("plain", f"{prefix}/a", 5, file_format=file_format)).record
    prompt = {
        "1": node("LoadLatent", latent=f"{prefix}/{record['filename']} [output]"),
        "2": node("ProbeCompare", samples=["1", 0], kind="plain", seed=5),
    }
    compared = run(server, prompt)
    assert compared.success, compared.text
    assert compared.all("differences") == []


def test_stock_loadlatent_lists_a_latent_in_input(server: Server, prefix: str) -> None:
    record = run(server, save_probe("plain", f"{prefix}/a", file_format="latent")).record
    put(server, f"{prefix}.latent", Path(record["path"]).read_bytes())
    listed = server.client.object_info("LoadLatent")["LoadLatent"]["input"]["required"]["latent"][0]
    assert f"{prefix}.latent" in listed
