"""Marks that tell a message which kills its worker from the innocent ones beside it.

A worker that begins a message soon after it was assigned the partition commits the message's own offset once more, with
a mark as the commit's metadata: who begins it, and how many deaths it is known to have caused. The next owner of the
partition finds the mark of a worker that is no longer in the group, and counts one more. A mark costs a commit, so a
steady run makes none: what was in hand when a worker died is among the first messages of the next owner.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

COMMITTED_SECONDS = 10.0
COMMITTED_TRIES = 4
MEMBERS_SECONDS = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mark:
    """What stands with a committed offset.

    Attributes:
        deaths: how many workers have died of the message at this offset, or were lost with it.
        by: the ``client.id`` of the worker that had begun it; None where none had, or it gave the partition back.
    """

    deaths: int = 0
    by: str | None = None

    def metadata(self) -> str:
        """The commit's metadata; empty where there is nothing to tell."""
        told = {name: value for name, value in (("deaths", self.deaths), ("by", self.by)) if value}
        return json.dumps(told) if told else ""

    @classmethod
    def read(cls, metadata: str | None) -> Mark:
        """The mark in a commit's metadata; what is none of ours tells nothing."""
        try:
            told = json.loads(metadata or "{}")
            return cls(int(told.get("deaths", 0)), told.get("by"))
        except (ValueError, TypeError, AttributeError):
            return cls()


class Marks:
    """Reads and writes the marks of one worker.

    Args:
        own: the worker's ``client.id``, which no other process, also no earlier one of this worker, has had.
        turned: told now and then that a call which takes long does not hang.
    """

    def __init__(self, admin: AdminClient, group: str, own: str, turned: Callable[[], None]) -> None:
        self._admin, self._group, self._own, self._turned = admin, group, own, turned

    def read(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[tuple[int | None, Mark]]:
        """The committed offset of each partition, None for none, and its mark with the deaths that are known now.

        Raises:
            KafkaException: the brokers do not tell.
        """
        found = [
            (None if part.offset < 0 else part.offset, Mark.read(part.metadata))
            for part in self._committed(consumer, partitions)
        ]
        if not any(mark.by not in (None, self._own) for _, mark in found):
            return found
        try:
            alive = self._members(MEMBERS_SECONDS)
        except Exception as error:
            logger.warning("It is not known which workers live: %s", error)
            return found
        return [(offset, self._judge(mark, alive)) for offset, mark in found]

    def write(self, consumer: Consumer, deaths: Mapping[TopicPartition, int], *, begun: bool) -> None:
        """Commit offsets with their marks.

        Args:
            deaths: of each message, by its place.
            begun: this worker begins the messages now; False takes that back.

        Raises:
            KafkaException: they are not committed, as during a rebalance.
        """
        by = self._own if begun else None
        places = [
            TopicPartition(place.topic, place.partition, place.offset, Mark(count, by).metadata())
            for place, count in deaths.items()
        ]
        for result in consumer.commit(offsets=places, asynchronous=False) or []:
            if result.error:
                raise KafkaException(result.error)

    def is_member(self, seconds: float) -> bool:
        """Whether the brokers count this worker as a member of the group; False where they do not say so in time."""
        try:
            return self._own in self._members(seconds)
        except Exception:
            return False

    def poll(self) -> None:
        """Let the library's log lines of this client out."""
        self._admin.poll(0)

    def _judge(self, mark: Mark, alive: set[str]) -> Mark:
        if mark.by in (None, self._own) or mark.by in alive:
            return mark
        return replace(mark, deaths=mark.deaths + 1)

    def _members(self, seconds: float) -> set[str]:
        """The ``client.id`` of every worker that is in the group."""
        description = self._admin.describe_consumer_groups([self._group])[self._group].result(seconds)
        return {member.client_id for member in description.members}

    def _committed(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """The committed offsets; what a dead worker's transaction has pending keeps the brokers from telling."""
        last: KafkaException | None = None
        for _ in range(COMMITTED_TRIES):
            self._turned()
            try:
                found = consumer.committed(partitions, timeout=COMMITTED_SECONDS)
            except KafkaException as error:
                last = error
                logger.info("The committed offsets are not told yet: %s", error.args[0].str())
                continue
            wrong = [part.error for part in found if part.error]
            if not wrong:
                return found
            last = KafkaException(wrong[0])
        raise last or AssertionError("unreachable")
