"""A picture that kills every worker that encodes it is given up after 3 counted deaths; its neighbours are not."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from kafka.broker import Broker
from kafka.groups import Group, ids
from kafka.outcomes import still_unread, text_header
from kafka.worker_starter import Starter
from kafka.workers import WorkerProcess, make_picture

MOST_LIVES = 8


def run_until_answered(worker: WorkerProcess, group: Group) -> int:
    """Start the worker again whenever it dies, as an orchestrator does; how often it has died."""
    deaths = 0
    for _ in range(MOST_LIVES):
        try:
            outcome_is_there = wait_for_end(worker, group)
        except TimeoutError:
            break
        if outcome_is_there:
            return deaths
        deaths += 1
        worker.start()
    raise AssertionError(f"not answered after {deaths} deaths: {worker.log()[-3000:]}")


def wait_for_end(worker: WorkerProcess, group: Group) -> bool:
    """True once everything is answered, False where the worker has died before."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not worker.is_running:
            return False
        if not still_unread(group.bootstrap, group.topics, group.name):
            return True
        time.sleep(0.2)
    raise TimeoutError


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_a_picture_that_kills_is_given_up_and_its_neighbours_are_not(
    broker: Broker, starter: Starter, tmp_path: Path, protocol: str, delivery: str
) -> None:
    options = {"KAFKA_GROUP_PROTOCOL": protocol, "KAFKA_DELIVERY": delivery}
    with Group(broker.bootstrap, tmp_path, starter, partitions=3, **options) as group:
        poison = make_picture(group.folder, "poison.png")
        group.ask(ids("before", 12))
        group.ask(["killer"], poison)
        group.ask(ids("after", 12))
        worker = group.worker(harness={"poison": "poison"})
        deaths = run_until_answered(worker, group)
        outcome = group.finish(repeats=delivery == "at_least_once")
        assert 3 <= deaths <= 4
        assert outcome.codes() == {"success": 24, "INTERNAL": 1}
        assert outcome.answers["killer"][0]["error_code"] == "INTERNAL"
        (letter,) = outcome.dead
        assert text_header(letter, "dlq.attempts") == "3"
        assert worker.terminate() == 0


def test_two_pictures_that_kill_are_both_given_up(broker: Broker, starter: Starter, tmp_path: Path) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=2) as group:
        poison = make_picture(group.folder, "poison.png")
        group.send(
            [
                {"partition": 0, "key": f"a{number}", "value": _request(f"a{number}", group.picture)}
                for number in range(5)
            ]
        )
        group.send(
            [
                {"partition": number, "key": f"killer-{number}", "value": _request(f"killer-{number}", poison)}
                for number in (0, 1)
            ]
        )
        group.send(
            [
                {"partition": 1, "key": f"b{number}", "value": _request(f"b{number}", group.picture)}
                for number in range(5)
            ]
        )
        worker = group.worker(harness={"poison": "poison"})
        run_until_answered(worker, group)
        assert group.finish().codes() == {"success": 10, "INTERNAL": 2}


def test_a_fault_of_the_engine_s_own_is_an_answer_and_its_neighbours_are_encoded(
    broker: Broker, starter: Starter, tmp_path: Path
) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=1) as group:
        group.ask(ids("before", 3))
        group.ask(["fault"], make_picture(group.folder, "trap.png"))
        group.ask(ids("after", 3))
        worker = group.worker(harness={"raise": "trap"})
        outcome = group.finish()
        assert outcome.codes() == {"success": 6, "INTERNAL": 1}
        (answer,) = outcome.answers["fault"]
        assert answer["error_code"] == "INTERNAL"
        assert "Traceback" in worker.log()  # whoever mends it needs that; whoever asked does not
        assert "Traceback" not in str(answer)
        assert worker.terminate() == 0


def _request(name: str, picture: str) -> str:
    return json.dumps({"request_id": name, "image_path": picture})
