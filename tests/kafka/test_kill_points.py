"""``kill -9`` before and after each step from the file to the commit: one outcome for each message all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from kafka.broker import Broker
from kafka.groups import Group, ids
from kafka.worker_starter import Starter

STEPS = ("place", "begin", "produce", "send_offsets", "commit")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_at(step: str, when: str, broker: Broker, starter: Starter, tmp_path: Path) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=2) as group:
        group.ask(ids("request", 10))
        group.send([{"key": "broken", "value": b"{"}, {"value": b"no id"}])
        worker = group.worker(harness={"at": f"{when}-{step}", "count": 4, "once": tmp_path / "killed"})
        assert worker.wait() == -9
        worker.start()
        outcome = group.finish()
        assert outcome.codes() == {"success": 10, "INVALID_REQUEST": 1}
        assert worker.terminate() == 0


POINTS = ("before-place", "after-place", "before-produce", "after-produce", "before-flush", "after-flush")


@pytest.mark.parametrize("point", POINTS)
def test_at_least_once_killed_at(point: str, broker: Broker, starter: Starter, tmp_path: Path) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=2, KAFKA_DELIVERY="at_least_once") as group:
        group.ask(ids("request", 10))
        group.send([{"key": "broken", "value": b"{"}, {"value": b"no id"}])
        worker = group.worker(harness={"at": point, "count": 4, "once": tmp_path / "killed"})
        assert worker.wait() == -9
        worker.start()
        outcome = group.finish(repeats=True)
        assert outcome.codes() == {"success": 10, "INVALID_REQUEST": 1}
        if point == "after-flush":  # the records are there, their offset is not: the window of this delivery
            assert len(outcome.messages) == 12
        assert worker.terminate() == 0
