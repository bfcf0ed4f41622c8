"""From nothing to a latent file: ComfyUI's start, its first encode and the next, with this pack and without.

The VAE is of the original's size, so that loading it, and the checksum of its file, are in the first encode.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import commands, machine, material, prompts
from benchmarks.material import RANDOM_VAE
from benchmarks.timing import Spread, interleave, ratio, table
from latent_encoder.service.engines.comfyui.client import ComfyUIClient
from latent_encoder.service.engines.comfyui.server import ComfyUIServer

ROUNDS = 3
MEGAPIXELS = 0.0625
STOCK, OURS, OPTIMIZED = "ComfyUI's own nodes", "EncodeToLatentFile", "with OptimizeVAEForEncoding"
STANDALONE = "`main.py --mode standalone`, embedded engine"
STEPS = ("start", "first encode", "next encode", "all up to the first file")
WITHOUT_PACK = ("--disable-all-custom-nodes",)


def measure(repository: Path, comfyui: Path, folder: Path, *, quick: bool) -> list[str]:
    """Run it; returns the report's lines."""
    material.base_directory(folder, repository)
    material.add_random_vae(folder, repository)
    starts = _Starts(repository, comfyui, folder, next(material.write_pictures(folder / "input")))
    arms = {STOCK: starts.stock, OURS: starts.ours, OPTIMIZED: starts.optimized, STANDALONE: starts.standalone}
    steps: dict[str, list[list[float]]] = defaultdict(list)

    def arm(name: str, start: Callable[[], list[float]]) -> Callable[[int], float]:
        def run(number: int) -> float:
            steps[name].append(start())
            return steps[name][-1][-1]

        return run

    # The first round compiles Python's files and brings them into memory, as only a first start after install does.
    rounds = 1 if quick else ROUNDS
    times = interleave({name: arm(name, start) for name, start in arms.items()}, rounds, warm_up=not quick)
    rows = [[name, *_spreads(found[-rounds:]), ratio(times, name, STOCK).ratio] for name, found in steps.items()]
    return [
        f"Seconds, {rounds} rounds; a PNG at {MEGAPIXELS} megapixels, the VAE of Qwen-Image at full width.",
        "",
        *table(["", *STEPS, f"of {STOCK}"], rows),
    ]


def _spreads(rounds: list[list[float]]) -> list[str]:
    """A cell for each step; empty for those that a way does not have: it has only the last ones."""
    cells = [Spread.of(seconds).seconds for seconds in zip(*rounds, strict=True)]
    return [""] * (len(STEPS) - len(cells)) + cells


@dataclass
class _Starts:
    """The ways to start, each to be called for the seconds of ``STEPS``."""

    repository: Path
    comfyui: Path
    folder: Path
    picture: str

    def stock(self) -> list[float]:
        recipes = self._recipes()
        return self._serve([prompts.stock(picture=self.picture, **recipe) for recipe in recipes], *WITHOUT_PACK)

    def ours(self, *, optimize: bool = False) -> list[float]:
        recipes = self._recipes()
        return self._serve([prompts.ours(pictures=[self.picture], optimize=optimize, **recipe) for recipe in recipes])

    def optimized(self) -> list[float]:
        return self.ours(optimize=True)

    def standalone(self) -> list[float]:
        """Only the last step: one process, from the command to its end."""
        settings = {
            "LATENT_ENCODER_ENGINE": "embedded",
            "VAE_MODEL_NAME": RANDOM_VAE,
            "MEGAPIXELS": str(MEGAPIXELS),
            "LATENT_ENCODER_INPUT_ROOTS": str(self.folder),
            "MODEL_DIR": str(self.folder / "models"),
            "OUTPUT_DIR": str(self.folder / f"standalone{time.time_ns()}"),
        }
        picture = str(self.folder / "input" / self.picture)
        words = ("--mode", "standalone", "--image-path", picture)
        return [commands.run(self.repository, self.folder, *words, settings=settings).end]

    def _recipes(self) -> list[dict[str, Any]]:
        """Two: ComfyUI would answer the same one again from its cache."""
        return [{"vae": RANDOM_VAE, "megapixels": megapixels} for megapixels in islice(prompts.recipes(MEGAPIXELS), 2)]

    def _serve(self, both: list[dict[str, Any]], *arguments: str) -> list[float]:
        begin = time.perf_counter()
        arguments = (*machine.COMFYUI_ARGUMENTS, *arguments)
        server = ComfyUIServer(self.comfyui, base_directory=self.folder, arguments=arguments)
        with server, ComfyUIClient(server.url) as client:
            started = time.perf_counter() - begin
            first, following = (prompts.run(client, prompt).seconds for prompt in both)
        return [started, first, following, started + first]
