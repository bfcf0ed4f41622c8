"""The broker dies, comes back, freezes, while pictures are encoded: nothing is lost, nothing comes twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka.broker import Broker, started_broker
from kafka.groups import Group, ids
from kafka.supervisor import Supervisor, finish
from kafka.worker_starter import Starter

MOST_LINES = 60
"""Of the log, while the broker is away and comes back, beside the answers: none of them comes with each attempt."""

# What cannot be sent is given up sooner than after the usual 13 s.
PROPERTIES = "session.timeout.ms=3000\nreconnect.backoff.max.ms=500\nmessage.timeout.ms=4000\n"


@pytest.fixture(scope="module")
def mortal_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that the tests of this module kill, freeze, and leave running."""
    with started_broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.mark.parametrize("seconds", [0, 5, pytest.param(20, marks=pytest.mark.soak)])
def test_the_broker_is_killed_and_comes_back(
    seconds: float, mortal_broker: Broker, starter: Starter, tmp_path: Path
) -> None:
    def fault(supervisor: Supervisor) -> None:
        # Not within the moment after a commit: a lone Kafka 4.3.1 that dies between a commit's answer and its markers
        # may take the transaction for completed when it comes back, without having written them, and the next abort of
        # the same producer hides its records. No client can see that.
        supervisor.wait_for_next_answer()
        time.sleep(0.2)
        mortal_broker.kill()
        time.sleep(seconds)
        if seconds:  # a broker that is back at once may not have been missed
            supervisor.wait_for("KAFKA_UNAVAILABLE")
        mortal_broker.restart()

    run(fault, mortal_broker, starter, tmp_path)


@pytest.mark.parametrize("seconds", [12, pytest.param(20, marks=pytest.mark.soak)])
def test_the_broker_is_frozen(seconds: float, mortal_broker: Broker, starter: Starter, tmp_path: Path) -> None:
    def fault(supervisor: Supervisor) -> None:
        mortal_broker.pause()
        time.sleep(seconds)
        assert "KAFKA_UNAVAILABLE" in supervisor.seen
        mortal_broker.resume()

    run(fault, mortal_broker, starter, tmp_path)


def run(fault: Callable[[Supervisor], None], broker: Broker, starter: Starter, folder: Path) -> None:
    """Let a worker answer while something is done to its broker, and hold it against every promise."""
    (folder / "client.properties").write_text(PROPERTIES, encoding="utf-8")
    with Group(broker.bootstrap, folder, starter, partitions=2) as group:
        worker = group.worker(harness={"wait": 0.4})
        group.ask(ids("request", 20))
        worker.wait_log("Answered")
        with Supervisor(worker) as supervisor:
            fault(supervisor)
            outcome = finish(group)
            supervisor.wait_for("ready")
        assert outcome.codes() == {"success": 20}
        # A transaction that the broker has forgotten may cost the process its producer: 3 says "start me again".
        assert supervisor.exit_codes in ([], [3])
        assert sum("Answered" not in line for line in worker.log().splitlines()) < MOST_LINES
