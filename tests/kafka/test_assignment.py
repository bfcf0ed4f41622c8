"""What waits of each partition and is begun next, with a consumer that is none: no broker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from latent_encoder.service.kafka import assignment as module
from latent_encoder.service.kafka.assignment import MOST_WAITING, MOST_WAITING_BYTES, Assignment, Work
from latent_encoder.service.kafka.marks import Mark
from latent_encoder.service.kafka.messages import Incoming


class FakeConsumer:
    """Notes which partitions are paused."""

    def __init__(self) -> None:
        self.paused: set[int] = set()

    def subscribe(self, topics: list[str], on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self.assign, self.revoke, self.lose = on_assign, on_revoke, on_lost

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        pass

    incremental_unassign = incremental_assign

    def pause(self, partitions: list[TopicPartition]) -> None:
        self.paused |= {place.partition for place in partitions}

    def resume(self, partitions: list[TopicPartition]) -> None:
        self.paused -= {place.partition for place in partitions}


class FakeMarks:
    """Marks that stand with the offset 0 of each partition."""

    def __init__(self) -> None:
        self.deaths: dict[int, int] = {}
        self.reads: list[list[int]] = []
        self.written: list[tuple[int, bool]] = []
        self.fails = 0

    def read(self, consumer: Any, partitions: list[TopicPartition]) -> list[tuple[int | None, Mark]]:
        self.reads.append([place.partition for place in partitions])
        return [(0, Mark(self.deaths.get(place.partition, 0))) for place in partitions]

    def write(self, consumer: Any, deaths: dict[TopicPartition, int], *, begun: bool) -> None:
        if self.fails:
            self.fails -= 1
            raise KafkaException(KafkaError(KafkaError.REBALANCE_IN_PROGRESS))
        self.written += [(place.partition, begun) for place in deaths]


class Fixture:
    """An assignment, and what happens to it."""

    def __init__(self) -> None:
        self.consumer, self.marks, self.told = FakeConsumer(), FakeMarks(), []
        told: list[str] = self.told
        self.assignment = Assignment(
            self.consumer,  # type: ignore[arg-type]
            self.marks,  # type: ignore[arg-type]
            6,
            changed=lambda count: told.append(f"owns {count}"),
            joined=lambda: told.append("joined"),
            lost=lambda: told.append("lost"),
            reachable=lambda: True,
        )
        self.assignment.subscribe("requests")

    def assign(self, *numbers: int) -> None:
        self.consumer.assign(self.consumer, [TopicPartition("requests", number) for number in numbers])

    def take(self, partition: int, offset: int, **parts: Any) -> None:
        given: dict[str, Any] = {"key": None, "value": b"{}", "headers": []} | parts
        self.assignment.take(Incoming("requests", partition, offset, None, **given))

    def begin(self) -> Work | None:
        return self.assignment.next_work(lambda incoming: True, busy=len(self.assignment.begun))


@pytest.fixture
def fixture() -> Fixture:
    return Fixture()


def test_an_assignment_of_nothing_asks_the_brokers_nothing_and_makes_a_member(fixture: Fixture) -> None:
    fixture.assign()
    assert fixture.marks.reads == []
    assert fixture.told == ["owns 0", "joined"]


def test_in_a_new_group_what_is_begun_is_the_first_that_is_not_answered(fixture: Fixture) -> None:
    fixture.assign(0)
    (partition,) = fixture.assignment
    partition.position = None
    assert partition.first_unanswered is None
    fixture.take(0, 5)
    fixture.take(0, 6)
    assert partition.first_unanswered == 5
    fixture.begin()
    assert partition.first_unanswered == 5


def test_what_is_lost_is_dropped_and_told(fixture: Fixture) -> None:
    fixture.assign(0)
    fixture.take(0, 0)
    work = fixture.begin()
    fixture.consumer.lose(fixture.consumer, [TopicPartition("requests", 0)])
    assert work is not None
    assert work.call.cancelled
    assert not fixture.assignment.owns(work.partition)
    assert fixture.told[-2:] == ["owns 0", "lost"]


def test_many_messages_pause_their_partition_alone(fixture: Fixture) -> None:
    fixture.assign(0, 1)
    for offset in range(MOST_WAITING):
        fixture.take(0, offset)
    fixture.assignment.balance()
    assert fixture.consumer.paused == {0}


@pytest.mark.parametrize("part", ["value", "key", "headers"])
def test_large_messages_pause_it_whatever_is_large(fixture: Fixture, part: str) -> None:
    large = bytes(MOST_WAITING_BYTES // 4)
    fixture.assign(0)
    for offset in range(4):
        fixture.take(0, offset, **{part: [("name", large)] if part == "headers" else large})
    fixture.assignment.balance()
    assert fixture.consumer.paused == {0}
    while (work := fixture.begin()) is not None:
        work.partition.begun.clear()
    fixture.assignment.balance()
    assert fixture.consumer.paused == set()


def test_a_pause_does_not_outlive_its_assignment(fixture: Fixture) -> None:
    """The library keeps it over a revocation."""
    fixture.assign(0)
    for offset in range(MOST_WAITING):
        fixture.take(0, offset)
    fixture.assignment.balance()
    fixture.consumer.revoke(fixture.consumer, [TopicPartition("requests", 0)])
    fixture.assign(0)
    assert fixture.consumer.paused == set()
    fixture.assignment.hold(True)
    fixture.assign(1)
    assert fixture.consumer.paused == {0, 1}


def test_a_suspect_waits_until_nothing_else_is_in_hand(fixture: Fixture) -> None:
    fixture.marks.deaths = {0: 1}
    fixture.assign(0, 1)
    fixture.take(1, 0)
    innocent = fixture.begin()
    fixture.take(0, 0)
    fixture.take(1, 1)
    assert innocent is not None
    assert fixture.begin() is None
    innocent.partition.begun.clear()
    suspect = fixture.begin()
    assert suspect is not None
    assert suspect.deaths == 1
    assert fixture.begin() is None


def test_a_mark_that_fails_is_not_tried_again_in_every_turn(fixture: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=100.0)
    monkeypatch.setattr(module, "time", clock)
    fixture.assign(0)
    fixture.take(0, 0)
    fixture.marks.fails = 1
    assert fixture.begin() is None
    assert fixture.begin() is None
    assert fixture.marks.written == []
    clock.now += 1
    assert fixture.begin() is not None
    assert fixture.marks.written == [(0, True)]
