"""Many prompts in one process, and processes that are killed while they save."""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path

import pictures
import pytest
from comfyui.folders import latents_in, put
from comfyui.hosts import find_hosts
from comfyui.prompts import encode, run, save_probe
from comfyui.servers import Server, Servers
from comfyui.small_vae import NAME as SMALL_VAE

from latent_encoder.atomic_file import TEMPORARY_PREFIX
from latent_encoder.latent_file import load_latent

KILLS = 5
"""Over all hosts that are found."""


def use(server: Server, prefix: str, prompts: range) -> None:
    """Encode a new picture with each prompt, save it in every way, read it back; one prompt in ten fails."""
    formats = itertools.cycle(("safetensors", "latent", "pt", "npy"))
    for n in prompts:
        bad = n % 10 == 9
        image = put(server, f"{prefix}/a.png", pictures.bad()["cut-png"].data if bad else pictures.png(seed=n))
        inputs = {"filename_prefix": f"{prefix}/a", "file_format": next(formats), "megapixels": 0.01}
        result = run(server, encode(image, SMALL_VAE, **inputs))
        assert result.code == ("IMAGE_INVALID" if bad else None), result.text
        if not bad:
            Path(result.record["path"]).unlink()


def assert_levels_off(server: Server, prefix: str, prompts: int) -> None:
    """After a fifth of the prompts, the process has what it needs; then memory, handles and threads stay."""
    warm_up = max(prompts // 5, 15)
    use(server, prefix, range(warm_up))
    before = server.state()
    use(server, prefix, range(warm_up, warm_up + prompts))
    after = server.state()
    grown = (after["rss"] - before["rss"]) / 1e6
    kept = ", ".join(f"{name} {before[name]} -> {after[name]}" for name in ("handles", "threads"))
    print(f"\n{server.host}, {prompts} prompts: {grown:+.1f} MB, {kept}")
    assert grown < 40
    assert after["handles"] <= before["handles"] + 3
    assert after["threads"] <= before["threads"] + 2
    staged = list((server.temp / "latent_encoder").iterdir())
    assert len(staged) <= 32


def test_fifty_prompts(server: Server, prefix: str) -> None:
    assert_levels_off(server, prefix, 50)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_five_hundred_prompts(server: Server, prefix: str) -> None:
    assert_levels_off(server, prefix, 500)


def saves_until_killed(servers: Servers, mode: str, prefix: str, seconds: float) -> None:
    """Queue many saves of 16 MB and smaller, and kill the server that long after its first file is there."""
    server = servers.get(mode)
    folder = server.output / prefix
    there = len(latents_in(folder)) if folder.is_dir() else 0
    for seed in range(40):
        server.client.submit(save_probe("large" if seed % 2 else "plain", f"{prefix}/a", seed))
    deadline = time.monotonic() + 60
    while not (folder.is_dir() and len(latents_in(folder)) > there):
        assert time.monotonic() < deadline, server.log()[-2000:]
        time.sleep(0.002)
    time.sleep(seconds)
    servers.kill(mode)


def test_killed_while_it_saves(servers: Servers, prefix: str) -> None:
    """Never a file that looks whole and is not; leftovers are known by their names, and the next save clears them."""
    chance = random.Random(7)
    modes = [mode for mode in ("lru", "classic", "none") if mode in servers.running] or ["lru"]
    folder, whole, leftovers = servers.get().output / prefix, 0, 0
    for _, mode in zip(range(-(-KILLS // len(find_hosts()))), itertools.cycle(modes), strict=False):
        saves_until_killed(servers, mode, prefix, chance.uniform(0, 1))
        finished = {path for path in folder.iterdir() if not path.name.startswith(TEMPORARY_PREFIX)}
        for path in latents_in(folder):
            load_latent(path)
            assert load_latent(path).verified or path.with_name(path.name + ".json") not in finished
        strays = {path for path in finished if path.suffix == ".json" and path.with_suffix("") not in finished}
        assert not strays
        whole += len(latents_in(folder))
        leftovers += len(list(folder.glob(f"{TEMPORARY_PREFIX}*")))
        assert run(servers.get(), save_probe("plain", f"{prefix}/next")).record
        assert list(folder.glob(f"{TEMPORARY_PREFIX}*")) == []
    print(f"\n{servers.host}: {whole} whole files, {leftovers} leftovers, all cleared")
