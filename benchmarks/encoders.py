"""Encoding alone: ComfyUI, with OptimizeVAEForEncoding, our embedded engine, diffusers, and caching as trainers do.

All get the same pixels in a round and the same weights. ComfyUI runs in two processes, one for each way, so that the
peak of its memory tells them apart; the others run in this one.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks import floor, machine, material, plot
from benchmarks.hosted import HostedProcess
from benchmarks.material import RANDOM_VAE
from benchmarks.timing import Spread, interleave, ratio, table
from latent_encoder.service.engines.vae_families import import_diffusers, load_vae
from latent_encoder.service.engines.vae_files import find_vae

ROUNDS = 21 if machine.CUDA else 3
SIZES = {"0.25 MP": (512, 512), "1 MP": (1024, 1024)}
LARGE, LARGE_SIZE, LARGE_ROUNDS = "4 MP", (2048, 2048), ROUNDS if machine.CUDA else 1
"""The size at which only ComfyUI's two ways are measured."""

QUICK_SIZES = {"0.0625 MP": (256, 256)}

STOCK, OURS, EMBEDDED = "ComfyUI's VAEEncode", "with OptimizeVAEForEncoding", "embedded engine"
DIFFUSERS, CACHING, FLOOR = "diffusers", "caching for training", "floor"
PLOT = f"encoders{machine.SUFFIX}.svg"

Way = Callable[[], tuple[float, torch.Tensor]]
"""Encodes the current pixels: the seconds, and the latent as ComfyUI gives it, float32 on the CPU."""


@dataclass(frozen=True)
class Measured:
    """One size's figures.

    Attributes:
        times: by way, the seconds of each round.
        differences: by way, the largest absolute difference from ComfyUI's latent.
        peaks: by way, the process's peak memory so far in MB.
    """

    times: dict[str, list[float]]
    differences: dict[str, float]
    peaks: dict[str, float]


def measure(repository: Path, comfyui: Path, folder: Path, *, quick: bool) -> list[str]:
    """Run it; returns the report's lines."""
    material.base_directory(folder)
    material.add_random_vae(folder, repository)
    with (
        HostedProcess("comfyui_encode.py", comfyui, folder) as stock,
        HostedProcess("comfyui_encode.py", comfyui, folder) as ours,
    ):
        hosted = {STOCK: _ComfyUI(stock, folder), OURS: _ComfyUI(ours, folder, repository)}
        found = _measure_all_ways(hosted, folder, QUICK_SIZES if quick else SIZES, 2 if quick else ROUNDS)
        if not quick:
            _write_pixels(folder, LARGE_SIZE)
            found[LARGE] = _measure(hosted, LARGE_ROUNDS)
    ratios = {name: {way: ratio(one.times, way, STOCK) for way in one.times} for name, one in found.items()}
    plot.bars(folder / PLOT, f"Encoding, of ComfyUI's time ({machine.today()}, {machine.name()})", ratios)
    return _report(found, hosted[STOCK])


def _measure_all_ways(
    hosted: dict[str, _ComfyUI], folder: Path, sizes: dict[str, tuple[int, int]], rounds: int
) -> dict[str, Measured]:
    """All ways and the floor. The unmeasured round is one of the first size."""
    here = _InThisProcess(folder)  # whose memory is free again when this returns
    found: dict[str, Measured] = {}
    for name, size in sizes.items():
        ways = here.ways(_write_pixels(folder, size))
        operations = floor.count_operations(folder / "models" / "vae" / RANDOM_VAE, size)
        found[name] = _measure(hosted, rounds, ways=ways, operations=operations, warm_up=not found)
    return found


def _measure(
    hosted: dict[str, _ComfyUI],
    rounds: int,
    *,
    ways: Mapping[str, Way] | None = None,
    operations: int = 0,
    warm_up: bool = False,
) -> Measured:
    """Compare ComfyUI's ways with others on the current pixels, and with the floor of so many operations."""
    latents: dict[str, torch.Tensor] = {}

    def arm(name: str, encode: Way) -> Callable[[int], float]:
        def run(number: int) -> float:
            seconds, latents[name] = encode()
            return seconds

        return run

    arms = {name: arm(name, way.encode) for name, way in hosted.items()}
    arms |= {name: arm(name, way) for name, way in (ways or {}).items()}
    if operations:
        arms[FLOOR] = lambda number: operations / floor.measure_rate(hosted[STOCK].dtype)
    times = interleave(arms, rounds, warm_up=warm_up)
    stock = latents.pop(STOCK)
    differences = {name: (latent - stock).abs().max().item() for name, latent in latents.items()}
    return Measured(times, differences, {name: way.peak_mb for name, way in hosted.items()})


def _write_pixels(folder: Path, size: tuple[int, int]) -> torch.Tensor:
    """Random pixels for ComfyUI to read; also returns them: (1, height, width, 3), from 0 to 1."""
    pixels = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(1))
    save_file({"pixels": pixels}, folder / "pixels.safetensors")
    return pixels


class _ComfyUI:
    """ComfyUI's VAE in a process of its own; with ``pack`` by way of OptimizeVAEForEncoding.

    Attributes:
        dtype, device, peak_mb: of the last encode.
    """

    def __init__(self, process: HostedProcess, folder: Path, pack: Path | None = None) -> None:
        self._process, self._folder, self._pack = process, folder, str(pack or "")

    def encode(self) -> tuple[float, torch.Tensor]:
        pixels, latent = self._folder / "pixels.safetensors", self._folder / "latent.safetensors"
        answer = self._process.call(vae=RANDOM_VAE, pixels=str(pixels), latent=str(latent), pack=self._pack)
        self.dtype: torch.dtype = getattr(torch, answer["dtype"])
        self.device, self.peak_mb = answer["device"], answer["peak_mb"]
        return float(answer["seconds"]), load_file(latent)["latent"]


class _InThisProcess:
    """The embedded engine's VAE, and diffusers' own, which is the same without the faster way."""

    def __init__(self, folder: Path) -> None:
        files = find_vae(folder / "models", RANDOM_VAE)
        self._faster = load_vae(files, machine.DEVICE, optimize=True)
        self._plain = load_vae(files, machine.DEVICE, optimize=False)
        defaults = inspect.signature(import_diffusers().AutoencoderKLWan).parameters
        self._mean, self._std = (
            torch.tensor(defaults[name].default).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std")
        )
        self._cache = folder / "cached.safetensors"

    def ways(self, pixels: torch.Tensor) -> dict[str, Way]:
        """The ways to encode (1, height, width, 3) pixels."""
        pixels = pixels.movedim(-1, 1).contiguous()

        def timed(encode: Callable[[torch.Tensor], torch.Tensor]) -> Way:
            def run() -> tuple[float, torch.Tensor]:
                begin = time.perf_counter()
                latent = encode(pixels)
                return time.perf_counter() - begin, latent

            return run

        return {EMBEDDED: timed(self._embedded), DIFFUSERS: timed(self._diffusers), CACHING: timed(self._caching)}

    def _embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._faster.encode(pixels, lambda part: None)

    def _diffusers(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._plain.encode(pixels, lambda part: None)

    def _caching(self, pixels: torch.Tensor) -> torch.Tensor:
        """As kohya's musubi-tuner: the distribution's mode, normalised by the model's constants, in a file."""
        latent = self._diffusers(pixels)
        frames, height, width = latent.shape[2:]
        normalised = ((latent - self._mean) / self._std)[0]
        save_file({f"latents_{frames}x{height}x{width}_float32": normalised.contiguous()}, self._cache)
        return latent


def _report(found: dict[str, Measured], stock: _ComfyUI) -> list[str]:
    kind = f"{str(stock.dtype).removeprefix('torch.')} on {stock.device}"
    lines = [f"Seconds for one picture of random pixels; the VAE of Qwen-Image at full width, {kind}.", ""]
    for name, measured in found.items():
        lines += [*_table(name, measured), "", *_sentences(measured.times)]
    return [
        *lines,
        "Targets at 1 MP: at most 0.70x of ComfyUI with a difference of at most 2e-5, at most 0.45x of diffusers, at "
        "least 0.65 of the floor's rate, the embedded engine within 5 % of ComfyUI with ours.",
        "",
        f"![Encoding, of ComfyUI's time]({PLOT})",
    ]


def _table(name: str, measured: Measured) -> list[str]:
    rows = [
        [
            way,
            Spread.of(times).seconds,
            ratio(measured.times, way, STOCK).ratio,
            f"{measured.differences[way]:.1e}" if way in measured.differences else "",
            f"{measured.peaks[way]:,.0f}" if way in measured.peaks else "",
        ]
        for way, times in measured.times.items()
    ]
    return table([name, "seconds", f"of {STOCK}", "largest difference", "peak memory, MB"], rows)


def _sentences(times: dict[str, list[float]]) -> list[str]:
    """What the table does not say, where all ways were measured."""
    if FLOOR not in times:
        return []
    return [
        *(f"{way} reaches {ratio(times, FLOOR, way).middle:.2f} of the floor's rate." for way in (OURS, STOCK)),
        f"{OURS} of {DIFFUSERS}: {ratio(times, OURS, DIFFUSERS).ratio}.",
        f"{EMBEDDED} of {OURS}: {ratio(times, EMBEDDED, OURS).ratio}.",
        "",
    ]
