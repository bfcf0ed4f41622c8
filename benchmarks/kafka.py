"""The Kafka worker: against its engine called directly and the usual loop, with others beside it, and under kills."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from kafka.broker import Broker
from kafka.broker_jars import BrokerUnavailable
from kafka.outcomes import requests
from kafka.worker_harness import wait_in_place_of
from kafka.workers import make_picture

from benchmarks.kafka_kills import measure_kills, measure_take_over
from benchmarks.kafka_traffic import Traffic
from benchmarks.timing import Spread, interleave, table
from latent_encoder.images import check_image
from latent_encoder.models import EncodeRequest
from latent_encoder.service import engines
from latent_encoder.service.config import Settings
from latent_encoder.service.encoder import Encoder
from latent_encoder.service.engines.base import Call, EncodeJob, Engine, Picture

PARTITIONS = 4
WARM_UP = 12
"""Requests for each partition before anything is timed: the first ones after an assignment are marked, one by one."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int
    seconds: float  # of each arm in a round
    messages: int  # sent one at a time
    take_overs: dict[int, int]  # how many, by the session timeout in milliseconds
    kills: int


FULL = Size(rounds=3, seconds=4, messages=300, take_overs={10_000: 3, 3_000: 5}, kills=20)
QUICK = Size(rounds=1, seconds=1.5, messages=50, take_overs={10_000: 1, 3_000: 1}, kills=4)


def measure(repository: Path, comfyui: Path, folder: Path, *, quick: bool) -> list[str]:
    """Run it; returns the report's lines."""
    size = QUICK if quick else FULL
    folder.mkdir(parents=True)
    try:
        broker = Broker.start(folder / "broker")
    except BrokerUnavailable as reason:
        return [f"Not measured: {reason}"]
    with broker:
        lines = ["A real Apache Kafka of one node; each encode is a wait, so that only what is around it counts."]
        for part in (_throughput, _workers, _latency):
            lines += ["", *part(broker.bootstrap, folder / part.__name__.strip("_"), size)]
        lines += ["", *measure_take_over(broker.bootstrap, folder / "take-over", size.take_overs)]
        lines += ["", *measure_kills(broker.bootstrap, folder / "kills", size.kills)]
    return lines


def _throughput(bootstrap: str, folder: Path, size: Size) -> list[str]:
    """One process of each kind, for encodes of several lengths."""
    rows = []
    for milliseconds in (10, 20, 50, 100):
        seconds = milliseconds / 1000
        with ExitStack() as stack:
            bare, direct = _direct(folder / f"direct-{milliseconds}", seconds)
            ours = stack.enter_context(_traffic(bootstrap, folder / f"ours-{milliseconds}"))
            loop = stack.enter_context(_traffic(bootstrap, folder / f"loop-{milliseconds}"))
            ours.worker("ours", seconds)
            loop.loop("loop", seconds)
            for traffic in (ours, loop):
                traffic.run(WARM_UP * PARTITIONS)
            count = int(size.seconds / seconds)
            arms = {"bare": bare, "direct": direct, "worker": ours.run, "loop": loop.run}
            times = interleave({name: _of(arm, count) for name, arm in arms.items()}, size.rounds)
        rows.append(
            [f"{milliseconds} ms"]
            + [f"{count / median(taken):.2f}" for taken in times.values()]
            + [_rate(times, "worker", other).ratio for other in ("direct", "loop")]
        )
    head = ["encode", "bare engine", "called directly", "worker", "the usual loop", "worker of direct",
            "worker of the usual loop"]  # fmt: skip
    return [
        f"Requests per second of one process, exactly once, {PARTITIONS} partitions, {size.rounds} rounds. Target: the "
        "worker at least 0.9x of its engine called directly, for 50 ms and more.",
        "",
        *table(head, rows),
    ]


def _workers(bootstrap: str, folder: Path, size: Size) -> list[str]:
    """1, 2 and 4 workers, each with a partition."""
    seconds = 0.1
    count = int(size.seconds / seconds)
    with ExitStack() as stack:
        arms = {}
        for number in (1, 2, 4):
            traffic = stack.enter_context(_traffic(bootstrap, folder / str(number), partitions=number))
            for name in range(number):
                traffic.worker(f"worker-{name}", seconds)
            arms[number] = traffic
        for number, traffic in arms.items():
            traffic.read_until(lambda: _all_work(traffic, number))  # noqa: B023
        times = interleave({str(n): _of(traffic.run, n * count) for n, traffic in arms.items()}, size.rounds)
    one = times["1"]
    rows = []
    for number in arms:
        rate = Spread.of([number * count / taken for taken in times[str(number)]])
        scale = Spread.of([number * alone / taken for alone, taken in zip(one, times[str(number)], strict=True)])
        rows.append([str(number), f"{rate.middle:.2f}", scale.ratio])
    return [
        f"Workers of one group on as many partitions, each encode {1e3 * seconds:.0f} ms, {size.rounds} rounds. "
        "Target: at least 0.9 x N of one.",
        "",
        *table(["workers", "requests per second", "of one worker"], rows),
    ]


def _all_work(traffic: Traffic, members: int) -> bool:
    """Whether each member has a partition and is past the marked messages of it."""
    if not traffic.outstanding:
        traffic.ask(members)
    return len(traffic.sources) == members and min(traffic.sources.values()) >= WARM_UP


def _latency(bootstrap: str, folder: Path, size: Size) -> list[str]:
    """One message at a time, with transactions and without, and by the usual loop that waits for the brokers' word."""
    with ExitStack() as stack:
        arms: dict[str, Traffic] = {}
        for name in ("exactly_once", "at_least_once", "the usual loop, with a flush"):
            arms[name] = stack.enter_context(_traffic(bootstrap, folder / name.partition(",")[0], partitions=1))
            if "once" in name:
                arms[name].worker("ours", 0.001, KAFKA_DELIVERY=name)
            else:
                arms[name].loop("loop", 0.001, flush=True)
        for traffic in arms.values():
            traffic.run(2 * WARM_UP)
        times = interleave({name: _of(traffic.run, 1) for name, traffic in arms.items()}, size.messages)
    rows = [[name, f"{1e3 * median(taken):.1f}", f"{1e3 * _p99(taken):.1f}"] for name, taken in times.items()]
    pairs = zip(times["exactly_once"], times["at_least_once"], strict=True)
    added = [ours - other for ours, other in pairs]
    rows.append(["added by the transaction", f"{1e3 * median(added):.1f}", f"{1e3 * _p99(added):.1f}"])
    return [
        f"From a request's sending until its answer can be read (read_committed), one at a time, milliseconds, "
        f"{size.messages} each; the encode is 1 ms of it.",
        "",
        *table(["", "median", "p99"], rows),
    ]


def _traffic(bootstrap: str, folder: Path, partitions: int = PARTITIONS) -> Traffic:
    return Traffic(bootstrap, folder, partitions=partitions)


def _of(run: Callable[[int], float], count: int) -> Callable[[int], float]:
    return lambda number: run(count)


def _rate(times: dict[str, list[float]], ours: str, other: str) -> Spread:
    """Our requests per second to the other's, each pair from one round."""
    return Spread.of([b / a for a, b in zip(times[ours], times[other], strict=True)])


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]


def _direct(folder: Path, seconds: float) -> tuple[Callable[[int], float], Callable[[int], float]]:
    """What takes so many requests and tells the seconds: the bare engine in a loop; ``encode_image_to_latent``, with as
    many threads as the engine has slots.
    """
    picture = make_picture(folder, "picture.png")
    data = Path(picture).read_bytes()
    settings = Settings(input_roots=[folder], output_dir=folder / "latents", vae_model_name="pixel_space")
    encoder = Encoder(_engine(seconds), settings)
    fresh = (f"r{number}" for number in range(1 << 30))

    def bare(count: int) -> float:
        job = EncodeJob(Picture(data, picture, "0" * 64, check_image(data)), None, "pixel_space", "lanczos", 0.01, 1,
                        "safetensors")  # fmt: skip
        begin = time.perf_counter()
        for _ in range(count):
            encoder.engine.encode(job, Call())
        return time.perf_counter() - begin

    def encode(record: dict[str, str]) -> None:
        request = EncodeRequest.model_validate_json(record["value"])
        answer = encoder.encode_image_to_latent(request)
        if answer.status != "success" or answer.metadata["reused"]:
            raise RuntimeError(f"the encoder answered {answer}")

    def direct(count: int) -> float:
        records = requests([next(fresh) for _ in range(count)], picture)
        with ThreadPoolExecutor(encoder.engine.slots) as pool:
            begin = time.perf_counter()
            list(pool.map(encode, records))
            return time.perf_counter() - begin

    return bare, direct


def _engine(seconds: float) -> Engine:
    """The engine that the workers' harness puts in place of a real one."""
    with _restored():
        wait_in_place_of(seconds)
        return engines.make_engine(Settings())


@contextmanager
def _restored() -> Iterator[None]:
    before = engines.make_engine
    try:
        yield
    finally:
        engines.make_engine = before
