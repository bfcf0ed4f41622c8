"""The partitions that this worker owns just now, what waits in each, and what may be begun next."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaException, TopicPartition

from latent_encoder.errors import LatentEncoderError
from latent_encoder.models import EncodeResponse
from latent_encoder.service.engines.base import Call

from .marks import Mark, Marks
from .messages import Incoming

MOST_DEATHS = 3
"""A message that so many workers are known to have died of is given up."""

MOST_WAITING, FEW_WAITING = 128, 64
"""Messages of a partition are taken from the brokers up to the first number, and again from the second on. The library
needs half a second until the next ones come then; the second number of encodes shall take longer.
"""

MOST_WAITING_BYTES = 1 << 22
"""Nor are more taken of a partition beyond so many bytes, headers and keys included."""

MARK_SECONDS = 0.2
"""The pause after a mark that could not be made."""

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Work:
    """A message that was begun, until its answer is published.

    Attributes:
        partition: the assignment that it was read under.
        marked: whether a mark stands for it.
        deaths: how many workers are known to have died of it.
        attempts: how often it was tried in this process.
        alone: it is tried with nothing beside it, to find out whether the engine is there again.
        engines_lost, engines_lost_beside: how often the engine was lost then, and how often while others ran, too.
        response: its answer, once there is one; with ``error`` where it failed.
        lengths: of its answer and of its dead letter, where their topics do not take them WHOLE.
    """

    partition: Partition
    incoming: Incoming
    call: Call
    marked: bool = False
    deaths: int = 0
    attempts: int = 0
    alone: bool = False
    engines_lost: int = 0
    engines_lost_beside: int = 0
    response: EncodeResponse | None = None
    error: LatentEncoderError | None = None
    done: bool = False
    lengths: dict[str, int] = field(default_factory=dict)


@dataclass(eq=False)
class Partition:
    """One assignment of a partition. The next assignment of the same one is another object, so that what belongs to an
    earlier one is never published: the brokers do not check that.

    Attributes:
        position: the offset up to which everything is answered; None until one is, where the group had committed none.
        mark: of the message at ``position``, with what is known of its worker by now.
        begun: in the order of their offsets.
        answered: how many messages since the assignment.
        paused: whether the library fetches nothing of it.
    """

    topic: str
    number: int
    position: int | None
    mark: Mark
    waiting: deque[Incoming] = field(default_factory=deque)
    begun: deque[Work] = field(default_factory=deque)
    answered: int = 0
    paused: bool = False
    waiting_bytes: int = 0

    @property
    def is_full(self) -> bool:
        """Whether no more is to be taken."""
        if self.paused:
            return len(self.waiting) > FEW_WAITING or self.waiting_bytes > MOST_WAITING_BYTES // 2
        return len(self.waiting) >= MOST_WAITING or self.waiting_bytes >= MOST_WAITING_BYTES

    @property
    def first_unanswered(self) -> int | None:
        """The offset of the first message that is not answered, or would be the next; None where that is not known."""
        if self.position is not None:
            return self.position
        if self.begun:
            return self.begun[0].incoming.offset
        return self.waiting[0].offset if self.waiting else None

    def at(self, offset: int) -> TopicPartition:
        """This partition with an offset, for the library."""
        return TopicPartition(self.topic, self.number, offset)

    def deaths_of(self, incoming: Incoming) -> int:
        """How many workers are known to have died of a message."""
        is_marked = incoming.offset == self.position and not self.answered and not self.begun
        return self.mark.deaths if is_marked else 0


class Assignment:
    """What the group has given to this worker. All of it is used by the thread that polls.

    Args:
        window: how many messages of a partition may be begun and unanswered; as many are marked, one at a time, after
            an assignment, for any of them may be what the owner before died of.
        changed: called after each change, with the number of partitions.
        joined, lost: called when the group has given partitions to this worker (or none), and when it has taken them
            away without being asked.
        reachable: whether the brokers answer, as far as is known.
    """

    def __init__(
        self,
        consumer: Consumer,
        marks: Marks,
        window: int,
        changed: Callable[[int], None],
        joined: Callable[[], None],
        lost: Callable[[], None],
        reachable: Callable[[], bool],
    ) -> None:
        self._consumer, self._marks, self._window = consumer, marks, window
        self._changed, self._joined, self._lost, self._reachable = changed, joined, lost, reachable
        self._owned: dict[tuple[str, int], Partition] = {}
        self._held = False
        self._mark_at = 0.0

    def subscribe(self, topic: str) -> None:
        """Join the group."""
        self._consumer.subscribe([topic], on_assign=self._assign, on_revoke=self._revoke, on_lost=self._lose)

    def __iter__(self) -> Iterator[Partition]:
        return iter(list(self._owned.values()))

    def __len__(self) -> int:
        return len(self._owned)

    def owns(self, partition: Partition) -> bool:
        """Whether this very assignment still holds."""
        return self._owned.get((partition.topic, partition.number)) is partition

    @property
    def waiting(self) -> int:
        """How many messages have come and are not begun."""
        return sum(len(partition.waiting) for partition in self._owned.values())

    @property
    def begun(self) -> list[Work]:
        """All work that was begun and is not answered."""
        return [work for partition in self._owned.values() for work in partition.begun]

    def take(self, incoming: Incoming) -> None:
        """Let a message wait; one of a partition that is not owned any more is dropped."""
        partition = self._owned.get((incoming.topic, incoming.partition))
        if partition:
            partition.waiting.append(incoming)
            partition.waiting_bytes += incoming.size

    def hold(self, held: bool) -> None:
        """Take no more messages from the brokers, or go on."""
        self._held = held
        self.balance()

    def balance(self) -> None:
        """Pause or resume partitions, seldom: a pause throws away what the library has fetched. Each by itself, so that
        the backlog of one does not keep another, such as a dead worker's, from being read.
        """
        changed = [partition for partition in self if partition.paused != (self._held or partition.is_full)]
        for partition in changed:
            partition.paused = not partition.paused
        self._apply_pause([partition.at(0) for partition in changed if partition.paused], paused=True)
        self._apply_pause([partition.at(0) for partition in changed if not partition.paused], paused=False)

    def next_work(self, may_begin: Callable[[Incoming], bool], busy: int) -> Work | None:
        """The next message, begun.

        Args:
            may_begin: whether a message may be begun just now.
            busy: how much work is in hand; a message that a worker has died of runs with nothing beside it.
        """
        if any(work.deaths for work in self.begun) or time.monotonic() < self._mark_at:
            return None
        heads = [partition for partition in self if partition.waiting and may_begin(partition.waiting[0])]
        suspects = [partition for partition in heads if partition.deaths_of(partition.waiting[0])]
        if suspects:
            return None if busy else self._begin(suspects[0])
        for partition in heads:
            if len(partition.begun) < (self._window if partition.answered >= self._window else 1):
                work = self._begin(partition)
                if work:
                    key = (partition.topic, partition.number)
                    self._owned[key] = self._owned.pop(key)  # the others come first next time
                    return work
        return None

    def _begin(self, partition: Partition) -> Work | None:
        """Begin a partition's next message; None where it cannot be marked yet."""
        incoming = partition.waiting[0]
        work = Work(partition, incoming, Call(), deaths=partition.deaths_of(incoming))
        given_up = work.deaths >= MOST_DEATHS or incoming.error
        if partition.answered < self._window and not given_up:
            try:
                self._marks.write(self._consumer, {partition.at(incoming.offset): work.deaths}, begun=True)
            except KafkaException as error:
                logger.info("A message is not begun yet, for it cannot be marked: %s", error.args[0].str())
                self._mark_at = time.monotonic() + MARK_SECONDS
                return None
            work.marked = True
        partition.waiting.popleft()
        partition.waiting_bytes -= incoming.size
        partition.begun.append(work)
        return work

    def _assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign(partitions)
        self._apply_pause(partitions, paused=self._held)  # the library keeps a pause over a revocation
        try:
            found = self._marks.read(consumer, partitions) if partitions else []
        except Exception as error:  # no reason not to work
            logger.warning("The marks of earlier workers cannot be read: %s", error)
            found = [(None, Mark())] * len(partitions)
        for part, (offset, mark) in zip(partitions, found, strict=True):
            partition = Partition(part.topic, part.partition, offset, mark, paused=self._held)
            self._owned[part.topic, part.partition] = partition
            if mark.deaths:
                logger.warning("%d workers have died of the message at %s[%d]@%s", mark.deaths, part.topic,
                               part.partition, offset)  # fmt: skip
        self._log("Assigned", partitions)
        self._joined()

    def _revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        begun = [work for partition in self._drop(partitions) for work in partition.begun]
        # What is done may be in a transaction whose outcome is unknown: a commit now would win over it.
        kept = [work for work in begun if work.marked and not work.done]
        marked = {work.partition.at(work.incoming.offset): work.deaths for work in kept}
        if marked and self._reachable():
            try:
                self._marks.write(consumer, marked, begun=False)
            except KafkaException as error:
                logger.warning("Marks cannot be taken back: %s", error.args[0].str())
        consumer.incremental_unassign(partitions)
        self._log("Revoked", partitions)

    def _lose(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._drop(partitions)
        consumer.incremental_unassign(partitions)
        self._log("Lost", partitions)
        self._lost()

    def _drop(self, partitions: list[TopicPartition]) -> list[Partition]:
        """Forget these; what runs for them is cancelled, for the next owner runs it, or finds its file."""
        dropped = [
            found for part in partitions if (found := self._owned.pop((part.topic, part.partition), None)) is not None
        ]
        for partition in dropped:
            for work in partition.begun:
                work.call.cancel()
        return dropped

    def _apply_pause(self, partitions: list[TopicPartition], *, paused: bool) -> None:
        if partitions:
            (self._consumer.pause if paused else self._consumer.resume)(partitions)

    def _log(self, what: str, partitions: list[TopicPartition]) -> None:
        numbers = ", ".join(str(part.partition) for part in partitions) or "none"
        logger.info("%s partitions: %s; %d are owned", what, numbers, len(self._owned))
        self._changed(len(self._owned))


def offsets_behind(works: Iterable[Work]) -> list[TopicPartition]:
    """The offset behind the last work of each partition."""
    last = {work.partition: work.incoming.offset + 1 for work in works}
    return [partition.at(offset) for partition, offset in last.items()]
