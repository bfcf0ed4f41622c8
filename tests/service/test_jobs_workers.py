"""The queues in front of the encoder, without an encoder."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.workers import QueueFull, Task, Workers


class Bench:
    """Workers, and tasks that write down their names and wait at a gate."""

    def __init__(self) -> None:
        self.workers = Workers(("encode", "jobs"), limit=3)
        self.done: list[str] = []
        self.gate = threading.Event()

    def put(self, lane: str, name: str) -> Task:
        task = self.task(name)
        self.workers.add(lane, task)
        return task

    def task(self, name: str, **marks: Any) -> Task:
        def work() -> None:
            self.gate.wait(10)
            self.done.append(name)

        return Task(work, **marks)

    def finish(self) -> list[str]:
        """Open the gate; returns the names in the order in which they were done."""
        self.gate.set()
        assert self.workers.wait_idle(10, "encode", "jobs")
        return self.done


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.gate.set()
    bench.workers.stop()


def refused(workers: Workers, lane: str) -> str:
    with pytest.raises(LatentEncoderError) as error:
        workers.reserve(lane)
    return error.value.code


def test_lanes_take_turns_and_keep_their_order(bench: Bench) -> None:
    for number in range(3):
        bench.put("jobs", f"job {number}")
    for number in range(2):
        bench.put("encode", f"encode {number}")
    bench.workers.start(1)
    assert bench.finish() == ["encode 0", "job 0", "encode 1", "job 1", "job 2"]


def test_lane_is_full_by_itself_and_reserved_places_count(bench: Bench) -> None:
    bench.put("encode", "a")
    bench.workers.reserve("encode")
    bench.workers.reserve("encode")
    assert refused(bench.workers, "encode") == "QUEUE_FULL"
    bench.workers.reserve("jobs")
    bench.workers.release("encode")
    bench.workers.check_room("encode")


def test_what_idle_threads_are_about_to_take_does_not_count(bench: Bench) -> None:
    bench.workers.start(2)
    for name in "abcde":
        bench.put("encode", name)
    assert refused(bench.workers, "encode") == "QUEUE_FULL"
    assert sorted(bench.finish()) == [*"abcde"]


def test_task_of_an_earlier_life_is_taken_whatever_the_limit(bench: Bench) -> None:
    for name in "abcde":
        bench.workers.put_back("jobs", bench.task(name))
    assert bench.workers.waiting("jobs") == 5 and refused(bench.workers, "jobs") == "QUEUE_FULL"
    bench.workers.start(1)
    assert bench.finish() == [*"abcde"]


def test_waiting_task_is_removed_and_a_running_one_is_not(bench: Bench) -> None:
    bench.workers.start(1)
    running = bench.put("encode", "running")
    while bench.workers.running == 0:
        time.sleep(0.001)
    waiting = bench.put("encode", "waiting")
    assert bench.workers.remove("encode", waiting) and not bench.workers.remove("encode", waiting)
    assert not bench.workers.remove("encode", running)
    assert bench.finish() == ["running"]


def test_held_lane_waits_and_after_refusal_for_good(bench: Bench) -> None:
    bench.workers.hold("jobs", True)
    bench.put("jobs", "job")
    bench.put("encode", "encode")
    bench.workers.start(1)
    bench.gate.set()
    assert bench.workers.wait_idle(10, "encode") and bench.done == ["encode"]
    bench.workers.refuse("The end is near.")
    bench.workers.hold("jobs", False)
    assert refused(bench.workers, "encode") == "ENGINE_UNAVAILABLE"
    assert not bench.workers.wait_idle(0.1, "jobs") and bench.done == ["encode"]


def test_task_that_raises_harms_no_other(bench: Bench) -> None:
    bench.workers.start(1)
    bench.workers.put_back("encode", Task(lambda: 1 / 0))
    bench.put("encode", "after")
    assert bench.finish() == ["after"]


def running(workers: Workers, count: int) -> None:
    """Wait until so many tasks run."""
    deadline = time.monotonic() + 10
    while workers.running != count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_tasks_of_one_key_take_one_thread_and_those_behind_them_another(bench: Bench) -> None:
    for lane, name, key in (("encode", "a", 1), ("encode", "a again", 1), ("jobs", "a once more", 1), ("jobs", "b", 2)):
        bench.workers.add(lane, bench.task(name, key=key))
    bench.workers.start(3)
    running(bench.workers, 2)
    assert [bench.workers.waiting(lane) for lane in ("encode", "jobs")] == [1, 1]
    assert sorted(bench.finish()) == ["a", "a again", "a once more", "b"]


def test_task_that_wants_to_be_alone_has_no_other_of_its_lane_beside_it(bench: Bench) -> None:
    gate = threading.Event()
    bench.put("jobs", "before")
    bench.workers.add("jobs", Task(gate.wait, alone=True))
    bench.workers.add("jobs", bench.task("after"))
    bench.workers.start(3)
    running(bench.workers, 1)
    bench.gate.set()
    while bench.done != ["before"]:
        time.sleep(0.001)
    running(bench.workers, 1)
    bench.put("encode", "of the other lane")
    while "of the other lane" not in bench.done:
        time.sleep(0.001)
    assert bench.workers.waiting("jobs") == 1
    gate.set()
    assert bench.finish() == ["before", "of the other lane", "after"]


def test_task_wakes_a_worker_though_somebody_waits_for_the_end(bench: Bench) -> None:
    bench.workers.hold("jobs", True)
    bench.put("jobs", "held")
    bench.gate.set()
    threading.Thread(target=bench.workers.wait_idle, args=(10, "jobs"), daemon=True).start()
    time.sleep(0.1)
    bench.workers.start(1)
    time.sleep(0.1)
    bench.put("encode", "now")
    deadline = time.monotonic() + 10
    while not bench.done and time.monotonic() < deadline:
        time.sleep(0.01)
    assert bench.done == ["now"]


def test_each_of_several_tasks_wakes_a_thread(bench: Bench) -> None:
    bench.workers.start(3)
    time.sleep(0.1)  # they are idle
    for name in "abc":
        bench.put("encode", name)
    running(bench.workers, 3)


@pytest.mark.parametrize("held", [False, True])
def test_the_thread_that_worked_last_takes_the_next_task(bench: Bench, held: bool) -> None:
    took: Counter[int] = Counter()
    if held:
        bench.workers.hold("jobs", True)
        bench.put("jobs", "waits")
    bench.workers.start(3)
    for _ in range(30):
        time.sleep(0.01)  # it is idle again
        bench.workers.add("encode", Task(lambda: took.update([threading.get_ident()])))
        assert bench.workers.wait_idle(10, "encode")
    assert took.most_common(1)[0][1] > 20  # by turns it would be 10


def test_retry_after_grows_with_the_queue_and_is_bounded() -> None:
    def retry_after(count: int) -> int:
        workers = Workers(("encode",), limit=count)
        for _ in range(count):
            workers.add("encode", Task(lambda: None))
        with pytest.raises(QueueFull) as error:
            workers.reserve("encode")
        return error.value.retry_after

    assert retry_after(1) == 1 and retry_after(10) == 5 and retry_after(5000) == 60
