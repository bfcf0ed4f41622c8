"""The bounded queues in front of the encoder, and the threads that empty them."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from latent_encoder.errors import LatentEncoderError

ENCODE, JOBS = "encode", "jobs"
"""The lanes: callers who wait for their answer, and jobs."""

LONGEST_RETRY_SECONDS = 60

logger = logging.getLogger(__name__)


class QueueFull(LatentEncoderError):
    """QUEUE_FULL. ``retry_after``: after how many seconds a caller who was turned away may find a place."""

    retry_after = 1


@dataclass(frozen=True, eq=False)
class Task:
    """What waits in a lane.

    Attributes:
        work: does it, hands its result on by itself, and raises nothing.
        key: two tasks of one key never run at once; None is no key.
        alone: nothing else of its lane runs beside it.
    """

    work: Callable[[], None]
    key: Hashable = None
    alone: bool = False


@dataclass
class _Lane:
    tasks: deque[Task] = field(default_factory=deque)
    running: list[Task] = field(default_factory=list)
    reserved: int = 0
    held: bool = False


class Workers:
    """Threads that take tasks from several lanes by turns, so that a long queue of jobs keeps no caller waiting.

    Args:
        lanes: their names, in the order of the first turn.
        limit: how many tasks may wait in each lane.
    """

    def __init__(self, lanes: tuple[str, ...], limit: int) -> None:
        self._lanes = {name: _Lane() for name in lanes}
        self._limit = limit
        self._guard = threading.RLock()
        self._done = threading.Condition(self._guard)  # one less waits or runs
        self._idle: list[threading.Condition] = []  # of each thread that waits; the last to come goes first
        self._threads = 0
        self._mean_seconds = 1.0
        self._refusal: str | None = None
        self._stopped = False

    def start(self, threads: int) -> None:
        """Begin to work; until then tasks wait."""
        self._threads = threads
        for number in range(threads):
            # A daemon: an engine that hangs must not keep the process from its end.
            threading.Thread(target=self._work, name=f"encode-{number}", daemon=True).start()

    def add(self, lane: str, task: Task) -> None:
        """Let a task wait; raises as ``reserve`` does."""
        with self._guard:
            self.reserve(lane)
            self.put(lane, task)

    def reserve(self, lane: str) -> None:
        """Take a place, to be used by ``put`` or given back by ``release``.

        Raises:
            LatentEncoderError: QueueFull; ENGINE_UNAVAILABLE once ``refuse`` was called.
        """
        with self._guard:
            self._check_room(lane)
            self._lanes[lane].reserved += 1

    def check_room(self, lane: str) -> None:
        """Raise as ``reserve`` does, and take nothing."""
        with self._guard:
            self._check_room(lane)

    def release(self, lane: str) -> None:
        """Give a reserved place back."""
        with self._guard:
            self._lanes[lane].reserved -= 1

    def put(self, lane: str, task: Task) -> None:
        """Let a task wait on a reserved place."""
        with self._guard:
            self._lanes[lane].reserved -= 1
            self._lanes[lane].tasks.append(task)
            self._wake(1)

    def put_back(self, lane: str, task: Task) -> None:
        """Let a task wait that was accepted before, by this process or an earlier one, whatever the limit."""
        with self._guard:
            self._lanes[lane].reserved += 1
            self.put(lane, task)

    def remove(self, lane: str, task: Task) -> bool:
        """Take a waiting task out of its lane; False where it runs already, or is done."""
        with self._guard:
            try:
                self._lanes[lane].tasks.remove(task)
            except ValueError:
                return False
            if task.alone:
                self._wake()  # it was in others' way
            self._done.notify_all()
            return True

    def hold(self, lane: str, held: bool) -> None:
        """Let the lane's tasks wait, or go on with them; after ``refuse`` they wait for good."""
        with self._guard:
            was_held = self._lanes[lane].held
            self._lanes[lane].held = held or self._refusal is not None
            if was_held and not self._lanes[lane].held:
                self._wake()

    def refuse(self, reason: str) -> None:
        """Reserve no more places."""
        with self._guard:
            self._refusal = reason

    def stop(self) -> None:
        """End each thread when its task is done; waiting tasks stay where they are."""
        with self._guard:
            self._stopped = True
            self._wake()

    def waiting(self, lane: str) -> int:
        """How many tasks wait."""
        with self._guard:
            return len(self._lanes[lane].tasks)

    @property
    def running(self) -> int:
        """How many tasks run."""
        with self._guard:
            return self._count_running()

    def wait_idle(self, seconds: float, *lanes: str) -> bool:
        """Wait until nothing runs and nothing waits in these lanes; False where that takes longer."""
        with self._guard:
            return self._done.wait_for(
                lambda: not self._count_running() and not any(self._lanes[lane].tasks for lane in lanes), seconds
            )

    def _count_running(self) -> int:
        return sum(len(lane.running) for lane in self._lanes.values())

    def _check_room(self, lane: str) -> None:
        if self._refusal:
            raise LatentEncoderError("ENGINE_UNAVAILABLE", self._refusal, "Send the request again in a while.")
        idle = max(0, self._threads - self._count_running())  # what they are about to take does not wait
        waiting = len(self._lanes[lane].tasks)
        if waiting + self._lanes[lane].reserved >= self._limit + idle:
            error = QueueFull("QUEUE_FULL", f"{self._limit} requests wait already.")
            seconds = math.ceil(self._mean_seconds * waiting / max(1, self._threads) / 2)
            error.retry_after = max(1, min(LONGEST_RETRY_SECONDS, seconds))
            raise error

    def _work(self) -> None:
        while found := self._next():
            lane, task = found
            start = time.monotonic()
            try:
                task.work()
            except Exception:
                logger.exception("A task failed")
            with self._guard:
                lane.running.remove(task)
                self._mean_seconds += (time.monotonic() - start - self._mean_seconds) / 8
                if any(self._first_of(other) for other in self._lanes.values()):
                    self._wake()  # it may have been in the way of more than one
                self._done.notify_all()

    def _wake(self, most: int | None = None) -> None:
        """Wake so many of the idle threads, or all, the last to come first: its memory is in the processor's caches."""
        for _ in self._idle[:most]:
            self._idle.pop().notify()

    def _next(self) -> tuple[_Lane, Task] | None:
        changed = threading.Condition(self._guard)
        with self._guard:
            while not self._stopped:
                for name, lane in self._lanes.items():
                    if task := self._first_of(lane):
                        self._lanes[name] = self._lanes.pop(name)  # the other lanes come first next time
                        lane.tasks.remove(task)
                        lane.running.append(task)
                        return lane, task
                self._idle.append(changed)
                changed.wait()
            return None

    def _first_of(self, lane: _Lane) -> Task | None:
        """The first task that may start beside those that run."""
        if lane.held or any(task.alone for task in lane.running):
            return None
        busy = {task.key for other in self._lanes.values() for task in other.running} - {None}
        for task in lane.tasks:
            if task.alone and lane.running:
                return None
            if task.key not in busy:
                return task
        return None
