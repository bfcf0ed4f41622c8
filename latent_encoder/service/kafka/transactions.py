"""Answers, dead letters and offsets go out together: in one transaction, or, at least once, records before offsets.

Nothing slow happens inside a transaction: an open one holds up every reader of the answers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from latent_encoder.kafka_publisher import delivery_code

CALL_SECONDS = 10.0
"""How long one call to the brokers may take before it is made again."""

OFFSETS_SECONDS, GRACE_SECONDS = 5.0, 2.0
"""How long adding the offsets may take, and how much later that may come back before it counts as a call that hangs."""

IN_DOUBT_SECONDS = 90.0
"""How long a commit whose outcome is unknown is asked for again before the process ends; a new one finds out."""

MOST_AT_ONCE = 20
"""The answers that share a transaction at most."""

ADMINISTRATORS = (
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.INVALID_TRANSACTION_TIMEOUT,
)
"""What only an administrator can mend, in the brokers or in our settings."""

FENCED_CODES = (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH)

logger = logging.getLogger(__name__)


class Fenced(Exception):
    """This producer can write no more: another process has its name, or its state is lost. Start the process again."""


class Hangs(Exception):
    """A call of the library's does not come back."""


class CannotGoOn(Exception):
    """What only an administrator can mend."""


class RecordTooLarge(Exception):
    """A topic takes no message that large; nothing was sent.

    Attributes:
        index: of the record.
    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


class NotSent(Exception):
    """Nothing was sent, because of the brokers; the same may be sent again."""


class Publisher(Protocol):
    """Sends records and commits the offsets of the messages that they answer.

    Attributes:
        most_at_once: of how many messages ``publish`` is given the records at most.
    """

    producer: Producer
    most_at_once: int

    def start(self) -> None:
        """Make it ready; raises Fenced or NotSent."""

    def publish(self, records: list[dict[str, Any]], offsets: list[TopicPartition], consumer: Consumer) -> None:
        """Send all of it.

        Args:
            records: what ``Producer.produce`` takes.
            offsets: the next ones to read.
            consumer: the member of the group that has read the messages.

        Raises:
            RecordTooLarge, NotSent: no offset is committed, and of a transaction nothing is visible. Without one, what
                stands beside the record that was refused may be.
            Fenced: it may be unknown whether it was committed; a new process of the same name learns it.
            CannotGoOn: it was refused for good.
        """


class ExactlyOnce:
    """One transaction for everything: readers that skip what is uncommitted see all of it, or nothing.

    Args:
        make_producer: with a transactional id, the same each time.
        turned: told now and then that a call which takes long does not hang.
    """

    most_at_once = MOST_AT_ONCE

    def __init__(self, make_producer: Callable[[], Producer], turned: Callable[[], None]) -> None:
        self.producer, self._make_producer, self._turned = make_producer(), make_producer, turned
        self._started = False

    def start(self) -> None:
        try:
            self.producer.init_transactions(CALL_SECONDS)
            self._started = True
        except KafkaException as error:
            raise _judge(error) from error

    def publish(self, records: list[dict[str, Any]], offsets: list[TopicPartition], consumer: Consumer) -> None:
        if not self._started:
            self.start()
        try:
            self.producer.begin_transaction()
        except KafkaException as error:
            reason = error.args[0]
            if reason.txn_requires_abort():  # else the next one would fail in the same way
                self._abort(error, committing=False)
            elif not reason.retriable():
                raise Fenced(reason.str()) from error
            raise _judge(error) from error
        committing = False
        try:
            _produce(self.producer, records, self._turned)
            self._send_offsets(offsets, consumer)
            committing = True
            self._commit()
        except Hangs as error:
            self._renew()
            raise NotSent("the library does not come back from a call") from error
        except KafkaException as error:
            self._abort(error, committing=committing)
            raise _judge(error) from error
        except (RecordTooLarge, NotSent):
            self._abort(None, committing=False)
            raise

    def _renew(self) -> None:
        """Go on with a new producer of the same id, which ends the old one's transaction, and fences it. Only for a
        transaction whose commit was not begun."""
        try:
            self.producer, self._started = self._make_producer(), False
        except KafkaException as error:
            raise Fenced(error.args[0].str()) from error

    def _send_offsets(self, offsets: list[TopicPartition], consumer: Consumer) -> None:
        """Add the offsets to the transaction.

        The library's call may wait for ever, whatever its time limit, where the group's coordinator was restarted
        (librdkafka issues 5456 and 5511): it gets a thread that can be left behind.
        """
        outcome: Future[None] = Future()
        producer, member = self.producer, consumer.consumer_group_metadata()

        def send() -> None:
            try:
                producer.send_offsets_to_transaction(offsets, member, OFFSETS_SECONDS)
                outcome.set_result(None)
            except BaseException as error:
                outcome.set_exception(error)

        threading.Thread(target=send, name="send-offsets", daemon=True).start()
        try:
            outcome.result(OFFSETS_SECONDS + GRACE_SECONDS)
        except FutureTimeout as error:
            raise Hangs from error

    def _commit(self) -> None:
        give_up = time.monotonic() + IN_DOUBT_SECONDS
        while True:
            try:
                self.producer.commit_transaction(CALL_SECONDS)
                return
            except KafkaException as error:
                reason = error.args[0]
                if not reason.retriable():
                    raise
                # It may have been committed: only the same call again tells.
                logger.warning("It is not known yet whether a transaction is committed: %s", reason.str())
                self._turned()
                if time.monotonic() > give_up:
                    raise Fenced("A transaction's outcome stays unknown.") from error

    def _abort(self, cause: KafkaException | None, *, committing: bool) -> None:
        if cause is not None and cause.args[0].fatal():
            return
        give_up = time.monotonic() + IN_DOUBT_SECONDS
        while True:
            try:
                self.producer.abort_transaction(CALL_SECONDS)
                return
            except KafkaException as error:
                self._turned()
                if error.args[0].retriable() and time.monotonic() < give_up:
                    continue
                if not committing and error.args[0].code() not in FENCED_CODES:
                    self._renew()
                    return
                raise Fenced(f"A transaction cannot be aborted: {error.args[0].str()}.") from error


class AtLeastOnce:
    """Records first, then the offsets: a crash between them sends the same records again, and so does a record that is
    refused beside others. Therefore one message at a time.

    Args:
        turned: told now and then that a call which takes long does not hang.
    """

    most_at_once = 1

    def __init__(self, make_producer: Callable[[], Producer], turned: Callable[[], None]) -> None:
        self.producer, self._turned = make_producer(), turned

    def start(self) -> None:
        """Nothing to do."""

    def publish(self, records: list[dict[str, Any]], offsets: list[TopicPartition], consumer: Consumer) -> None:
        try:
            try:
                _produce(self.producer, records, self._turned)
            except (RecordTooLarge, NotSent, KafkaException):
                self._drop()
                raise
            results = consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            raise _judge(error) from error
        for result in results or []:
            if result.error:
                raise NotSent(result.error.str())

    def _drop(self) -> None:
        """Let none of the records that are not on their way yet be sent. A transaction's abort does that by itself, and
        this before it would cost it an epoch."""
        self.producer.purge(in_flight=False)
        self.producer.flush(0)


def _produce(producer: Producer, records: list[dict[str, Any]], turned: Callable[[], None]) -> None:
    """Send the records and wait for the brokers' word on each."""
    failed: list[tuple[int, KafkaError]] = []

    def watch(index: int) -> Callable[[KafkaError | None, Message], None]:
        return lambda error, _: failed.append((index, error)) if error else None

    for index, record in enumerate(records):
        try:
            producer.produce(**record, on_delivery=watch(index))
        except KafkaException as error:
            if delivery_code(error.args[0]) == "MESSAGE_TOO_LARGE":
                raise RecordTooLarge(index) from error
            raise
        except BufferError as error:
            raise NotSent("the producer's queue is full") from error
    try:
        while producer.flush(CALL_SECONDS):
            turned()  # each record's own time-out (message.timeout.ms) ends this
    except SystemError as error:  # the library raises a fatal error here, and then calls `watch` with it pending
        raise error.__cause__ or error from None
    for index, reason in failed:
        if delivery_code(reason) == "MESSAGE_TOO_LARGE":
            raise RecordTooLarge(index)
    if failed:
        raise NotSent(failed[0][1].str())


def _judge(error: KafkaException) -> Exception:
    """What an error of the library's means: whether the same may be tried again."""
    reason = error.args[0]
    if reason.code() in ADMINISTRATORS:
        return CannotGoOn(f"{reason.str()}.")
    if reason.fatal():
        return Fenced(reason.str())
    return NotSent(reason.str())
