"""What a worker says of itself: each trouble stays until it is known to be over, and tells no secret. No broker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaException

from latent_encoder.service.kafka.marks import Marks
from latent_encoder.service.kafka.numbers import Numbers
from latent_encoder.service.kafka.observing import check_brokers, measure_lag
from latent_encoder.service.metrics import Metrics

TOPICS = ("requests", "responses", "dlq")
SETTINGS: Any = SimpleNamespace(kafka_request_topic="requests", kafka_response_topic="responses", kafka_dlq_topic="dlq")


@pytest.fixture
def numbers() -> Numbers:
    ready: Any = SimpleNamespace(error=lambda: None)
    return Numbers(Metrics(), ready, lambda text: text.replace("hunter2", "***"))


def consumer(*topics: str) -> Any:
    """One to whom the brokers show these topics."""
    found = {name: SimpleNamespace(error=None) for name in topics}
    return SimpleNamespace(list_topics=lambda timeout: SimpleNamespace(topics=found))


def marks(is_member: bool) -> Any:
    return SimpleNamespace(is_member=lambda seconds: is_member)


def reason(numbers: Numbers) -> str:
    error = numbers.error()
    return error.message if error else ""


def test_brokers_that_answer_do_not_make_a_member(numbers: Numbers) -> None:
    check_brokers(consumer(*TOPICS), marks(False), SETTINGS, numbers)
    assert "not joined" in reason(numbers)
    numbers.outside("Group authorization failed")
    check_brokers(consumer(*TOPICS), marks(False), SETTINGS, numbers)
    assert reason(numbers) == "Group authorization failed."
    check_brokers(consumer(*TOPICS), marks(True), SETTINGS, numbers)
    assert reason(numbers) == ""


def test_a_member_without_partitions_is_ready(numbers: Numbers) -> None:
    numbers.owned(0)
    numbers.joined()
    assert reason(numbers) == ""


def test_topics_that_are_missing_are_named_and_may_come(numbers: Numbers) -> None:
    numbers.joined()
    check_brokers(consumer("requests"), marks(True), SETTINGS, numbers)
    numbers.owned(2)  # those of the topic that is there
    assert "no topic responses and no topic dlq" in reason(numbers)
    check_brokers(consumer(*TOPICS), marks(True), SETTINGS, numbers)
    assert reason(numbers) == ""


def test_requests_that_cannot_be_read_are_so_until_one_comes(numbers: Numbers) -> None:
    numbers.joined()
    numbers.owned(2)
    numbers.refused("Topic authorization failed")
    check_brokers(consumer(*TOPICS), marks(True), SETTINGS, numbers)
    numbers.owned(2)  # another worker has joined
    assert reason(numbers) == "Topic authorization failed."
    numbers.readable()
    assert reason(numbers) == ""


def test_no_secret_and_no_address_is_told(numbers: Numbers) -> None:
    numbers.trouble("sasl_ssl://kafka.inside:9093/bootstrap: SASL authentication error: no user hunter2.")
    assert reason(numbers) == "a broker: SASL authentication error: no user ***."
    numbers.trouble("Connect to ipv4#10.0.0.7:9092 failed: Connection refused (after 3ms in state CONNECT)")
    assert reason(numbers) == "Connect to a broker failed: Connection refused (after 3ms in state CONNECT)."


def test_the_lag_is_asked_of_a_silent_broker_once(numbers: Numbers) -> None:
    asked = []

    def ask(*_: Any, cached: bool) -> None:
        asked.append(cached)
        raise KafkaException("silent")

    partition = SimpleNamespace(at=lambda offset: offset, waiting=[], position=0, number=0)
    assignment: Any = [partition] * 60
    measure_lag(SimpleNamespace(get_watermark_offsets=ask), assignment, numbers, cached=False)  # type: ignore[arg-type]
    assert len(asked) == 1


def test_a_member_is_known_by_its_client_id() -> None:
    members = [SimpleNamespace(client_id="me")]
    future = SimpleNamespace(result=lambda seconds: SimpleNamespace(members=members))
    admin: Any = SimpleNamespace(describe_consumer_groups=lambda groups: {groups[0]: future})
    assert Marks(admin, "group", "me", lambda: None).is_member(1)
    assert not Marks(admin, "group", "another", lambda: None).is_member(1)
    assert not Marks(None, "group", "me", lambda: None).is_member(1)  # type: ignore[arg-type]
