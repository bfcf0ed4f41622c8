"""A bad network between a worker and its broker: nothing is lost, nothing comes twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from kafka.broker import Broker, started_broker
from kafka.groups import Group, ids
from kafka.supervisor import Supervisor, finish
from kafka.tcp_proxy import TcpProxy
from kafka.worker_starter import Starter

Network = tuple[Broker, TcpProxy]
Fault = Callable[[TcpProxy], None]
# A connection whose other end is gone without a word is given up after socket.timeout.ms.
PROPERTIES = "session.timeout.ms=3000\nreconnect.backoff.max.ms=500\nsocket.timeout.ms=5000\nmessage.timeout.ms=4000\n"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A broker, and the proxy before it."""
    with TcpProxy() as proxy, started_broker(tmp_path_factory.mktemp("broker"), proxy=proxy) as broker:
        yield broker, proxy


def drop(proxy: TcpProxy) -> None:
    proxy.drop()
    time.sleep(6)
    proxy.heal()


def delay(proxy: TcpProxy) -> None:
    """400 ms for each question and answer: a transaction needs 2 s."""
    proxy.delay = 0.2
    time.sleep(6)
    proxy.heal()


def half_open(proxy: TcpProxy) -> None:
    proxy.half_open()


def reset(proxy: TcpProxy) -> None:
    for _ in range(6):
        proxy.reset()
        time.sleep(0.5)


def refuse(proxy: TcpProxy) -> None:
    proxy.refuse()
    time.sleep(4)
    proxy.heal()


def drop_answers(proxy: TcpProxy) -> None:
    for pause in (0.2, 0.5, 1, 6):
        proxy.drop_answers()
        time.sleep(pause)
        proxy.heal()
        time.sleep(0.3)


def drop_answers_for_long(proxy: TcpProxy) -> None:
    proxy.drop_answers()
    time.sleep(20)
    proxy.heal()


FAULTS = (drop, delay, half_open, reset, refuse, drop_answers)


def test_one_fault_after_another(network: Network, starter: Starter, tmp_path: Path) -> None:
    run(FAULTS, 12, network, starter, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("fault", [*FAULTS, drop_answers_for_long])
def test_one_fault(fault: Fault, network: Network, starter: Starter, tmp_path: Path) -> None:
    run([fault], 30, network, starter, tmp_path)


def run(faults: Sequence[Fault], count: int, network: Network, starter: Starter, folder: Path) -> None:
    """Ask for so many pictures before each fault, and hold all that came of it against every promise."""
    broker, proxy = network
    (folder / "client.properties").write_text(PROPERTIES, encoding="utf-8")
    with Group(broker.bootstrap, folder, starter, partitions=2) as group:
        worker = group.worker(harness={"wait": 0.1}, bootstrap=broker.proxied_bootstrap).wait_ready()
        with Supervisor(worker) as supervisor:
            for fault in faults:
                group.ask(ids(fault.__name__, count))
                time.sleep(0.5)
                fault(proxy)
            outcome = finish(group)
            supervisor.wait_for("ready")
        assert outcome.codes() == {"success": count * len(faults)}
        assert set(supervisor.exit_codes) <= {3} and len(supervisor.exit_codes) <= len(faults)


@pytest.mark.soak
def test_a_worker_with_nothing_to_do_stays_ready(network: Network, starter: Starter, tmp_path: Path) -> None:
    """Its connections are closed meanwhile, and opened again."""
    broker, _ = network
    with Group(broker.bootstrap, tmp_path, starter, partitions=3) as group:
        worker = group.worker(harness={"wait": 0.1})
        for round in range(3):
            group.ask(ids(f"round-{round}", 5))
            finish(group)
            worker.wait_ready()
            with Supervisor(worker) as supervisor:
                time.sleep(13)
            assert set(supervisor.seen) == {"ready"}
        assert "down" not in worker.log()
