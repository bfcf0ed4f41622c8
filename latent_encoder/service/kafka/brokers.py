"""The brokers as a command sees them: reached or refused within seconds, their errors in words, a topic read whole."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any, TypeVar

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka import admin as _admin

from latent_encoder.errors import LatentEncoderError
from latent_encoder.kafka_properties import without_secrets

from . import client_config

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings

admin: Any = _admin
"""The library's module, whose types mypy does not take."""

REACH_SECONDS = 10.0
"""How long the brokers may be silent before a command gives up."""

ANSWER_SECONDS = 3 * REACH_SECONDS
"""How long an answer is waited for; longer than any request's own time-out."""

SLICE_SECONDS = 0.5
"""How long one call waits: Ctrl-C is seen between two of them."""

READ_AT_ONCE = 500
REFUSALS = (KafkaError._AUTHENTICATION, KafkaError._SSL)

Result = TypeVar("Result")


def answer(future: Future[Result]) -> Result:
    """What an administrator's request brings. The library may wait for ever for a coordinator that has gone (its issues
    5456 and 5511).

    Raises:
        KafkaException: what the brokers say, or that they say nothing.
    """
    try:
        return future.result(ANSWER_SECONDS)
    except FutureTimeout:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None


class Brokers:
    """The clients of one command.

    Args:
        client_id: by which the brokers know it.

    Raises:
        LatentEncoderError: INVALID_REQUEST: a setting that librdkafka does not take.
    """

    def __init__(self, settings: Settings, client_id: str) -> None:
        self.settings, self.client_id = settings, client_id
        self._properties = client_config.connection(settings)
        self._error: KafkaError | None = None
        self.admin = self._make(admin.AdminClient, self._properties | {"client.id": client_id})

    def producer(self, transactional_id: str | None = None, **properties: Any) -> Producer:
        """A producer that writes each record once."""
        made = client_config.producer(self.settings, self.client_id, transactional_id)
        producer: Producer = self._make(Producer, made | properties)
        return producer

    def consumer(self) -> Consumer:
        """A consumer in no group, that sees no aborted transaction."""
        consumer: Consumer = self._make(Consumer, client_config.reader(self.settings, self.client_id))
        return consumer

    def topics(self) -> dict[str, Any]:
        """The metadata of each topic that this user may see; asking for them creates none.

        Raises:
            LatentEncoderError: KAFKA_UNAVAILABLE: no broker answers, or they do not let this user in.
        """
        give_up, pause = time.monotonic() + REACH_SECONDS, SLICE_SECONDS
        while True:
            try:
                seconds = min(pause, max(0.1, give_up - time.monotonic()))
                found: dict[str, Any] = self.admin.list_topics(timeout=seconds).topics
                return found
            except KafkaException as error:
                reason = error.args[0]
            self.admin.poll(0.1)  # tells what is wrong with the connection
            if self._error is not None and self._error.code() in REFUSALS:
                raise self.unavailable("The Kafka brokers do not let us in", self._error, retryable=False)
            if time.monotonic() >= give_up:
                words = f"No Kafka broker at {self.addresses} has answered within {REACH_SECONDS:g} s"
                raise self.unavailable(words, self._error or reason)
            pause = min(2 * pause, 2.0)  # an answer that takes longer than this is lost

    def partitions(self, topic: str) -> list[int]:
        """The numbers of a topic's partitions.

        Raises:
            LatentEncoderError: KAFKA_UNAVAILABLE: as ``topics``, and where this one is not there.
        """
        found = self.topics().get(topic)
        if found is None or found.error:
            raise LatentEncoderError(
                "KAFKA_UNAVAILABLE",
                f"There is no topic '{topic}' at {self.addresses}, or this user may not see it.",
                "Create it: python main.py topics create. What is missing: python main.py topics check.",
                retryable=False,
            )
        return sorted(found.partitions)

    def offsets(self, topic: str, wanted: Any) -> dict[int, int]:
        """By partition, an offset for readers that skip what is uncommitted; -1 where there is none such.

        Args:
            wanted: an ``admin.OffsetSpec``.

        Raises:
            LatentEncoderError: KAFKA_UNAVAILABLE.
        """
        asked = {TopicPartition(topic, number): wanted for number in self.partitions(topic)}
        committed = IsolationLevel.READ_COMMITTED
        found = self.admin.list_offsets(asked, isolation_level=committed, request_timeout=REACH_SECONDS)
        return {place.partition: self.result(answer).offset for place, answer in found.items()}

    def read(self, topic: str, start: Mapping[int, int], end: Mapping[int, int]) -> Iterator[Message]:
        """The messages of a topic between these offsets, by partition; those of one in their order.

        Raises:
            LatentEncoderError: KAFKA_UNAVAILABLE: the brokers fall silent, or this user may not read it.
        """
        left = {number for number, offset in start.items() if 0 <= offset < end[number]}
        if not left:
            return
        consumer = self.consumer()
        try:
            consumer.assign([TopicPartition(topic, number, start[number]) for number in left])
            heard_at = time.monotonic()
            while left:
                messages = consumer.consume(READ_AT_ONCE, SLICE_SECONDS / 5)
                for message in messages:
                    heard_at = time.monotonic()
                    yield from self._within(message, end, left)
                if time.monotonic() - heard_at > REACH_SECONDS:
                    raise self.unavailable(f"The topic '{topic}' cannot be read to its end", self._error)
        finally:
            consumer.close()

    def result(self, future: Future[Result]) -> Result:
        """What an administrator's request brings.

        Raises:
            LatentEncoderError: KAFKA_UNAVAILABLE, with what the brokers say.
        """
        try:
            return answer(future)
        except KafkaException as error:
            raise self.unavailable("The Kafka brokers refuse", error.args[0]) from error

    def unavailable(self, what: str, reason: KafkaError | None, retryable: bool | None = None) -> LatentEncoderError:
        """An error of the brokers' in words."""
        words = f" ({self.words(reason)})" if reason else ""
        hint = None if retryable is None else "Check KAFKA_SECURITY_PROTOCOL, KAFKA_SASL_* and KAFKA_SSL_*."
        return LatentEncoderError("KAFKA_UNAVAILABLE", f"{what}{words}.", hint, retryable=retryable)

    def words(self, error: KafkaError) -> str:
        """What the library says, without secrets and without the dot at its end."""
        return without_secrets(error.str(), self._properties).rstrip(". ") or str(error.name())

    @property
    def addresses(self) -> str:
        """The brokers that are asked first."""
        return str(self._properties["bootstrap.servers"])

    def _within(self, message: Message, end: Mapping[int, int], left: set[int]) -> Iterator[Message]:
        """The message, where it is one and lies before the end; takes partitions that are read out of ``left``."""
        number, offset, error = message.partition(), message.offset(), message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF and number is not None:
                left.discard(number)
            elif error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART):
                raise self.unavailable("The topic cannot be read", error)
            return
        assert number is not None and offset is not None
        if offset < end[number]:
            yield message
        if offset >= end[number] - 1:
            left.discard(number)

    def _make(self, kind: Any, properties: dict[str, Any]) -> Any:
        return client_config.make_client(kind, properties | {"error_cb": self._note})

    def _note(self, error: KafkaError) -> None:
        """Keep the reason of what goes wrong; that all brokers are down is none."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._error = error
