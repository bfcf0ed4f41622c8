"""The whole job of a picture in ComfyUI: EncodeToLatentFile against the same chain of ComfyUI's own nodes with
SaveLatent, and against a bare ``vae.encode``.

Node and chain run in one server, the bare encode in a process of its own that waits idle meanwhile. All get the same
picture in a round, and must come to the same latent, bit by bit. What our node does besides encoding is small beside an
encode on a CPU, so node and chain are also compared with a small VAE, where it shows; and with the faster encoder at 1
megapixel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks import machine, material, prompts
from benchmarks.hosted import HostedProcess
from benchmarks.material import DEMO_VAE, PICTURE_SIDE, RANDOM_VAE
from benchmarks.timing import Spread, added, interleave, ratio, table
from latent_encoder.service.engines.comfyui.client import ComfyUIClient
from latent_encoder.service.engines.comfyui.server import ComfyUIServer

ROUNDS = 21 if machine.CUDA else 3
SMALL_VAE_ROUNDS = 15
MEGAPIXELS, LARGE_MEGAPIXELS = 0.25, 1.0

OPTIMIZED = "EncodeToLatentFile with OptimizeVAEForEncoding"
OURS, STOCK, BARE = "EncodeToLatentFile", "ComfyUI's own nodes with SaveLatent", "bare vae.encode"
HEAD = ["", "median (lowest to highest)", "EncodeToLatentFile takes"]


def measure(repository: Path, comfyui: Path, folder: Path, *, quick: bool) -> list[str]:
    """Run it; returns the report's lines."""
    material.base_directory(folder, repository)
    material.add_random_vae(folder, repository)
    material.add_demo_vae(folder, repository)
    pictures = material.write_pictures(folder / "input")
    server = ComfyUIServer(comfyui, base_directory=folder, arguments=machine.COMFYUI_ARGUMENTS)
    with HostedProcess("bare_encode.py", comfyui, folder) as bare, server, ComfyUIClient(server.url) as client:

        def ways(vae: str, megapixels: float) -> _Ways:
            return _Ways(vae, megapixels, client, bare, folder, pictures)

        lines = _all_ways(ways(RANDOM_VAE, MEGAPIXELS), 2 if quick else ROUNDS)
        lines += ["", *_with_faster_encoder(ways(RANDOM_VAE, LARGE_MEGAPIXELS), 1 if quick else ROUNDS)]
        return [*lines, "", *_small_vae(ways(DEMO_VAE, MEGAPIXELS), 3 if quick else SMALL_VAE_ROUNDS)]


def _all_ways(ways: _Ways, rounds: int) -> list[str]:
    times = interleave({OURS: ways.ours, STOCK: ways.stock, BARE: ways.bare}, rounds, warm_up=True)
    return [
        f"Milliseconds, {rounds} rounds, a new picture of {PICTURE_SIDE} x {PICTURE_SIDE} pixels in each, scaled to "
        f"{MEGAPIXELS} megapixels; latents of shape {ways.check_latents()}, equal in all. Our preview is on.",
        "",
        *table(HEAD, _rows(times)),
        "",
        "Targets: at most 1.02x of ComfyUI's own nodes, 1.05x of the bare encode.",
    ]


def _with_faster_encoder(ways: _Ways, rounds: int) -> list[str]:
    times = interleave({OPTIMIZED: ways.optimized, STOCK: ways.stock}, rounds)
    rows = [[way, Spread.of(seconds).milliseconds, ratio(times, way, STOCK).ratio] for way, seconds in times.items()]
    return [
        f"With the faster encoder, at {LARGE_MEGAPIXELS:g} megapixel, {rounds} rounds, none unmeasured before; latents "
        f"differ by at most {ways.largest_difference():.1e}:",
        "",
        *table(["", "median (lowest to highest)", "of ComfyUI's own nodes"], rows),
        "",
        "Target: at most 0.72x.",
    ]


def _small_vae(ways: _Ways, rounds: int) -> list[str]:
    times = interleave({OURS: ways.ours, STOCK: ways.stock}, rounds, warm_up=True)
    ways.check_latents()
    return [
        f"With the small demo VAE, at {MEGAPIXELS} megapixels, {rounds} rounds:",
        "",
        *table(HEAD, _rows(times)),
        "",
        f"{OURS} minus ComfyUI's own nodes there: {added(times, OURS, STOCK).milliseconds} ms a picture.",
    ]


def _rows(times: dict[str, list[float]]) -> list[list[str]]:
    return [[name, Spread.of(seconds).milliseconds, ratio(times, OURS, name).ratio] for name, seconds in times.items()]


class _Ways:
    """The ways from a round's picture to its latent. Each takes the round's number and returns its seconds."""

    def __init__(
        self,
        vae: str,
        megapixels: float,
        client: ComfyUIClient,
        bare: HostedProcess,
        folder: Path,
        pictures: Iterator[str],
    ) -> None:
        self._vae, self._megapixels = vae, megapixels
        self._client, self._bare, self._folder = client, bare, folder
        self._pictures = defaultdict[int, str](lambda: next(pictures))
        self._latents = defaultdict[int, list[torch.Tensor]](list)

    def ours(self, number: int, *, optimize: bool = False) -> float:
        pictures = [self._pictures[number]]
        return self._run(number, prompts.ours(pictures=pictures, **self._recipe, optimize=optimize))

    def optimized(self, number: int) -> float:
        return self.ours(number, optimize=True)

    def stock(self, number: int) -> float:
        return self._run(number, prompts.stock(picture=self._pictures[number], **self._recipe))

    def bare(self, number: int) -> float:
        latent = self._folder / "bare.safetensors"
        seconds = self._bare.call(image=self._pictures[number], **self._recipe, latent=str(latent))
        self._keep(number, latent)
        return float(seconds)

    def check_latents(self) -> tuple[int, ...]:
        """The latents' shape. Raises RuntimeError unless those of a round are equal, and those of two rounds not."""
        rounds = list(self._latents.values())
        if not all(torch.equal(latent, first) for first, *others in rounds for latent in others):
            raise RuntimeError("the ways came to different latents")
        if any(torch.equal(one[0], other[0]) for one, other in combinations(rounds, 2)):
            raise RuntimeError("two rounds came to the same latent")
        return tuple(rounds[0][0].shape)

    def largest_difference(self) -> float:
        """Between the latents of one round."""
        return max((one - other).abs().max().item() for one, other in self._latents.values())

    @property
    def _recipe(self) -> dict[str, Any]:
        return {"vae": self._vae, "megapixels": self._megapixels}

    def _run(self, number: int, prompt: dict[str, Any]) -> float:
        ran = prompts.run(self._client, prompt)
        (item,) = [item for output in ran.outputs.values() for item in output.get("latents", [])]
        self._keep(number, self._folder / item["type"] / item["subfolder"] / item["filename"])
        return ran.seconds

    def _keep(self, number: int, path: Path) -> None:
        self._latents[number].append(load_file(path)["latent_tensor"])
