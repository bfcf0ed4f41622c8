"""Encoding alone: ComfyUI, with OptimizeVAEForEncoding, our embedded engine, diffusers, and caching as trainers do.

All get the same pixels in a round and the same weights. ComfyUI runs in two processes, one for each way, so that the
peak of its memory tells them apart; the others run in this one. The floor is what the encoder's multiplications would
take at the rate of this machine's matrix product, measured in the same rounds.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks import plot
from benchmarks.encode import write_random_vae
from benchmarks.hosted import HostedProcess
from benchmarks.timing import Spread, interleave, ratio, table
from latent_encoder.fast_encoder import encode_frame
from latent_encoder.service.engines.devices import pick_device
from latent_encoder.service.engines.vae_families import Vae, load_vae
from latent_encoder.service.engines.vae_files import find_vae

VAE = "random_96.safetensors"
ROUNDS = 3
SIZES = {"0.25 MP": (512, 512), "1 MP": (1024, 1024), "4 MP": (2048, 2048)}
LARGE = "4 MP"
"""The size that only ComfyUI's two ways are measured at, once."""

STOCK, OURS, EMBEDDED = "ComfyUI's VAEEncode", "with OptimizeVAEForEncoding", "embedded engine"
DIFFUSERS, CACHING, FLOOR = "diffusers", "caching for training", "floor"
PLOT = "benchmarks/encoders.svg"
MATRIX = 2048


@dataclass(frozen=True)
class Measured:
    """One size's figures.

    Attributes:
        times: by way, the seconds of each round.
        differences: by way, the largest absolute difference from ComfyUI's latent.
        peaks: by way, the process's peak memory so far in MB.
        kind: dtype and device.
    """

    times: dict[str, list[float]]
    differences: dict[str, float]
    peaks: dict[str, float]
    kind: str


def measure(repository: Path, comfyui: Path, folder: Path, *, quick: bool) -> list[str]:
    """Run it; returns the report's lines."""
    (folder / "models" / "vae").mkdir(parents=True)
    write_random_vae(repository, folder / "models" / "vae" / VAE)
    sizes = {"0.0625 MP": (256, 256)} if quick else SIZES
    with (
        HostedProcess("comfyui_encode.py", comfyui, folder / "stock") as stock,
        HostedProcess("comfyui_encode.py", comfyui, folder / "ours") as ours,
    ):
        for process in ("stock", "ours"):
            (folder / process / "models").symlink_to(folder / "models")
        ways = _Ways(stock, ours, repository, folder)
        found = {name: ways.measure(size, 2 if quick else ROUNDS, few=name == LARGE) for name, size in sizes.items()}
    if not quick:
        plot.bars(repository / PLOT, "Encoding, of ComfyUI's time", _relative(found))
    return _report(found)


def _report(found: dict[str, Measured]) -> list[str]:
    first = next(iter(found.values()))
    lines = [f"Seconds for one picture of random pixels; the VAE of Qwen-Image at full width, {first.kind}.", ""]
    for name, measured in found.items():
        head = [name, "seconds", f"of {STOCK}", "largest difference", "peak memory, MB"]
        rows = [
            [
                way,
                _seconds(times),
                ratio(measured.times, way, STOCK).ratio,
                f"{measured.differences[way]:.1e}" if way in measured.differences else "",
                f"{measured.peaks[way]:,.0f}" if way in measured.peaks else "",
            ]
            for way, times in measured.times.items()
        ]
        lines += [*table(head, rows), ""]
        if FLOOR in measured.times:
            lines += [f"{way}: {ratio(measured.times, FLOOR, way).middle:.2f} of the floor." for way in (OURS, STOCK)]
            lines += [f"{OURS} of {DIFFUSERS}: {ratio(measured.times, OURS, DIFFUSERS).ratio}. "
                      f"{EMBEDDED} of {OURS}: {ratio(measured.times, EMBEDDED, OURS).ratio}.", ""]  # fmt: skip
    lines += [
        "Targets at 1 MP: at most 0.70x of ComfyUI with a difference of at most 2e-5, at most 0.45x of diffusers, at "
        "least 0.65 of the floor, the embedded engine within 5 % of ComfyUI with ours.",
        "",
        f"![Encoding, of ComfyUI's time]({Path(PLOT).name})",
    ]
    return lines


def _relative(found: dict[str, Measured]) -> dict[str, dict[str, Spread]]:
    return {name: {way: ratio(one.times, way, STOCK) for way in one.times} for name, one in found.items()}


def _seconds(times: list[float]) -> str:
    spread = Spread.of(times)
    return f"{spread.middle:.3g} ({spread.low:.3g} to {spread.high:.3g})"


class _Ways:
    """The ways to encode, each a function of a round's number that returns its seconds."""

    def __init__(self, stock: HostedProcess, ours: HostedProcess, repository: Path, folder: Path) -> None:
        self._stock, self._ours, self._repository, self._folder = stock, ours, repository, folder
        self._pixels = folder / "pixels.safetensors"
        self._latents: dict[str, torch.Tensor] = {}
        self._answers: dict[str, dict[str, Any]] = {}

    def measure(self, size: tuple[int, int], rounds: int, *, few: bool) -> Measured:
        """Few: only ComfyUI's two ways, once each; their first, unmeasured call is one of another size."""
        self._latents.clear()
        self._image = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(1))
        save_file({"pixels": self._image}, self._pixels)
        comfyui = {STOCK: self._hosted(STOCK, self._stock, ""), OURS: self._hosted(OURS, self._ours, "pack")}
        if few:
            times = interleave(comfyui, 1)
        else:
            arms = comfyui | self._in_this_process(size)
            for arm in arms.values():
                arm(-1)
            times = interleave(arms, rounds)
            del arms
            gc.collect()
        expected = self._latents[STOCK]
        return Measured(
            times,
            {way: (latent - expected).abs().max().item() for way, latent in self._latents.items() if way != STOCK},
            {way: answer["peak_mb"] for way, answer in self._answers.items()},
            "{dtype} on {device}".format(**self._answers[STOCK]),
        )

    def _hosted(self, name: str, process: HostedProcess, pack: str) -> Callable[[int], float]:
        def run(number: int) -> float:
            latent = self._folder / "latent.safetensors"
            folder = str(self._repository) if pack else ""
            answer = process.call(vae=VAE, pixels=str(self._pixels), latent=str(latent), pack=folder)
            self._answers[name] = answer
            self._latents[name] = load_file(latent)["latent"]
            return float(answer["seconds"])

        return run

    def _in_this_process(self, size: tuple[int, int]) -> dict[str, Callable[[int], float]]:
        pixels = self._image.permute(0, 3, 1, 2).contiguous()
        plain, faster = (self._load(optimize=optimize) for optimize in (False, True))
        weights = load_file(self._folder / "models" / "vae" / VAE)

        def timed(name: str, encode: Callable[[], torch.Tensor]) -> Callable[[int], float]:
            def run(number: int) -> float:
                begin = time.perf_counter()
                self._latents[name] = encode()
                return time.perf_counter() - begin

            return run

        def cache() -> torch.Tensor:
            """As kohya's scripts: encode with diffusers' class, normalise each channel, save one file a picture."""
            latent = plain.encode(pixels, lambda part: None)
            mean, spread = latent.mean(dim=(0, 2, 3, 4), keepdim=True), latent.std(dim=(0, 2, 3, 4), keepdim=True)
            save_file({"latents": ((latent - mean) / spread)[0].contiguous()}, self._folder / "cached.safetensors")
            return latent

        flops = _flops(weights, size)
        return {
            EMBEDDED: timed(EMBEDDED, lambda: faster.encode(pixels, lambda part: None)),
            DIFFUSERS: timed(DIFFUSERS, lambda: plain.encode(pixels, lambda part: None)),
            CACHING: timed(CACHING, cache),
            FLOOR: lambda number: flops / _product_rate(),
        }

    def _load(self, *, optimize: bool) -> Vae:
        return load_vae(find_vae(self._folder / "models", VAE), pick_device(), optimize=optimize)


def _flops(weights: dict[str, torch.Tensor], size: tuple[int, int]) -> int:
    """The multiplications and additions of one encode; nothing is computed."""
    from torch.utils.flop_counter import FlopCounterMode

    shapes = {key: weight.to("meta") for key, weight in weights.items() if not key.startswith(("decoder.", "conv2."))}
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        encode_frame(shapes, torch.empty(1, 3, 1, *size, device="meta"), strip_rows=size[0])
    return int(counter.get_total_flops())


def _product_rate() -> float:
    """Operations a second of a product of two float32 matrices, the best of three."""
    one, other = (torch.rand(MATRIX, MATRIX) for _ in range(2))
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        one @ other
        seconds.append(time.perf_counter() - begin)
    return 2 * MATRIX**3 / min(seconds)
