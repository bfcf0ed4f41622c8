"""The whole job, by every door: a folder of photographs becomes latent files, through one ComfyUI server.

Open, check, scale, encode, save and answer; the time of a picture is that of the folder divided by its pictures. The
first row is what a user of ComfyUI has without us: LoadImage, ImageScaleToTotalPixels, VAEEncode, SaveLatent.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from kafka.broker import Broker
from kafka.broker_jars import BrokerUnavailable
from kafka.topics import Topics, create_topics
from kafka.workers import WorkerProcess

from benchmarks import commands, machine, material, prompts
from benchmarks.material import DEMO_VAE
from benchmarks.timing import Spread, interleave, ratio, table
from latent_encoder.images import scaled_size
from latent_encoder.service.engines.comfyui.client import ComfyUIClient
from latent_encoder.service.engines.comfyui.server import ComfyUIServer

MEGAPIXELS = 0.25
PICTURES, ROUNDS = 32, 2
AT_ONCE = 3
"""Requests that wait at ComfyUI's door and at the service's at a time."""

STOCK = "ComfyUI's own nodes, a prompt each"

Door = Callable[[float], float]
"""Takes the whole folder through, at these megapixels; returns the seconds."""


def measure(repository: Path, comfyui: Path, folder: Path, *, quick: bool) -> list[str]:
    """Run it; returns the report's lines."""
    material.base_directory(folder, repository)
    material.add_demo_vae(folder, repository)
    sizes = material.write_photographs(folder / "photos", 4 if quick else PICTURES)
    shutil.copytree(folder / "photos", folder / "input", dirs_exist_ok=True)
    recipes = prompts.recipes(MEGAPIXELS)
    with ExitStack() as stack:
        server = stack.enter_context(ComfyUIServer(comfyui, base_directory=folder, arguments=machine.COMFYUI_ARGUMENTS))
        client = stack.enter_context(ComfyUIClient(server.url))
        doors, missing = _open_doors(stack, _Photographs(repository, folder, list(sizes), client))
        arms = {name: _with_new_recipe(door, recipes) for name, door in doors.items()}
        times = interleave(arms, 1 if quick else ROUNDS, warm_up=True)
    _check_sizes(sizes.values(), next(recipes))
    rows = [
        [name, Spread.of([s / len(sizes) for s in seconds]).milliseconds, ratio(times, name, STOCK).ratio]
        for name, seconds in times.items()
    ]
    return [
        f"A folder of {len(sizes)} photographs, the demo VAE at {MEGAPIXELS} megapixels, {len(times[STOCK])} rounds; "
        'milliseconds a picture. "Faster" is the encoder of OptimizeVAEForEncoding.',
        "",
        *table(["", "time", "of ComfyUI's own nodes"], rows),
        *missing,
    ]


def _open_doors(stack: ExitStack, photographs: _Photographs) -> tuple[dict[str, Door], list[str]]:
    """All that can be measured, by the rows' names, and lines about what cannot."""
    doors: dict[str, Door] = {
        STOCK: photographs.stock,
        "the node, a prompt each, without OptimizeVAEForEncoding": photographs.node,
        "the node, a prompt each, faster": photographs.faster_node,
        "the node, all pictures in one prompt, faster": photographs.one_prompt,
        "standalone, faster": photographs.standalone,
        "REST, faster": stack.enter_context(photographs.rest()),
    }
    try:
        doors["Kafka, faster"] = stack.enter_context(photographs.kafka())
    except BrokerUnavailable as reason:
        return doors, ["", f"Kafka was not measured: {reason}"]
    return doors, []


def _with_new_recipe(door: Door, recipes: Iterator[float]) -> Callable[[int], float]:
    return lambda number: door(next(recipes))


def _check_sizes(sizes: Iterable[tuple[int, int]], last: float) -> None:
    """Raises RuntimeError where the last recipe gives a picture another size than the first: it had another encode."""
    for size in sizes:
        if scaled_size(*size, last) != scaled_size(*size, MEGAPIXELS):
            raise RuntimeError(f"{size} becomes another size at {last} megapixels")


@dataclass
class _Photographs:
    """A folder, and the doors that it goes through."""

    repository: Path
    folder: Path
    names: list[str]
    client: ComfyUIClient

    def stock(self, megapixels: float) -> float:
        return self._run([prompts.stock(picture=name, vae=DEMO_VAE, megapixels=megapixels) for name in self.names])

    def node(self, megapixels: float, *, optimize: bool = False) -> float:
        recipe: dict[str, Any] = {"vae": DEMO_VAE, "megapixels": megapixels, "optimize": optimize}
        return self._run([prompts.ours(pictures=[name], **recipe) for name in self.names])

    def faster_node(self, megapixels: float) -> float:
        return self.node(megapixels, optimize=True)

    def one_prompt(self, megapixels: float) -> float:
        return self._run([prompts.ours(pictures=self.names, vae=DEMO_VAE, megapixels=megapixels, optimize=True)])

    def standalone(self, megapixels: float) -> float:
        output = str(self.folder / f"standalone-{megapixels}")
        return self._command(["--mode", "standalone"], self._settings(megapixels) | {"OUTPUT_DIR": output})

    @contextmanager
    def rest(self) -> Iterator[Door]:
        """A service, and what sends it the folder."""
        with (
            commands.rest(self.repository, self.folder, self._settings()) as (url, _),
            httpx.Client(base_url=url, timeout=300) as client,
        ):

            def encode(request: dict[str, Any]) -> None:
                answer = client.post("/v1/encode", json=request).json()
                if answer["status"] != "success":
                    raise RuntimeError(f"the service answered {answer}")

            def send(megapixels: float) -> float:
                paths = [str(self.folder / "photos" / name) for name in self.names]
                begin = time.perf_counter()
                with ThreadPoolExecutor(AT_ONCE) as pool:
                    list(pool.map(encode, [{"image_path": path, "megapixels": megapixels} for path in paths]))
                return time.perf_counter() - begin

            yield send

    @contextmanager
    def kafka(self) -> Iterator[Door]:
        """A broker and a worker, and what sends them the folder and waits."""
        with Broker.start(self.folder / "broker") as broker:
            topics = Topics.fresh()
            create_topics(broker.bootstrap, *vars(topics).values(), partitions=1)
            names = {
                "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap,
                "KAFKA_REQUEST_TOPIC": topics.request,
                "KAFKA_RESPONSE_TOPIC": topics.response,
                "KAFKA_DLQ_TOPIC": topics.dlq,
            }

            def send(megapixels: float) -> float:
                return self._command(["send", "--wait"], self._settings(megapixels) | names)

            settings = self._settings() | {"OMP_NUM_THREADS": ""}
            with WorkerProcess(broker.bootstrap, topics, self.folder / "worker", **settings) as worker:
                worker.wait_ready()
                yield send

    def _settings(self, megapixels: float = MEGAPIXELS) -> dict[str, str]:
        return {
            "LATENT_ENCODER_ENGINE": "comfyui",
            "COMFYUI_URL": self.client.url,
            "VAE_MODEL_NAME": DEMO_VAE,
            "MEGAPIXELS": str(megapixels),
            "LATENT_ENCODER_INPUT_ROOTS": str(self.folder),
            "LATENT_ENCODER_OUTPUT_ROOTS": str(self.folder),
        }

    def _run(self, many: list[dict[str, Any]]) -> float:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            ran = list(pool.map(lambda prompt: prompts.run(self.client, prompt), many))
        return max(one.ended for one in ran) - min(one.begun for one in ran)

    def _command(self, words: list[str], settings: Mapping[str, str]) -> float:
        words = [*words, "--image-path", str(self.folder / "photos")]
        return commands.run(self.repository, self.folder, *words, settings=settings).folder_seconds
