"""EncodeToLatentFile against the same chain of ComfyUI's own nodes with SaveLatent, and against a bare ``vae.encode``.

The first two run in one server, the third in a process of its own that waits idle meanwhile. All of them get the same
picture in a round, and must come to the same latent, bit by bit. What our node does besides encoding is small beside an
encode on a CPU, so the first two are also compared with a small VAE, where it shows.
"""

from __future__ import annotations

import hashlib
import random
import runpy
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.hosted import HostedProcess
from benchmarks.timing import Spread, interleave, ratio, table
from latent_encoder.service.engines.comfyui.client import ComfyUIClient
from latent_encoder.service.engines.comfyui.server import ComfyUIServer

ROUNDS = 5
SMALL_VAE_ROUNDS = 15
LARGE_ROUNDS = 3
VAE, SMALL_VAE = "random_96.safetensors", "demo_vae.safetensors"
RECIPE = {"upscale_method": "lanczos", "megapixels": 0.25, "resolution_steps": 1}
PICTURE_SIDE = 1024

OPTIMIZED = "EncodeToLatentFile with OptimizeVAEForEncoding"
OURS, STOCK, BARE = "EncodeToLatentFile", "ComfyUI's own nodes with SaveLatent", "bare vae.encode"


def measure(repository: Path, comfyui: Path, folder: Path, *, quick: bool) -> list[str]:
    """Run it; returns the report's lines."""
    for name in ("custom_nodes", "models/vae", "input", "output"):
        (folder / name).mkdir(parents=True)
    (folder / "custom_nodes" / "latent-encoder").symlink_to(repository)
    write_random_vae(repository, folder / "models" / "vae" / VAE)
    (folder / "models" / "vae" / SMALL_VAE).symlink_to(repository / "assets" / SMALL_VAE)
    pictures = _pictures(folder / "input")
    server = ComfyUIServer(comfyui, base_directory=folder, arguments=("--cpu",))
    with HostedProcess("bare_encode.py", comfyui, folder) as bare, server, ComfyUIClient(server.url) as client:
        runner = _Runner(VAE, client, bare, folder, pictures)
        times = _interleave({OURS: runner.ours, STOCK: runner.stock, BARE: runner.bare}, 2 if quick else ROUNDS)
        shape = runner.check_latents()
        large = _Runner(VAE, client, bare, folder, pictures, megapixels=1.0)
        large_arms = {OPTIMIZED: large.optimized, STOCK: large.stock}
        large_times = _interleave(large_arms, 1 if quick else LARGE_ROUNDS)
        small = _Runner(SMALL_VAE, client, bare, folder, pictures)
        small_times = _interleave({OURS: small.ours, STOCK: small.stock}, 3 if quick else SMALL_VAE_ROUNDS)
        small.check_latents()
    head = ["", "median (lowest to highest)", "EncodeToLatentFile takes"]
    return [
        f"Milliseconds, {len(times[OURS])} rounds, a new picture of {PICTURE_SIDE} x {PICTURE_SIDE} pixels in each; "
        f"latents of shape {shape}, equal in all. Our preview is on.",
        "",
        *table(head, _rows(times)),
        "",
        "Targets: at most 1.02x of ComfyUI's own nodes, 1.05x of the bare encode.",
        "",
        f"The whole job with the faster encoder, at 1 megapixel, {len(large_times[STOCK])} rounds; latents differ by "
        f"at most {large.largest_difference():.1e}:",
        "",
        *table(
            ["", "median (lowest to highest)", "of ComfyUI's own nodes"],
            [[way, Spread.of(s).milliseconds, ratio(large_times, way, STOCK).ratio] for way, s in large_times.items()],
        ),
        "",
        "Target: at most 0.72x.",
        "",
        f"With the small demo VAE, {len(small_times[OURS])} rounds:",
        "",
        *table(head, _rows(small_times)),
        "",
        f"EncodeToLatentFile minus ComfyUI's own nodes there: {_difference(small_times).milliseconds} ms a picture.",
    ]


def _interleave(arms: dict[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    for arm in arms.values():  # loads the VAE, and lets torch choose its kernels
        arm(-1)
    return interleave(arms, rounds)


def _rows(times: dict[str, list[float]]) -> list[list[str]]:
    return [[name, Spread.of(seconds).milliseconds, ratio(times, OURS, name).ratio] for name, seconds in times.items()]


def _difference(times: dict[str, list[float]]) -> Spread:
    return Spread.of([ours - stock for ours, stock in zip(times[OURS], times[STOCK], strict=True)])


class _Runner:
    """The three ways from a round's picture to its latent. Each returns its seconds."""

    def __init__(
        self,
        vae: str,
        client: ComfyUIClient,
        bare: HostedProcess,
        folder: Path,
        pictures: Iterator[str],
        megapixels: float = RECIPE["megapixels"],
    ) -> None:
        self._recipe = RECIPE | {"megapixels": megapixels}
        self._tensors: dict[int, list[torch.Tensor]] = {}
        self._vae = vae
        self._client, self._bare, self._folder = client, bare, folder
        self._pictures = pictures
        self._names: dict[int, str] = {}
        self._latents: dict[int, set[tuple[str, tuple[int, ...]]]] = {}

    def ours(self, number: int, vae: str = "1") -> float:
        inputs = {"image": self._picture(number), "vae": [vae, 0], **self._recipe, "filename_prefix": "ours"}
        saving = {"file_format": "safetensors", "if_exists": "number", "folder": "output", "preview": True}
        optimize = {"7": node("OptimizeVAEForEncoding", vae=["1", 0])} if vae == "7" else {}
        return self._prompt(number, optimize | {"2": node("EncodeToLatentFile", **inputs, **saving)})

    def optimized(self, number: int) -> float:
        return self.ours(number, vae="7")

    def stock(self, number: int) -> float:
        chain = {
            "3": node("LoadImage", image=self._picture(number)),
            "4": node("ImageScaleToTotalPixels", image=["3", 0], **self._recipe),
            "5": node("VAEEncode", pixels=["4", 0], vae=["1", 0]),
            "6": node("SaveLatent", samples=["5", 0], filename_prefix="stock"),
        }
        return self._prompt(number, chain)

    def bare(self, number: int) -> float:
        answer = self._bare.call(vae=self._vae, image=self._picture(number), **self._recipe)
        self._latents.setdefault(number, set()).add((answer["sha256"], tuple(answer["shape"])))
        return float(answer["seconds"])

    def check_latents(self) -> tuple[int, ...]:
        """The latents' shape. Raises RuntimeError unless those of a round were equal, and those of two rounds not."""
        different = set.union(*self._latents.values())
        if any(len(found) != 1 for found in self._latents.values()) or len(different) != len(self._latents):
            raise RuntimeError(f"the ways did not do the same work: {self._latents}")
        return next(iter(self._latents[0]))[1]

    def largest_difference(self) -> float:
        """Between the latents of one round."""
        return max((a - b).abs().max().item() for a, b in self._tensors.values())

    def _picture(self, number: int) -> str:
        if number not in self._names:
            self._names[number] = next(self._pictures)
        return self._names[number]

    def _prompt(self, number: int, nodes: Mapping[str, Any]) -> float:
        """Seconds from the submission to ComfyUI's own time stamp of the end: the client polls too seldom for this."""
        prompt = {"1": node("VAELoader", vae_name=self._vae), **nodes}
        begin = time.time()
        entry = self._client.run(prompt)
        events = dict(entry["status"]["messages"])
        if "execution_success" not in events:
            raise RuntimeError(f"the prompt failed: {entry['status']}")
        (item,) = [item for output in entry["outputs"].values() for item in output.get("latents", [])]
        latent = load_file(self._folder / item["type"] / item["subfolder"] / item["filename"])["latent_tensor"]
        self._tensors.setdefault(number, []).append(latent)
        digest = hashlib.sha256(latent.numpy().tobytes()).hexdigest()
        self._latents.setdefault(number, set()).add((digest, tuple(latent.shape)))
        return float(events["execution_success"]["timestamp"]) / 1000 - begin


def write_random_vae(repository: Path, target: Path) -> None:
    """A Qwen-Image VAE at its full width, 96, in bfloat16 as the original, with random weights of a usual size."""
    pad = runpy.run_path(str(repository / "tools" / "pad_demo_vae.py"))["pad_weights"]
    generator = torch.Generator().manual_seed(0)

    def random_like(key: str, value: torch.Tensor) -> torch.Tensor:
        if key.endswith(".gamma"):
            return torch.ones_like(value)
        if key.endswith(".bias"):
            return torch.zeros_like(value)
        return torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5

    weights = pad(load_file(repository / "assets" / "demo_vae.safetensors"), 96)
    save_file({key: random_like(key, value).to(torch.bfloat16) for key, value in weights.items()}, target)


def _pictures(folder: Path) -> Iterator[str]:
    """Names of PNG files in ``folder``, made one by one: crops of photographs, enlarged to the size of a camera's."""
    from skimage import data

    photographs = [Image.fromarray(photograph()) for photograph in (data.astronaut, data.coffee, data.chelsea)]
    choose = random.Random(0)
    while True:
        for photograph in photographs:
            side = choose.randint(200, min(photograph.size))
            left, top = (choose.randint(0, size - side) for size in photograph.size)
            crop = photograph.crop((left, top, left + side, top + side))
            name = f"{time.time_ns()}.png"
            crop.resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS).save(folder / name)
            yield name


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
