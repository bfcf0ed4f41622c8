"""What ``kill -9`` does to a group of workers, and to one of the usual loop."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.kafka_traffic import Member, Traffic, source
from benchmarks.timing import Spread, table

SEED = 20
TAKE_OVER_WAIT = 0.1
KILLS_WAIT = 0.02
"""Short, so that a kill often falls between two steps of a loop and not into an encode."""

KILLS_SESSION_MS = 2000
BACKLOG = 200
PROGRESS = 10
"""The answers that each member gives between two kills at least."""

PAUSE_SECONDS = (0.1, 0.6)


def measure_take_over(bootstrap: str, folder: Path, rounds: dict[int, int]) -> list[str]:
    """The time from a kill to the first answer from the dead worker's partition, by the session timeout."""
    rows = []
    for session_ms, count in rounds.items():
        own = None if session_ms == 10_000 else session_ms
        with Traffic(bootstrap, folder / str(session_ms), partitions=2, session_ms=own) as traffic:
            for name in ("one", "two"):
                traffic.worker(name, TAKE_OVER_WAIT)
            chance = random.Random(SEED)
            times = [_take_over(traffic, number, chance) for number in range(count)]
        name = f"{session_ms / 1000:g} s{', the default' if own is None else ''}"
        rows.append([name, str(count), Spread.of(times).seconds])
    return [
        "From kill -9 of one of two workers to the first answer of the other's from its partition, seconds.",
        "",
        *table(["session timeout", "kills", "seconds"], rows),
    ]


def _take_over(traffic: Traffic, number: int, chance: random.Random) -> float:
    """Kill a worker once both are at work; the seconds until the other has answered a request of its partition."""
    _work_together(traffic)
    dead = traffic.members[number % 2]
    partitions = _partitions_of(traffic, dead)
    _fill(traffic)
    time.sleep(chance.uniform(0, TAKE_OVER_WAIT))  # at any point of an encode and its publication
    killed = time.monotonic()
    dead.kill()
    while True:
        for message in traffic.read(0.05):
            if source(message) != dead.name and traffic.asked[message.key().decode()] in partitions:
                taken = time.monotonic() - killed
                dead.start()
                return taken
        if time.monotonic() > killed + 120:
            raise TimeoutError("nobody took over")


def _partitions_of(traffic: Traffic, member: Member) -> set[int]:
    """Where this member reads."""
    found: set[int] = set()
    while len(found) == 0:
        _fill(traffic)
        found |= {traffic.asked[message.key().decode()] for message in traffic.read(0.05)
                  if source(message) == member.name}  # fmt: skip
    return found


def measure_kills(bootstrap: str, folder: Path, kills: int) -> list[str]:
    """Two processes of each kind, side by side; at each moment of one schedule the same one of each is killed."""
    with ExitStack() as stack:
        arms = {
            name: stack.enter_context(
                Traffic(bootstrap, folder / str(number), partitions=2, session_ms=KILLS_SESSION_MS)
            )
            for number, name in enumerate(("worker, exactly once", "the usual loop", "the usual loop, with a flush"))
        }
        ours, loop, flushing = arms.values()
        for name in ("one", "two"):
            ours.worker(name, KILLS_WAIT)
            loop.loop(name, KILLS_WAIT)
            flushing.loop(name, KILLS_WAIT, flush=True)
        begin = time.monotonic()
        _kill(list(arms.values()), kills)
        taken = time.monotonic() - begin
        rows = [[name, *_outcome(traffic)] for name, traffic in arms.items()]
    return [
        f"The same {kills} kills for each, in {taken:.0f} s; two processes on two partitions, one of them killed and "
        f"started again at once; encodes of {1e3 * KILLS_WAIT:.0f} ms, a session timeout of "
        f"{KILLS_SESSION_MS / 1000:g} s, seed {SEED}.",
        "",
        *table(["", "requests", "never answered", "answered twice or more"], rows),
    ]


def _kill(arms: list[Traffic], kills: int) -> None:
    chance = random.Random(SEED)
    for _ in range(kills):
        victim, pause = chance.randrange(2), chance.uniform(*PAUSE_SECONDS)
        for traffic in arms:
            _work_together(traffic, others=arms)
        until = time.monotonic() + pause
        while time.monotonic() < until:
            _serve(arms)
        for traffic in arms:
            traffic.members[victim].kill()
        for traffic in arms:
            traffic.members[victim].start()


def _outcome(traffic: Traffic) -> list[str]:
    """Of all requests, how many have no answer in the end, and how many have several."""
    _revive(traffic)
    answers = traffic.settle()
    lost = sum(name not in answers for name in traffic.asked)
    doubled = sum(times > 1 for times in answers.values())
    return [str(len(traffic.asked)), str(lost), str(doubled)]


def _work_together(traffic: Traffic, others: list[Traffic] | None = None, timeout: float = 60.0) -> None:
    """Wait until both members have answered something from now on."""
    traffic.sources.clear()
    deadline = time.monotonic() + timeout
    while len(traffic.sources) < 2 or min(traffic.sources.values()) < PROGRESS:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not both members work: {dict(traffic.sources)}")
        _serve(others or [traffic])


def _serve(arms: list[Traffic]) -> None:
    """Let every group have work, its members run, and its answers be read."""
    for traffic in arms:
        _revive(traffic)
        _fill(traffic)
        traffic.read(0.01)


def _fill(traffic: Traffic) -> None:
    if traffic.outstanding < BACKLOG:
        traffic.ask(BACKLOG)


def _revive(traffic: Traffic) -> None:
    """Start again what has ended by itself, as an orchestrator does."""
    for member in traffic.members:
        if not member.is_running:
            member.start()
