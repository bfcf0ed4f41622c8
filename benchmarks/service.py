"""The service's doors against the bare engine, a plain loop, a service that loads its model again, and their memory."""

from __future__ import annotations

import io
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks import commands, machine, material
from benchmarks.bare_engine import bare_engine, calls_in, in_service
from benchmarks.hosted import HostedProcess
from benchmarks.material import DEMO_VAE
from benchmarks.timing import Spread, added, interleave, ratio, table
from latent_encoder.images import scaled_size
from latent_encoder.service.engines.vae_families import load_vae
from latent_encoder.service.engines.vae_files import find_vae

MEGAPIXELS = 0.05
IN_SERVICE, ALONE = "bare engine call in the service's process", "bare engine call in a process of its own"
REST, STANDALONE, LOOP = "REST", "standalone", "plain loop"
NEW_PROCESS = "a process for each message: ComfyUI's modules, VAE, encode, save"
NEW_VAE = "ComfyUI's modules loaded, VAE for each message"


@dataclass(frozen=True)
class Size:
    """How much is measured: so many rounds or encodes, and all but ``doors`` only as far as they fit into so many
    seconds."""

    doors: tuple[int, int]  # rounds, and over how many services
    messages: tuple[int, float]
    encodes: tuple[int, float]
    folder: tuple[int, float]
    first: int  # the encodes after which the memory is looked at first
    pictures: int  # in the folder


FULL = Size(doors=(160, 8), messages=(4, 120), encodes=(1000, 180), folder=(3, 180), first=100, pictures=64)
QUICK = Size(doors=(8, 2), messages=(1, 0), encodes=(30, 10), folder=(1, 0), first=20, pictures=8)


def measure(repository: Path, comfyui: Path, folder: Path, *, quick: bool) -> list[str]:
    """Run it; returns the report's lines."""
    material.base_directory(folder)
    material.add_demo_vae(folder, repository)
    size = QUICK if quick else FULL
    lines = [f"The engine `embedded` with the demo VAE at {MEGAPIXELS} megapixels, on {machine.DEVICE}."]
    lines += ["", *_doors(repository, folder, *size.doors)]
    with _service(repository, folder) as (client, process):
        lines += ["", *_messages(comfyui, folder, client, *size.messages)]
        lines += ["", *_memory(folder, client, process, size.first, *size.encodes)]
    return [*lines, "", *_folder(repository, folder, size.pictures, *size.folder)]


@contextmanager
def _service(
    repository: Path, folder: Path, program: Sequence[str] | None = None
) -> Iterator[tuple[HTTPConnection, subprocess.Popen[bytes]]]:
    """A service with the HTTP door: a connection, and the process (``program``: see ``commands.rest``)."""
    settings = _settings(folder) | {"PYTHONPATH": str(repository)}  # for the program; main.py has it by itself
    with (
        commands.rest(repository, folder, settings, program) as (url, process),
        closing(HTTPConnection(urlsplit(url).netloc, timeout=120)) as client,
    ):
        yield client, process


def _settings(folder: Path) -> dict[str, str]:
    return {
        "LATENT_ENCODER_ENGINE": "embedded",
        "MODEL_DIR": str(folder / "models"),
        "VAE_MODEL_NAME": DEMO_VAE,
        "MEGAPIXELS": str(MEGAPIXELS),
        "LATENT_ENCODER_INPUT_ROOTS": str(folder),
    }


def _fitting(arms: Mapping[str, Callable[[int], float]], most: int, seconds: float) -> dict[str, list[float]]:
    """``interleave`` for at most so many rounds, as far as they fit into the time; one in any case."""
    begin = time.monotonic()
    times = interleave(arms, 1)
    more = min(most, int(seconds / (time.monotonic() - begin))) - 1
    for name, further in interleave(arms, max(0, more), start=1).items():
        times[name] += further
    return times


def _post(client: HTTPConnection, picture: Path, request_id: str, **fields: Any) -> float:
    """One request to the service; its seconds."""
    begin = time.perf_counter()
    body = json.dumps({"image_path": str(picture), "request_id": request_id, **fields})
    client.request("POST", "/v1/encode", body, {"Content-Type": "application/json"})
    answer = json.load(client.getresponse())
    seconds = time.perf_counter() - begin
    if answer["status"] != "success" or answer["metadata"]["reused"]:
        raise RuntimeError(f"the service answered {answer}")
    return seconds


def _run_standalone(repository: Path, folder: Path, pictures: Path) -> commands.Answers:
    output = str(folder / f"standalone-{time.time_ns()}")
    words = ["--mode", "standalone", "--image-path", str(pictures)]
    return commands.run(repository, folder, *words, settings=_settings(folder) | {"OUTPUT_DIR": output})


def _doors(repository: Path, folder: Path, rounds: int, processes: int) -> list[str]:
    """One picture a round, new each time, by the bare engine, over HTTP, and as one of a run on the command line."""
    times: dict[str, list[float]] = {IN_SERVICE: [], REST: [], ALONE: []}
    around, intervals, more = [], [], []
    for number in range(processes):
        place = folder / "doors" / str(number)
        seeds = range(number, rounds + processes, processes)
        pictures = [material.write_soft_picture(place / f"{seed}.png", seed + 1, (512, 512)) for seed in seeds]
        for name, taken in _rounds(repository, folder, pictures).items():
            times[name] += taken
        with _bare_engine(repository, folder) as bare:
            bare(pictures[0])  # loads the VAE
            calls = [bare(picture) for picture in pictures]
            came = _run_standalone(repository, folder, place).intervals[3:]  # the VAE is loaded during the first ones
            calls += [bare(picture) for picture in pictures]
        around += calls
        intervals += came
        more += [interval - median(calls) for interval in came]
    to_each = [added(times, REST, call).milliseconds for call in (IN_SERVICE, ALONE)]
    rows = [
        [IN_SERVICE, Spread.of(times[IN_SERVICE]).milliseconds, "", ""],
        [ALONE, Spread.of(times[ALONE]).milliseconds, "", ""],
        [REST, Spread.of(times[REST]).milliseconds, *to_each],
        [f"{ALONE}, before and after standalone", Spread.of(around).milliseconds, "", ""],
        [
            f"{STANDALONE}, from one answer of a run to the next",
            Spread.of(intervals).milliseconds,
            "",
            Spread.of(more).milliseconds,
        ],
    ]
    return [
        f"A warm request, milliseconds, {rounds} rounds over {processes} processes of each, a new PNG of 512 x 512 in "
        "each round. Target: at most 5 ms added.",
        "",
        *table(["", "time", "added to the call in its process", "added to the call alone"], rows),
    ]


def _rounds(repository: Path, folder: Path, pictures: Sequence[Path]) -> dict[str, list[float]]:
    """Rounds with a service and an engine alone that are started for them. The same encode takes a little longer in one
    process than in the next, for as long as it lives: so the service's process makes bare calls, too. The last picture
    is for a round that does not count."""
    program = in_service(DEMO_VAE, MEGAPIXELS)
    with _service(repository, folder, program) as (client, process), _bare_engine(repository, folder) as alone:
        bare = calls_in(process)
        arms = {
            IN_SERVICE: _second(lambda number: bare(pictures[number])),
            REST: _second(lambda number: _post(client, pictures[number], f"doors-{time.time_ns()}")),
            ALONE: _second(lambda number: alone(pictures[number])),
        }
        return interleave(arms, len(pictures) - 1, warm_up=True)


def _second(arm: Callable[[int], float]) -> Callable[[int], float]:
    """The arm's second call of two: the first finds the processor's caches full of the data of the arm before it."""

    def measure(number: int) -> float:
        arm(number)
        return arm(number)

    return measure


def _bare_engine(repository: Path, folder: Path) -> AbstractContextManager[Callable[[Path], float]]:
    return bare_engine(repository, folder / "models", DEMO_VAE, MEGAPIXELS)


def _messages(comfyui: Path, folder: Path, client: HTTPConnection, most: int, seconds: float) -> list[str]:
    """Against services that load the model again for each message."""
    picture = material.write_soft_picture(folder / "input" / "a.png", 7, (512, 512))
    request = {"vae": DEMO_VAE, "image": picture.name, "upscale_method": "lanczos", "megapixels": MEGAPIXELS}
    request["output"] = str(folder / "message.safetensors")

    def new_process(number: int) -> float:
        begin = time.perf_counter()
        with HostedProcess("one_message.py", comfyui, folder) as process:
            process.call(**request)
        return time.perf_counter() - begin

    with HostedProcess("one_message.py", comfyui, folder) as warm:
        arms = {
            NEW_PROCESS: new_process,
            NEW_VAE: lambda number: float(warm.call(**request)["seconds"]),
            f"{REST}, warm": lambda number: _post(client, picture, f"messages-{number}"),
        }
        for name in (NEW_VAE, f"{REST}, warm"):
            arms[name](-1)
        times = _fitting(arms, most, seconds)
    rows = [
        [name, Spread.of(taken).milliseconds, ratio(times, name, f"{REST}, warm").ratio]
        for name, taken in times.items()
    ]
    return [
        f"One message, milliseconds, {len(times[NEW_VAE])} rounds.",
        "",
        *table(["", "time", f"of {REST}'s"], rows),
    ]


def _memory(
    folder: Path, client: HTTPConnection, process: subprocess.Popen[bytes], first: int, most: int, seconds: float
) -> list[str]:
    """What the service's process holds after the first encodes and at the end."""
    picture = material.write_soft_picture(folder / "memory" / "a.png", 8, (256, 256))
    held: list[float] = []
    watched = psutil.Process(process.pid)
    begin = time.monotonic()
    while len(held) < most and (len(held) <= first or time.monotonic() - begin < seconds):
        _post(client, picture, f"memory-{len(held)}", megapixels=0.01)
        held.append(watched.memory_info().rss / 1e6)
    early, late, most_held = held[first - 1], held[-1], max(held[first - 1 :])
    return [
        f"Memory of the REST process over {len(held):,} encodes at 0.01 megapixels: {early:.0f} MB after {first}, "
        f"{late:.0f} MB at the end: {late / early:.3f}x (at most {most_held:.0f} MB between). Target: at most 1.05x.",
    ]


def _folder(repository: Path, folder: Path, count: int, most: int, seconds: float) -> list[str]:
    """A folder through the command line against the loop that one would write, on the same VAE."""
    place = folder / "photos"
    pictures = [
        material.write_soft_picture(place / f"{number:03}.{('png', 'jpg')[number % 2]}", 100 + number, (1600, 1200))
        for number in range(count)
    ]
    loop = _PlainLoop(folder)

    def plain(number: int) -> float:
        begin = time.perf_counter()
        for path in pictures:
            loop.encode(path)
        return time.perf_counter() - begin

    loop.encode(pictures[0])
    arms = {STANDALONE: lambda number: _run_standalone(repository, folder, place).folder_seconds, LOOP: plain}
    times = _fitting(arms, most, seconds)
    rows = [[name, Spread.of(taken).seconds] for name, taken in times.items()]
    rows.append([f"{STANDALONE} of the loop", ratio(times, STANDALONE, LOOP).ratio])
    return [
        f"A folder of {len(pictures)} pictures of 1600 x 1200 (JPEG and PNG), seconds, {len(times[LOOP])} rounds, "
        "after the first picture. Target: at most 1.02x.",
        "",
        *table(["", "time"], rows),
    ]


class _PlainLoop:
    """Open, resize, ``vae.encode``, save: what a script for this does, without checks, checksums or syncs."""

    def __init__(self, folder: Path) -> None:
        self._vae = load_vae(find_vae(folder / "models", DEMO_VAE), machine.DEVICE, optimize=True)
        self._folder = folder / "loop"
        self._folder.mkdir()

    def encode(self, path: Path) -> None:
        with Image.open(io.BytesIO(path.read_bytes())) as opened:
            image = opened.convert("RGB")
        image = image.resize(scaled_size(*image.size, MEGAPIXELS), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 255).movedim(-1, 0)[None]
        samples = self._vae.encode(pixels, lambda part: None)
        save_file({"latent_tensor": samples}, self._folder / f"{path.name}.safetensors")
