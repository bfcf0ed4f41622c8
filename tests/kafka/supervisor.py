"""What an orchestrator does for a worker, and sees of it: starts it again when it ends, asks whether it is ready."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
from confluent_kafka import KafkaException
from kafka.groups import Group
from kafka.outcomes import Outcome, wait_answered
from kafka.workers import WorkerProcess

LOOK_SECONDS = 0.1


class Supervisor:
    """Looks after one worker for the time of a ``with``; meanwhile nobody else asks whether the worker runs.

    Attributes:
        exit_codes: of the lives that have ended.
        seen: the readiness answers, in order: "ready", an error's code, or "" where nobody answered.
        reasons: the error messages of those answers, in order, each once.
    """

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker, self._ended = worker, threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="supervisor", daemon=True)
        self.exit_codes: list[int] = []
        self.seen: list[str] = []
        self.reasons: list[str] = []

    def wait_for(self, state: str, timeout: float = 30.0) -> None:
        """Wait until the newest readiness answer is this one."""
        wait_until(lambda: self.seen[-1:] == [state], timeout, lambda: f"not {state}: {self._told()}")

    def wait_for_next_answer(self, timeout: float = 30.0) -> None:
        """Wait until the worker has just published one more answer."""
        before = self._worker.log().count("Answered")
        wait_until(lambda: self._worker.log().count("Answered") > before, timeout, self._told)

    def _look_after(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            if not self._worker.is_running:
                self.exit_codes.append(self._worker.exit_code or 0)
                self._worker.start()
            if is_stuck(self._worker):
                self._worker.kill()
                continue
            state, reason = readiness(self._worker)
            self.seen.append(state)
            if reason and reason not in self.reasons:
                self.reasons.append(reason)

    def _told(self) -> str:
        return f"{self.exit_codes} {self.seen[-5:]} {self.reasons} {self._worker.log()[-3000:]}"

    def __enter__(self) -> Supervisor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def readiness(worker: WorkerProcess) -> tuple[str, str]:
    """What the worker says of itself: "ready" or an error's code ("" for no answer), and the error's message."""
    try:
        answer = worker.health("/health/ready")
    except (httpx.HTTPError, LookupError):
        return "", ""
    if answer.status_code == 200:
        return "ready", ""
    body: dict[str, Any] = answer.json()
    return body["error_code"], body["error_message"]


def is_stuck(worker: WorkerProcess) -> bool:
    """Whether it says that it lives no more."""
    try:
        return worker.health("/health/live").status_code != 200
    except (httpx.HTTPError, LookupError):
        return False


def wait_until(condition: Callable[[], bool], timeout: float, otherwise: Callable[[], str]) -> None:
    """Wait until something holds; TimeoutError with the text of ``otherwise``."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise())
        time.sleep(0.05)


def finish(group: Group, timeout: float = 120.0) -> Outcome:
    """``group.finish``, where the brokers may still be on their way back."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            wait_answered(group.bootstrap, group.topics, group.name, deadline - time.monotonic())
            return group.finish()
        except (KafkaException, TimeoutError):  # such as: Coordinator load in progress
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
