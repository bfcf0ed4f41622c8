"""A group of workers on topics of its own, for one test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import Message
from kafka.outcomes import Outcome, check_outcome, requests, send, wait_answered
from kafka.topics import PARTITIONS, Topics, create_topics
from kafka.worker_starter import Starter
from kafka.workers import WorkerProcess, make_picture


class Group:
    """Topics, a picture, workers, and what was sent. A context manager: its workers are killed at the end.

    Args:
        folder: of its own.
        starter: forks the workers; None starts them as users do.
        options: settings of every worker, by environment names.
    """

    def __init__(
        self, bootstrap: str, folder: Path, starter: Starter | None, *, partitions: int = PARTITIONS, **options: str
    ) -> None:
        self.bootstrap, self.folder, self._starter, self._options = bootstrap, folder, starter, options
        self.topics = Topics.fresh()
        self.name = f"{self.topics.request}-group"
        create_topics(bootstrap, *vars(self.topics).values(), partitions=partitions)
        self.picture = make_picture(folder, "picture.png")
        self.workers: list[WorkerProcess] = []
        self.sent: list[Message] = []

    def worker(
        self,
        name: str = "one",
        *,
        harness: dict[str, Any] | None = None,
        bootstrap: str = "",
        log: str = "",
        **settings: str,
    ) -> WorkerProcess:
        """A worker of this group, started.

        Args:
            name: its WORKER_ID.
            bootstrap: another way to the broker.
            log: another file name of its log.
        """
        worker = WorkerProcess(
            bootstrap or self.bootstrap,
            self.topics,
            self.folder,
            name=name,
            harness=harness,
            starter=self._starter,
            **self._options | settings,
        )
        worker.log_path = self.folder / (log or f"{name}.log")
        self.workers.append(worker)
        return worker.start()

    def ask(self, ids: Sequence[str], picture: str = "", **fields: Any) -> None:
        """Send a request for each id."""
        self.send(requests(ids, picture or self.picture, **fields))

    def send(self, records: list[dict[str, Any]]) -> None:
        """Send records."""
        self.sent += send(self.bootstrap, self.topics, records)

    def finish(self, timeout: float = 120.0, *, repeats: bool = False) -> Outcome:
        """Wait until everything is answered, and hold it against every promise (see ``check_outcome``)."""
        wait_answered(self.bootstrap, self.topics, self.name, timeout)
        return check_outcome(self.bootstrap, self.topics, self.folder, self.sent, repeats=repeats)

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()


def ids(prefix: str, count: int) -> list[str]:
    """``prefix-0``, ``prefix-1``, ..."""
    return [f"{prefix}-{number}" for number in range(count)]
