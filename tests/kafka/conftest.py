"""Fixtures: a broker for the session, or one that was there already; brokers of a test's own; fresh topics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka.broker import Broker, ExistingBroker, session_broker, started_broker
from kafka.tcp_proxy import TcpProxy
from kafka.topics import Topics, create_topics
from kafka.worker_starter import Starter


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker | ExistingBroker]:
    """The broker that all tests share who leave it as it is: ``KAFKA_TEST_BOOTSTRAP``'s where that is set."""
    with session_broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture(scope="session")
def secure_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker of ours with SASL, TLS and SASL over TLS listeners, and a guest without rights."""
    with started_broker(tmp_path_factory.mktemp("secure_broker"), sasl=True, tls=True) as broker:
        yield broker


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker for this test alone: it may be killed, frozen and restarted."""
    with started_broker(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def proxied_broker(tmp_path: Path) -> Iterator[tuple[Broker, TcpProxy]]:
    """A broker for this test alone whose ``proxied_bootstrap`` lies behind a bad network; ``bootstrap`` does not."""
    with TcpProxy() as proxy, started_broker(tmp_path / "broker", proxy=proxy) as broker:
        yield broker, proxy


@pytest.fixture
def topics(broker: Broker | ExistingBroker) -> Topics:
    """Fresh topics on the session's broker, of 4 partitions each."""
    topics = Topics.fresh()
    create_topics(broker.bootstrap, topics.request, topics.response, topics.dlq)
    return topics


@pytest.fixture(scope="session")
def starter() -> Iterator[Starter]:
    """What forks worker processes that have their imports behind them."""
    starter = Starter()
    yield starter
    starter.stop()
