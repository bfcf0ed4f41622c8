"""Three workers under random kills, freezes and broker restarts: each message has one outcome all the same.

The seed stands in the output; ``SOAK_SEED`` repeats it.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from kafka.broker import Broker
from kafka.groups import Group
from kafka.outcomes import requests
from kafka.worker_starter import Starter
from kafka.workers import WorkerProcess

PAUSE = (5.0, 8.0)
FROZEN_SECONDS = (1.0, 6.0)  # shorter and longer than a session
DEAD_SECONDS = (0.0, 3.0)
BROKER_EVERY = 40.0


class Chaos:
    """Does things to the workers and the broker, and starts again what has died, as an orchestrator does."""

    def __init__(self, group: Group, broker: Broker, chance: random.Random) -> None:
        self._group, self._broker, self._chance = group, broker, chance
        self._due: list[tuple[float, WorkerProcess, str]] = []
        self._broker_at = time.monotonic() + BROKER_EVERY / 2
        self._next = time.monotonic() + PAUSE[0]
        self.done: Counter[str] = Counter()

    def step(self) -> None:
        """What is due now."""
        now = time.monotonic()
        for entry in [entry for entry in self._due if entry[0] <= now]:
            self._due.remove(entry)
            _, worker, what = entry
            if what == "resume":
                worker.signal(signal.SIGCONT)
        for worker in self._group.workers:
            if not worker.is_running and not any(entry[1] is worker for entry in self._due):
                self.done[f"ended with {worker.exit_code}"] += 1
                worker.start()
        if now >= self._broker_at:
            self._broker_at = now + BROKER_EVERY
            self._broker.restart(orderly=self._chance.random() < 0.3)
            self.done["broker restarted"] += 1
        elif now >= self._next:
            self._next = now + self._chance.uniform(*PAUSE)
            self._hurt(now)

    def end(self) -> None:
        """Let everything live."""
        for worker in self._group.workers:
            worker.signal(signal.SIGCONT)
            if not worker.is_running:
                worker.start()

    def _hurt(self, now: float) -> None:
        worker = self._chance.choice(self._group.workers)
        if not worker.is_running or any(entry[1] is worker for entry in self._due):
            return
        if self._chance.random() < 0.3:
            worker.signal(signal.SIGSTOP)
            self._due.append((now + self._chance.uniform(*FROZEN_SECONDS), worker, "resume"))
            self.done["frozen"] += 1
        else:
            worker.signal(signal.SIGKILL)
            self._due.append((now + self._chance.uniform(*DEAD_SECONDS), worker, "start"))
            self.done["killed"] += 1


def soak(broker: Broker, starter: Starter, folder: Path, *, count: int, seconds: float) -> str:
    """Send ``count`` requests over ``seconds`` with chaos; what was done and came out, in words."""
    seed = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"seed {seed}")
    chance = random.Random(seed)
    with Group(broker.bootstrap, folder, starter, partitions=6) as group:
        for name in ("one", "two", "three"):
            group.worker(name)
        for worker in group.workers:
            worker.wait_ready()
        chaos = Chaos(group, broker, chance)
        start = time.monotonic()
        wanted: Counter[str] = Counter()
        for number in range(count):
            _send_one(group, number, chance, wanted)
            chaos.step()
            while time.monotonic() < start + seconds * number / count:
                time.sleep(0.05)
                chaos.step()
        chaos.end()
        outcome = group.finish(180)
        assert outcome.codes() == wanted
        ends = {what for what in chaos.done if what.startswith("ended")}
        assert ends <= {"ended with -9", "ended with 3"}  # killed by us, or in want of a new start: nothing crashes
        took = time.monotonic() - start
        done = ", ".join(f"{times} x {what}" for what, times in sorted(chaos.done.items()))
        answers = sum(wanted.values())
        for worker in group.workers:
            assert worker.terminate() == 0
    return (
        f"{len(group.sent)} messages in {took:.0f} s, 3 workers; {done}: {answers} answers, each once,"
        f" {len(outcome.dead)} dead letters"
    )


def _send_one(group: Group, number: int, chance: random.Random, wanted: Counter[str]) -> None:
    """Mostly a good request; now and then one that is broken, names no picture, comes twice, or tells no id."""
    kind, (record,) = chance.random(), requests([f"request-{number}"], group.picture)
    if kind < 0.01:
        group.send([{"value": b"no id"}])
    elif kind < 0.02:
        group.send([record | {"value": b"{"}])
        wanted["INVALID_REQUEST"] += 1
    elif kind < 0.03:
        group.send(requests([f"request-{number}"], f"{group.picture}.none"))
        wanted["IMAGE_NOT_FOUND"] += 1
    elif kind < 0.05:
        group.send([record, record])
        wanted["success"] += 2
    else:
        group.send([record])
        wanted["success"] += 1


@pytest.mark.timeout(400)
def test_a_minute_of_chaos(own_broker: Broker, starter: Starter, tmp_path: Path) -> None:
    print(soak(own_broker, starter, tmp_path, count=200, seconds=60))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_ten_minutes_of_chaos(own_broker: Broker, starter: Starter, tmp_path: Path) -> None:
    print(soak(own_broker, starter, tmp_path, count=2000, seconds=600))
