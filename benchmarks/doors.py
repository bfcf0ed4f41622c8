"""The whole job, by every door: a folder of photographs becomes latent files, through one ComfyUI server.

Open, check, scale, encode, save and answer; the time of a picture is that of the folder divided by its pictures. The
first row is what a user of ComfyUI has without us: LoadImage, ImageScaleToTotalPixels, VAEEncode, SaveLatent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from kafka.broker import Broker
from kafka.broker_jars import BrokerUnavailable
from kafka.topics import Topics, create_topics
from kafka.workers import WorkerProcess

from benchmarks.encode import node
from benchmarks.service import rest
from benchmarks.timing import Spread, interleave, ratio, table
from latent_encoder.service.engines.comfyui.client import ComfyUIClient
from latent_encoder.service.engines.comfyui.server import ComfyUIServer

VAE = "demo_vae.safetensors"
MEGAPIXELS = 0.25
PICTURES, ROUNDS = 32, 2
AT_ONCE = 3
"""Requests that wait at the HTTP door at a time."""

STOCK = "ComfyUI's own nodes, a prompt each"
SAVING = {"file_format": "safetensors", "if_exists": "number", "folder": "output", "preview": True}


def measure(repository: Path, comfyui: Path, folder: Path, *, quick: bool) -> list[str]:
    """Run it; returns the report's lines."""
    for name in ("custom_nodes", "models/vae", "input", "output", "photos"):
        (folder / name).mkdir(parents=True)
    (folder / "custom_nodes" / "latent-encoder").symlink_to(repository)
    (folder / "models" / "vae" / VAE).symlink_to(repository / "assets" / VAE)
    names = _photographs(folder, 4 if quick else PICTURES)
    lines = []
    with ExitStack() as stack:
        server = stack.enter_context(ComfyUIServer(comfyui, base_directory=folder, arguments=("--cpu",)))
        client = stack.enter_context(ComfyUIClient(server.url))
        settings = _settings(folder, server.url)
        arms: dict[str, Callable[[int], float]] = {
            STOCK: lambda number: _prompts(client, [_stock(name) for name in names]),
            "the node, all pictures in one prompt": lambda number: _prompts(client, [_ours(*names)]),
            "the node, a prompt each": lambda number: _prompts(client, [_ours(name) for name in names]),
            "standalone": lambda number: _standalone(repository, folder, settings, number),
        }
        url, _ = stack.enter_context(rest(repository, folder, **settings))
        arms["REST"] = lambda number: _rest(url, folder, names, number)
        try:
            arms["Kafka"] = stack.enter_context(_kafka(repository, folder, settings))
        except BrokerUnavailable as reason:
            lines += ["", f"Kafka was not measured: {reason}"]
        for arm in arms.values():
            arm(-1)
        times = interleave(arms, 1 if quick else ROUNDS)
    rows = [
        [name, Spread.of([s / len(names) for s in seconds]).milliseconds, ratio(times, name, STOCK).ratio]
        for name, seconds in times.items()
    ]
    return [
        f"A folder of {len(names)} photographs, the demo VAE at {MEGAPIXELS} megapixels, {len(times[STOCK])} rounds; "
        "milliseconds a picture.",
        "",
        *table(["", "time", "of ComfyUI's own nodes"], rows),
        *lines,
    ]


def _photographs(folder: Path, count: int) -> list[str]:
    """Crops of scikit-image's photographs of several sizes, as PNG, JPEG and WebP, in ``photos`` and in ``input``."""
    from PIL import Image
    from skimage import data

    sources = [Image.fromarray(source()) for source in (data.astronaut, data.coffee, data.chelsea)]
    names = []
    for number in range(count):
        suffix = ("png", "jpg", "webp")[number % 3]
        picture = sources[number % len(sources)].resize(
            (640 + 40 * number, 480 + 24 * number), Image.Resampling.LANCZOS
        )
        names.append(f"{number:02}.{suffix}")
        for place in ("photos", "input"):
            picture.save(folder / place / names[-1])
    return names


def _settings(folder: Path, url: str) -> dict[str, str]:
    return {
        "LATENT_ENCODER_ENGINE": "comfyui",
        "COMFYUI_URL": url,
        "VAE_MODEL_NAME": VAE,
        "MEGAPIXELS": str(MEGAPIXELS),
        "LATENT_ENCODER_INPUT_ROOTS": str(folder),
        "LATENT_ENCODER_OUTPUT_ROOTS": str(folder),
    }


def _stock(name: str) -> dict[str, Any]:
    return {
        "1": node("VAELoader", vae_name=VAE),
        "3": node("LoadImage", image=name),
        "4": node(
            "ImageScaleToTotalPixels",
            image=["3", 0],
            upscale_method="lanczos",
            megapixels=MEGAPIXELS,
            resolution_steps=1,
        ),
        "5": node("VAEEncode", pixels=["4", 0], vae=["1", 0]),
        "6": node("SaveLatent", samples=["5", 0], filename_prefix="stock"),
    }


def _ours(*names: str) -> dict[str, Any]:
    prompt = {"1": node("VAELoader", vae_name=VAE), "2": node("OptimizeVAEForEncoding", vae=["1", 0])}
    for number, name in enumerate(names):
        recipe = {"upscale_method": "lanczos", "megapixels": MEGAPIXELS, "resolution_steps": 1}
        inputs = {"image": name, "vae": ["2", 0], **recipe, "filename_prefix": "ours", **SAVING}
        prompt[f"1{number}"] = node("EncodeToLatentFile", **inputs)
    return prompt


def _prompts(client: ComfyUIClient, prompts: list[dict[str, Any]]) -> float:
    begin = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        entries = list(pool.map(client.run, prompts))
    if any(entry["status"]["status_str"] != "success" for entry in entries):
        raise RuntimeError(f"a prompt failed: {entries}")
    return time.perf_counter() - begin


def _standalone(repository: Path, folder: Path, settings: dict[str, str], number: int) -> float:
    output = {"OUTPUT_DIR": str(folder / f"standalone{number}"), "LATENT_ENCODER_STATE_DIR": str(folder / "state-s")}
    return _answers(repository, folder, ["--mode", "standalone"], {**settings, **output})


def _answers(repository: Path, folder: Path, words: list[str], settings: dict[str, str]) -> float:
    """A command that prints an answer for each picture; from the first answer to the last, for as many as there are."""
    run = subprocess.Popen(
        [sys.executable, str(repository / "main.py"), *words, "--image-path", str(folder / "photos")],
        cwd=folder,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert run.stdout
    moments = []
    for line in run.stdout:
        if json.loads(line)["status"] != "success":
            raise RuntimeError(f"it answered {line!r}")
        moments.append(time.perf_counter())
    run.wait()
    return (moments[-1] - moments[0]) * len(moments) / (len(moments) - 1)


def _rest(url: str, folder: Path, names: list[str], number: int) -> float:
    with httpx.Client(base_url=url, timeout=300) as client, ThreadPoolExecutor(AT_ONCE) as pool:

        def encode(name: str) -> None:
            request = {"image_path": str(folder / "photos" / name), "request_id": f"rest{number}-{name}"}
            answer = client.post("/v1/encode", json=request).json()
            if answer["status"] != "success":
                raise RuntimeError(f"the service answered {answer}")

        begin = time.perf_counter()
        list(pool.map(encode, names))
        return time.perf_counter() - begin


@contextmanager
def _kafka(repository: Path, folder: Path, settings: dict[str, str]) -> Iterator[Callable[[int], float]]:
    """A worker, and what sends it the folder and waits."""
    with Broker.start(folder / "broker") as broker:
        topics = Topics.fresh()
        create_topics(broker.bootstrap, *vars(topics).values(), partitions=1)
        with WorkerProcess(broker.bootstrap, topics, folder / "worker", OMP_NUM_THREADS="", **settings) as worker:
            worker.wait_ready()
            names = {
                "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap,
                "KAFKA_REQUEST_TOPIC": topics.request,
                "KAFKA_RESPONSE_TOPIC": topics.response,
                "KAFKA_DLQ_TOPIC": topics.dlq,
            }

            def send(number: int) -> float:
                output = {"OUTPUT_DIR": str(folder / f"kafka{number}")}
                return _answers(repository, folder, ["send", "--wait"], {**settings, **names, **output})

            yield send
