"""What the tests ask of a broker: topics, records to send, a topic read to its end, offsets, hanging transactions.

``client`` is in each of them what confluent-kafka is given beside ``bootstrap.servers``, as for SASL or TLS.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, IsolationLevel, KafkaError, Message, Producer
from confluent_kafka import TopicPartition as Partition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic, OffsetSpec

PARTITIONS = 4
TIMEOUT = 30.0
QUIET = {"log_level": 0, "reconnect.backoff.max.ms": 500}
UNCOMMITTED, COMMITTED = IsolationLevel.READ_UNCOMMITTED, IsolationLevel.READ_COMMITTED


@dataclass(frozen=True)
class Topics:
    """One worker's topics."""

    request: str
    response: str
    dlq: str

    @classmethod
    def fresh(cls) -> Topics:
        """Names that nobody else uses."""
        mark = uuid.uuid4().hex[:10]
        return cls(*(f"test-{mark}-{kind}" for kind in ("requests", "responses", "dlq")))


def admin_client(bootstrap: str, **client: Any) -> AdminClient:
    """An administrator's client that says nothing of an absent broker."""
    return AdminClient({**QUIET, **client, "bootstrap.servers": bootstrap})


def create_topics(
    bootstrap: str, *names: str, partitions: int = PARTITIONS, config: dict[str, str] | None = None, **client: Any
) -> None:
    """Create topics, with as many replicas as the broker gives by itself, and wait until each has its leaders."""
    admin = admin_client(bootstrap, **client)
    topics = [NewTopic(name, partitions, config=config or {}) for name in names]
    for created in admin.create_topics(topics, operation_timeout=TIMEOUT).values():
        created.result(TIMEOUT)
    _wait_for_leaders(admin, names, partitions)


def grow_topic(bootstrap: str, name: str, partitions: int) -> None:
    """Give a topic more partitions: so many in all."""
    admin = admin_client(bootstrap)
    for grown in admin.create_partitions([NewPartitions(name, partitions)], operation_timeout=TIMEOUT).values():
        grown.result(TIMEOUT)
    _wait_for_leaders(admin, [name], partitions)


def delete_topics(bootstrap: str, *names: str, **client: Any) -> None:
    """Delete topics that are there."""
    admin = admin_client(bootstrap, **client)  # by name: what it has begun ends with it
    for deleted in admin.delete_topics(list(names), operation_timeout=TIMEOUT).values():
        deleted.result(TIMEOUT)


def produce(bootstrap: str, topic: str, records: Iterable[dict[str, Any]], **client: Any) -> list[Message]:
    """Send records (``key``, ``value``, ``headers``, ``partition``) and wait: the delivered messages, in their order.

    Keys find their partition as Java's clients do it.
    """
    options = {"enable.idempotence": True, "partitioner": "murmur2_random", "linger.ms": 0}
    producer = Producer({**QUIET, **options, **client, "bootstrap.servers": bootstrap})
    reports: dict[int, Message] = {}
    failures: list[KafkaError] = []

    def note(number: int) -> Callable[[KafkaError | None, Message], None]:
        def report(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                failures.append(error)
            reports[number] = message

        return report

    for number, record in enumerate(records):
        producer.produce(topic, on_delivery=note(number), **record)
        producer.poll(0)
    if producer.flush(TIMEOUT) or failures:
        raise RuntimeError(f"not all records were delivered to {topic}: {failures or 'no answer'}")
    return [reports[number] for number in sorted(reports)]


def read_topic(
    bootstrap: str,
    topic: str,
    *,
    until: int | Callable[[Sequence[Message]], bool] = 0,
    timeout: float = TIMEOUT,
    isolation: str = "read_committed",
    **client: Any,
) -> list[Message]:
    """Everything in a topic from its beginning to its end, partition by partition in its order.

    Args:
        until: how many messages there must be, or what must hold of them, before the end counts as the end; the rest
            up to the end is read all the same, so that what came twice is seen.
        timeout: seconds for all of it.
        isolation: what transactions have left open is not read, nor what lies behind it in its partition.

    Raises:
        TimeoutError: the end did not come, or not enough before it; the text says how much did.
    """
    options = {"group.id": f"reader-{uuid.uuid4().hex}", "enable.auto.commit": False, "enable.partition.eof": True}
    more = {"isolation.level": isolation, "fetch.wait.max.ms": 50, "allow.auto.create.topics": False}
    consumer = Consumer({**QUIET, **options, **more, **client, "bootstrap.servers": bootstrap})
    enough = until if callable(until) else lambda messages: len(messages) >= until
    deadline = time.monotonic() + timeout
    messages: list[Message] = []
    try:
        partitions = consumer.list_topics(topic, timeout=timeout).topics[topic].partitions
        if not partitions:
            raise RuntimeError(f"no topic {topic}")
        consumer.assign([Partition(topic, number, 0) for number in partitions])
        ended: set[int] = set()
        while len(ended) < len(partitions) or not enough(messages):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic}: {len(messages)} messages, {len(ended)} partitions read to the end")
            message = consumer.poll(0.2)
            if message is None:
                continue
            error = message.error()
            if error is None:
                messages.append(message)
                ended.discard(message.partition())
            elif error.code() == KafkaError._PARTITION_EOF:
                ended.add(message.partition())
            elif not error.retriable() and error.code() not in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT):
                raise RuntimeError(f"{topic}: {error}")
    finally:
        consumer.close()
    return sorted(messages, key=lambda message: (message.partition(), message.offset()))


def end_offsets(bootstrap: str, topic: str, *, isolation: IsolationLevel = COMMITTED, **client: Any) -> dict[int, int]:
    """By partition, where a reader stops: the last stable offset, or with ``UNCOMMITTED`` the high watermark."""
    admin = admin_client(bootstrap, **client)
    numbers = admin.list_topics(topic, timeout=TIMEOUT).topics[topic].partitions
    asked = {Partition(topic, number): OffsetSpec.latest() for number in numbers}
    answers = admin.list_offsets(asked, isolation_level=isolation, request_timeout=TIMEOUT)
    return {partition.partition: answer.result(TIMEOUT).offset for partition, answer in answers.items()}


def group_offsets(bootstrap: str, group: str, topic: str, **client: Any) -> dict[int, int]:
    """By partition, what a group has committed (the next message it wants); 0 where it has committed nothing.

    Raises:
        TimeoutError: librdkafka may wait for ever for a coordinator that has gone (its issues 5456 and 5511).
    """
    admin = admin_client(bootstrap, **client)
    numbers = admin.list_topics(topic, timeout=TIMEOUT).topics[topic].partitions
    asked = ConsumerGroupTopicPartitions(group, [Partition(topic, number) for number in numbers])
    # require_stable: a transaction that is still open could change the answer.
    answer = admin.list_consumer_group_offsets([asked], require_stable=True, request_timeout=TIMEOUT)[group]
    return {part.partition: max(0, part.offset) for part in answer.result(TIMEOUT).topic_partitions}


def unread(bootstrap: str, group: str, topic: str, **client: Any) -> dict[int, int]:
    """By partition, how many offsets a group has still before it; partitions where it is at the end are left out."""
    committed = group_offsets(bootstrap, group, topic, **client)
    ends = end_offsets(bootstrap, topic, isolation=UNCOMMITTED, **client)
    return {number: end - committed[number] for number, end in ends.items() if end != committed[number]}


def hanging_transactions(bootstrap: str, *topics: str, **client: Any) -> dict[tuple[str, int], int]:
    """By (topic, partition), how many offsets an open transaction holds back; empty where none does."""
    held = {}
    for topic in topics:
        stable = end_offsets(bootstrap, topic, **client)
        for number, end in end_offsets(bootstrap, topic, isolation=UNCOMMITTED, **client).items():
            if end != stable[number]:
                held[topic, number] = end - stable[number]
    return held


def _wait_for_leaders(admin: AdminClient, names: Sequence[str], partitions: int) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not all(_leads(admin.list_topics(name, timeout=TIMEOUT).topics[name], partitions) for name in names):
        if time.monotonic() > deadline:
            raise TimeoutError(f"topics without leaders after {TIMEOUT:g} s: {', '.join(names)}")
        time.sleep(0.05)


def _leads(topic: Any, partitions: int) -> bool:
    return len(topic.partitions) == partitions and all(part.leader >= 0 for part in topic.partitions.values())
