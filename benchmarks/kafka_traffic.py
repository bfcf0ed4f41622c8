"""What sends requests to workers and reads their answers as they become readable, for the Kafka benchmarks."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from kafka.outcomes import requests, wait_answered
from kafka.topics import QUIET, Topics, create_topics, read_topic
from kafka.workers import WorkerProcess, make_picture

LOOP = Path(__file__).resolve().parent / "inside" / "kafka_loop.py"
ANSWER_TIMEOUT = 120.0


class Member(Protocol):
    """A process of a group."""

    name: str

    def start(self) -> Any: ...

    def kill(self) -> None: ...

    @property
    def is_running(self) -> bool: ...


class Traffic:
    """Topics of one group, its members, and everything that was asked and answered. A context manager: it kills the
    members at the end.

    Args:
        folder: of its own.
        partitions: of the request topic; requests go to them in turn.
        session_ms: the members' session timeout; None: the worker's own.

    Attributes:
        asked: the partition of each request, by id.
        answers: how often each id was answered.
        sources: how many answers each member gave, by its name.
    """

    def __init__(self, bootstrap: str, folder: Path, *, partitions: int, session_ms: int | None = 3000) -> None:
        self.bootstrap, self.folder, self._session_ms = bootstrap, folder, session_ms
        self.topics = Topics.fresh()
        create_topics(bootstrap, *vars(self.topics).values(), partitions=partitions)
        self.members: list[Member] = []
        self.asked: dict[str, int] = {}
        self.answers: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        (folder / "latents").mkdir(parents=True)
        settings = [] if session_ms is None else [f"session.timeout.ms={session_ms}\n"]
        (folder / "client.properties").write_text("".join(settings), encoding="utf-8")
        self._picture = make_picture(folder, "picture.png")
        self._turns = itertools.cycle(range(partitions))
        self._producer = Producer({**QUIET, "bootstrap.servers": bootstrap, "linger.ms": 0})
        self._reader = Consumer(
            {**QUIET, "bootstrap.servers": bootstrap, "group.id": "reader", "isolation.level": "read_committed"}
        )
        self._reader.assign([TopicPartition(self.topics.response, number, 0) for number in range(partitions)])

    def worker(self, name: str, wait: float, **settings: str) -> WorkerProcess:
        """Start one of our workers; each of its encodes is a wait of so many seconds."""
        worker = WorkerProcess(
            self.bootstrap, self.topics, self.folder, name=name, harness={"wait": wait}, **settings
        )  # fmt: skip
        self.members.append(worker)
        return worker.start()

    def loop(self, name: str, wait: float, *, flush: bool = False) -> None:
        """Start a process of the usual loop."""
        arguments = [self.topics.request, self.topics.response, str(self.folder / "latents"), str(wait)]
        arguments += [str(self._session_ms), *(["flush"] if flush else [])]
        self.members.append(LoopProcess(name, self.bootstrap, self.folder / f"{name}.log", arguments))
        self.members[-1].start()

    def ask(self, count: int) -> list[str]:
        """Send so many requests, each of a new id; the ids."""
        ids = [f"r{len(self.asked) + number}" for number in range(count)]
        for record in requests(ids, self._picture):
            partition = next(self._turns)
            self.asked[record["key"]] = partition
            self._producer.produce(self.topics.request, partition=partition, **record)
        if self._producer.flush(ANSWER_TIMEOUT):
            raise RuntimeError("requests were not delivered")
        return ids

    def read(self, seconds: float) -> list[Message]:
        """The answers that can be read by then; returns with the first ones."""
        messages = self._reader.consume(1, seconds) + self._reader.consume(500, 0)
        for message in messages:
            if message.error():
                raise KafkaException(message.error())
            self.answers[message.key().decode()] += 1
            self.sources[source(message)] += 1
        return messages

    def read_until(self, condition: Callable[[], bool], timeout: float = ANSWER_TIMEOUT) -> None:
        """Read answers until something holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(self.asked)} requests, {len(self.answers)} answered: {self._logs()}")
            self.read(0.05)

    def finish(self, ids: Iterable[str]) -> None:
        """Read until all of these are answered."""
        left = set(ids)

        def done() -> bool:
            left.difference_update([name for name in left if name in self.answers])
            return not left

        self.read_until(done)

    def run(self, count: int) -> float:
        """Send so many requests; the seconds until the last answer can be read."""
        begin = time.perf_counter()
        self.finish(self.ask(count))
        return time.perf_counter() - begin

    @property
    def outstanding(self) -> int:
        return len(self.asked) - len(self.answers)

    def settle(self) -> Counter[str]:
        """Wait until the group has committed the end; how often each id is answered."""
        wait_answered(self.bootstrap, self.topics, f"{self.topics.request}-group")
        messages = read_topic(self.bootstrap, self.topics.response)
        for message in messages:
            if json.loads(message.value())["status"] != "success":
                raise RuntimeError(f"a failure: {message.value()!r}")
        return Counter(message.key().decode() for message in messages)

    def _logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in self.folder.glob("*.log"))

    def __enter__(self) -> Traffic:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self.members:
            member.kill()
        self._reader.close()


class LoopProcess:
    """A process of the usual loop."""

    def __init__(self, name: str, bootstrap: str, log: Path, arguments: list[str]) -> None:
        self.name, self._log = name, log
        self._command = [sys.executable, str(LOOP), name, bootstrap, *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None


def source(message: Message) -> str:
    """The name of the member that gave this answer."""
    return dict(message.headers())["ce_source"].decode().rpartition("/")[2]
