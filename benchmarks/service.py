"""The service's doors against the bare engine, a plain loop, a service that loads its model again, and their memory."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil

from benchmarks.hosted import HostedProcess
from benchmarks.timing import Spread, interleave, ratio, table

VAE = "demo_vae.safetensors"
MEGAPIXELS = 0.05


@dataclass(frozen=True)
class Size:
    """How much is measured: so many rounds or encodes, as far as they fit into that many seconds."""

    doors: tuple[int, float]
    messages: tuple[int, float]
    encodes: tuple[int, float]
    folder: tuple[int, float]
    first: int  # the encodes after which the memory is looked at first
    pictures: int  # in the folder


FULL = Size(doors=(15, 60), messages=(4, 120), encodes=(1000, 180), folder=(3, 180), first=100, pictures=64)
QUICK = Size(doors=(4, 5), messages=(1, 0), encodes=(30, 10), folder=(1, 0), first=20, pictures=8)


def measure(repository: Path, comfyui: Path, folder: Path, *, quick: bool) -> list[str]:
    """Run it; returns the report's lines."""
    (folder / "models" / "vae").mkdir(parents=True)
    shutil.copy(repository / "assets" / VAE, folder / "models" / "vae")
    size = QUICK if quick else FULL
    if quick:  # on a busy machine several threads of one encode wait for each other most of the time
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    lines = [f"The engine `embedded` with the demo VAE at {MEGAPIXELS} megapixels, on the CPU."]
    with rest(repository, folder) as (url, process):
        lines += ["", *_doors(repository, folder, url, *size.doors)]
        lines += ["", *_messages(comfyui, folder, url, *size.messages)]
        lines += ["", *_memory(folder, url, process, size.first, *size.encodes)]
    return [*lines, "", *_folder(repository, folder, size.pictures, *size.folder)]


def _fitting(arms: Mapping[str, Callable[[int], float]], most: int, seconds: float) -> dict[str, list[float]]:
    """``interleave`` for at most so many rounds, as far as they fit into the time; one in any case."""
    begin = time.monotonic()
    times = interleave(arms, 1)
    more = min(most, int(seconds / (time.monotonic() - begin))) - 1
    for name, further in interleave({name: _later(arm) for name, arm in arms.items()}, max(0, more)).items():
        times[name] += further
    return times


def _later(arm: Callable[[int], float]) -> Callable[[int], float]:
    return lambda number: arm(number + 1)


def _picture(folder: Path, name: str, seed: int, width: int, height: int) -> Path:
    """A picture of soft colours and some noise, which compresses as a photograph does."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    pixels = np.asarray(coarse).astype(np.int16) + random.integers(-6, 7, (height, width, 3))
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def _environment(folder: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "LATENT_ENCODER_ENGINE": "embedded",
        "MODEL_DIR": str(folder / "models"),
        "VAE_MODEL_NAME": VAE,
        "MEGAPIXELS": str(MEGAPIXELS),
        "LATENT_ENCODER_INPUT_ROOTS": str(folder),
        "LATENT_ENCODER_STATE_DIR": str(folder / "state"),
        **more,
    }


@contextmanager
def rest(repository: Path, folder: Path, **settings: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A service process with the HTTP door: its address, and the process."""
    log = folder / "rest.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, str(repository / "main.py"), "--mode", "rest"],
            cwd=folder,
            env=_environment(folder, REST_PORT="0", OUTPUT_DIR=str(folder / "rest"), **settings),
            stdout=file,
            stderr=file,
        )
    try:
        while not (found := re.search(r"Listening on (http://\S+)", log.read_text())):
            if process.poll() is not None:
                raise RuntimeError(f"the service ended:\n{log.read_text()}")
            time.sleep(0.1)
        while httpx.get(f"{found[1]}/health/ready").status_code != 200:
            time.sleep(0.1)
        yield found[1], process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _post(client: httpx.Client, picture: Path, request_id: str, **fields: Any) -> None:
    answer = client.post("/v1/encode", json={"image_path": str(picture), "request_id": request_id, **fields}).json()
    if answer["status"] != "success" or answer["metadata"]["reused"]:
        raise RuntimeError(f"the service answered {answer}")


def _doors(repository: Path, folder: Path, url: str, most: int, seconds: float) -> list[str]:
    """One picture a round, new each time, by the bare engine, over HTTP, and as one of a run on the command line."""
    from latent_encoder.images import check_image
    from latent_encoder.service.engines.base import Call, EncodeJob, Picture
    from latent_encoder.service.engines.embedded import EmbeddedEngine

    engine = EmbeddedEngine(folder / "models")
    engine.start()

    def bare(number: int) -> float:
        data = pictures[number].read_bytes()
        picture = Picture(data, "a.png", "0" * 64, check_image(data))
        begin = time.perf_counter()
        engine.encode(EncodeJob(picture, None, VAE, "lanczos", MEGAPIXELS, 1, "safetensors"), Call())
        return time.perf_counter() - begin

    def http(number: int) -> float:
        begin = time.perf_counter()
        _post(client, pictures[number], f"doors-{number}")
        return time.perf_counter() - begin

    def command_line() -> list[float]:
        """The seconds between answers of a run, the first ones left out: the VAE is loaded then."""
        run = subprocess.Popen(
            [sys.executable, str(repository / "main.py"), "--mode", "standalone", "--image-path", f"{folder}/doors"],
            cwd=folder,
            env=_environment(folder, OUTPUT_DIR=str(folder / f"standalone-{time.monotonic_ns()}")),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert run.stdout
        moments = []
        for line in run.stdout:
            assert json.loads(line)["status"] == "success", line
            moments.append(time.perf_counter())
        run.wait()
        return [later - earlier for earlier, later in pairwise(moments[3:])]

    pictures = {number: _picture(folder, f"doors/{number}.png", number + 1, 512, 512) for number in range(-1, most)}
    with httpx.Client(base_url=url, timeout=120) as client:
        arms = {"bare engine call": bare, "REST": http}
        for arm in arms.values():
            arm(-1)
        times = _fitting(arms, most, seconds)
    rounds = len(times["REST"])
    before = [bare(number) for number in range(rounds)]
    intervals = command_line()
    base = median(before + [bare(number) for number in range(rounds)])
    engine.close()
    added = [ours - bare for ours, bare in zip(times["REST"], times["bare engine call"], strict=True)]
    rows = [[name, Spread.of(seconds).milliseconds, ""] for name, seconds in times.items()]
    rows[1][2] = Spread.of(added).milliseconds
    run = Spread.of([seconds - base for seconds in intervals])
    rows.append(["bare engine call, before and after the run", f"{1e3 * base:.0f}", ""])
    rows.append(
        ["standalone, from one answer of a run to the next", Spread.of(intervals).milliseconds, run.milliseconds]
    )
    return [
        f"A warm request, milliseconds, {rounds} rounds, a new PNG of 512 x 512 each. Target: at most 5 ms added.",
        "",
        *table(["", "time", "added within a round"], rows),
    ]


def _messages(comfyui: Path, folder: Path, url: str, most: int, seconds: float) -> list[str]:
    """Against services that load the model again for each message."""
    base = folder / "messages"
    picture = _picture(base, "input/a.png", 7, 512, 512)
    (base / "models" / "vae").mkdir(parents=True)
    shutil.copy(folder / "models" / "vae" / VAE, base / "models" / "vae")
    request = {"vae": VAE, "image": "a.png", "upscale_method": "lanczos", "megapixels": MEGAPIXELS}

    def new_process(number: int) -> float:
        begin = time.perf_counter()
        with HostedProcess("one_message.py", comfyui, base) as process:
            process.call(**request, output=str(base / f"p{number}.safetensors"))
        return time.perf_counter() - begin

    def new_vae(number: int) -> float:
        return float(warm.call(**request, output=str(base / f"v{number}.safetensors"))["seconds"])

    def ours(number: int) -> float:
        begin = time.perf_counter()
        _post(client, picture, f"messages-{number}")
        return time.perf_counter() - begin

    with HostedProcess("one_message.py", comfyui, base) as warm, httpx.Client(base_url=url, timeout=120) as client:
        arms = {
            "a process for each message: ComfyUI's modules, VAE, encode, save": new_process,
            "ComfyUI's modules loaded, VAE for each message": new_vae,
            "REST, warm": ours,
        }
        for arm in (new_vae, ours):
            arm(-1)
        times = _fitting(arms, most, seconds)
    rounds = len(times["REST, warm"])
    rows = [
        [name, Spread.of(seconds).milliseconds, ratio(times, name, "REST, warm").ratio]
        for name, seconds in times.items()
    ]
    return [f"One message, milliseconds, {rounds} rounds.", "", *table(["", "time", "of REST's"], rows)]


def _memory(
    folder: Path, url: str, process: subprocess.Popen[bytes], first: int, most: int, seconds: float
) -> list[str]:
    """What the service's process holds after the first encodes and at the end."""
    picture = _picture(folder, "memory/a.png", 8, 256, 256)
    held, watched = [], psutil.Process(process.pid)
    with httpx.Client(base_url=url, timeout=120) as client:
        begin = time.monotonic()
        while len(held) < most and (len(held) <= first or time.monotonic() - begin < seconds):
            number = len(held)
            _post(client, picture, f"memory-{number}", megapixels=0.01)
            held.append(watched.memory_info().rss / 1e6)
    early, late, most_held = held[first - 1], held[-1], max(held[first - 1 :])
    return [
        f"Memory of the REST process over {len(held):,} encodes at 0.01 megapixels: {early:.0f} MB after {first}, "
        f"{late:.0f} MB at the end: {late / early:.3f}x (at most {most_held:.0f} MB between). Target: at most 1.05x.",
    ]


def _folder(repository: Path, folder: Path, count: int, most: int, seconds: float) -> list[str]:
    """A folder through the command line against the loop that one would write, on the same VAE."""
    pictures = []
    for number in range(count):
        suffix = "jpg" if number % 2 else "png"
        pictures.append(_picture(folder, f"photos/{number:03}.{suffix}", 100 + number, 1600, 1200))
    loop = _PlainLoop(folder)

    def standalone(number: int) -> float:
        run = subprocess.Popen(
            [
                sys.executable,
                str(repository / "main.py"),
                "--mode",
                "standalone",
                "--image-path",
                str(folder / "photos"),
            ],
            cwd=folder,
            env=_environment(folder, OUTPUT_DIR=str(folder / f"folder-{number}")),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert run.stdout
        times = []
        for line in run.stdout:
            assert json.loads(line)["status"] == "success", line
            times.append(time.perf_counter())
        run.wait()
        return (times[-1] - times[0]) * len(pictures) / (len(pictures) - 1)  # starting is not part of it

    def plain(number: int) -> float:
        begin = time.perf_counter()
        for path in pictures:
            loop.encode(path, folder / f"loop-{number}" / f"{path.name}.safetensors")
        return time.perf_counter() - begin

    loop.encode(pictures[0], folder / "loop-warm" / "a.safetensors")
    times = _fitting({"standalone": standalone, "plain loop": plain}, most, seconds)
    rounds = len(times["plain loop"])
    rows = [[name, f"{median(seconds):.1f} s"] for name, seconds in times.items()]
    rows.append(["standalone of the loop", ratio(times, "standalone", "plain loop").ratio])
    return [
        f"A folder of {len(pictures)} pictures of 1600 x 1200 (JPEG and PNG), {rounds} rounds, after the first. The "
        "loop opens, resizes, encodes and saves, without checks, checksums or syncs. Target: at most 1.02x.",
        "",
        *table(["", "time"], rows),
    ]


class _PlainLoop:
    """Open, resize, ``vae.encode``, save: what a script for this does."""

    def __init__(self, folder: Path) -> None:
        import torch

        from latent_encoder.service.engines.vae_families import load_vae
        from latent_encoder.service.engines.vae_files import find_vae

        self._vae = load_vae(find_vae(folder / "models", VAE), torch.device("cpu"), optimize=True)

    def encode(self, path: Path, target: Path) -> None:
        import numpy as np
        import safetensors.torch
        import torch
        from PIL import Image

        from latent_encoder.images import scaled_size

        with Image.open(io.BytesIO(path.read_bytes())) as opened:
            image = opened.convert("RGB")
        image = image.resize(scaled_size(*image.size, MEGAPIXELS), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 255).movedim(-1, 0)[None]
        target.parent.mkdir(exist_ok=True)
        samples = self._vae.encode(pixels, lambda part: None)
        safetensors.torch.save_file({"latent_tensor": samples.contiguous()}, target)
