"""Messages to Kafka, one at a time and confirmed, by an idempotent producer.

Nothing is handed to the producer before a broker has answered, so a broker that is away has never got half of
anything. The Kafka library is imported when the first message is sent.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import LatentEncoderError
from .kafka_message import LatentMessage
from .kafka_properties import LOGGER, client_logger, load_confluent_kafka, quiet, without_secrets
from .publisher_settings import OWN_PREFIX, PROPERTIES_NAME, PublisherSettings

FIRST_SLICE, LONGEST_SLICE = 0.25, 1.0
"""How long, in seconds, one question to the broker waits; between them an interrupt is seen. It grows, because an
answer that takes longer than a slice is lost."""
POLL = 0.1
TOPIC_WAIT = 3.0
"""How long a topic may be unknown, in seconds: a broker that makes topics on demand needs a moment."""

_LOOK_FIRST = "It is not known whether the message arrived: look into the topic before you send it again."

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Delivery:
    """Where a message stands; ``timestamp`` in milliseconds since 1970. ``str()`` is ``topic[partition]@offset``."""

    topic: str
    partition: int
    offset: int
    timestamp: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


class KafkaPublisher:
    """Sends messages through one producer, kept for as long as the settings, and the files that they name, stay the
    same. Not for two threads at once.
    """

    def __init__(self) -> None:
        self._producer: Any = None
        self._made_from: Any = None
        self._error: Any = None  # the last that the client told of

    def publish(
        self, settings: PublisherSettings, topic: str, message: LatentMessage, *, interrupted: Callable[[], None]
    ) -> Delivery:
        """Send one message, and wait until all replicas in sync have it.

        Args:
            topic: one of ``settings.topics``.
            interrupted: called about once a second while this waits; to end it, it raises. Then, as after any
                error, nothing is left that could be sent later.

        Raises:
            LatentEncoderError: TOPIC_NOT_ALLOWED; INVALID_REQUEST for a setting that librdkafka refuses;
                KAFKA_UNAVAILABLE without the library, for a broker that does not answer within
                ``settings.timeout_seconds``, or refuses the credentials; MESSAGE_TOO_LARGE; KAFKA_DELIVERY_FAILED for
                all else that a broker says.
        """
        if topic not in settings.topics:
            offered = f"Choose one of {', '.join(settings.topics)}." if settings.topics else None
            allow = f"The administrator allows a topic with the line {OWN_PREFIX}topics=a,b in {PROPERTIES_NAME}."
            raise LatentEncoderError("TOPIC_NOT_ALLOWED", f"The topic {topic!r:.260} is not allowed.", offered or allow)
        kafka = load_confluent_kafka()
        deadline = time.monotonic() + settings.timeout_seconds
        try:
            self._open(settings)
            self._reach(topic, settings, deadline, interrupted)
            return self._send(topic, message, settings, deadline, interrupted)
        except kafka.KafkaException as error:  # at once, or what an idempotent producer cannot go on from
            self.close()
            raise _delivery_failed(topic, error.args[0], settings) from None
        except BaseException:  # an interrupt of ComfyUI's is no Exception
            self.close()
            raise

    def close(self) -> None:
        """Give up whatever waits, and close the connections. The next message opens them again."""
        producer, self._producer, self._made_from = self._producer, None, None
        if producer is not None:
            producer.purge()
            producer.flush(0)

    def _open(self, settings: PublisherSettings) -> None:
        """Have a producer for these settings."""
        made_from = (dict(settings.client), _files_of(settings.client))
        if self._producer is not None and self._made_from != made_from:
            self.close()
        if self._producer is None:
            kafka = load_confluent_kafka()
            try:
                self._producer = kafka.Producer(self._client_config(settings.client))
            except (kafka.KafkaException, AttributeError, TypeError, ValueError) as error:
                cause = error.args[0] if error.args else error
                reason = cause.str() if isinstance(cause, kafka.KafkaError) else str(cause)
                raise LatentEncoderError(
                    "INVALID_REQUEST",
                    f"'{PROPERTIES_NAME}' is refused: {without_secrets(reason, settings.client)}.",
                    "Correct the line; the names and values are those of librdkafka.",
                ) from None  # the library's error may hold what is hidden here
            self._made_from = made_from
        self._producer.poll(0)  # what has happened since the last message does not matter
        self._error = None

    def _client_config(self, client: Mapping[str, str]) -> dict[str, Any]:
        defaults = {
            "client.id": "latent-encoder",
            "linger.ms": 0,
            "log.connection.close": False,  # brokers hang up on those who are idle
            "partitioner": "murmur2_random",  # as Java's clients spread the keys
        }
        fixed = {"acks": "all", "enable.idempotence": True, "error_cb": self._note}
        return defaults | quiet(client) | fixed | {"logger": client_logger(LOGGER, client)}

    def _note(self, error: Any) -> None:
        """Keep the reason of what goes wrong; that all brokers are down is none."""
        if error.code() != error._ALL_BROKERS_DOWN:
            self._error = error

    def _reach(self, topic: str, settings: PublisherSettings, deadline: float, interrupted: Callable[[], None]) -> None:
        """Wait until a broker answers and knows the topic."""
        started, wait = time.monotonic(), FIRST_SLICE
        interrupted()
        while (problem := self._ask(topic, min(wait, deadline - time.monotonic()))) is not None:
            self._producer.poll(POLL)  # tells what is wrong with the connection
            interrupted()
            now = time.monotonic()
            _check_reach(topic, problem, self._error, settings, waited=now - started, over=now >= deadline)
            wait = min(2 * wait, LONGEST_SLICE)

    def _ask(self, topic: str, seconds: float) -> Any:
        """What stands in the way of sending to a topic; None where nothing does."""
        kafka = load_confluent_kafka()
        try:
            return self._producer.list_topics(topic, timeout=max(seconds, 0.01)).topics[topic].error
        except kafka.KafkaException as error:
            return error.args[0]

    def _send(
        self,
        topic: str,
        message: LatentMessage,
        settings: PublisherSettings,
        deadline: float,
        interrupted: Callable[[], None],
    ) -> Delivery:
        """Hand the message to the producer, and wait for its delivery report."""
        reports: list[tuple[Any, Any]] = []
        self._producer.produce(
            topic,
            value=message.value,
            key=message.key,
            headers=message.headers,
            on_delivery=lambda error, sent: reports.append((error, sent)),
        )
        while not reports:
            try:
                interrupted()
            except BaseException:
                logger.warning("Latent Encoder: interrupted while a message was sent to '%s'. %s", topic, _LOOK_FIRST)
                raise
            if time.monotonic() >= deadline:
                raise LatentEncoderError(
                    "KAFKA_UNAVAILABLE",
                    f"The Kafka broker did not confirm the message within {settings.timeout_seconds:g} s "
                    f"({_words(self._error, settings)}).",
                    _LOOK_FIRST,
                )
            self._producer.poll(POLL)
        refusal, sent = reports[0]
        if refusal is not None:
            raise _delivery_failed(topic, refusal, settings)
        return Delivery(sent.topic(), sent.partition(), sent.offset(), sent.timestamp()[1])


def _files_of(client: Mapping[str, str]) -> list[tuple[str, int, int]]:
    """The state of the files that the settings name, so that a renewed certificate is used."""
    found = []
    for name, value in client.items():
        if name.endswith(".location"):
            try:
                status = os.stat(value)
            except (OSError, ValueError):
                continue
            found.append((name, status.st_size, status.st_mtime_ns))
    return found


def _check_reach(
    topic: str, problem: Any, connection: Any, settings: PublisherSettings, *, waited: float, over: bool
) -> None:
    """Raise where it is no use to wait any longer for a broker and its topic.

    Args:
        problem: what the last question brought.
        connection: what the client last told of its connections, or None.
    """
    if connection is not None and connection.code() == connection._AUTHENTICATION:
        raise LatentEncoderError(
            "KAFKA_UNAVAILABLE",
            f"The Kafka broker refuses to let us in ({_words(connection, settings)}).",
            f"The administrator corrects the sasl.* lines in '{PROPERTIES_NAME}'.",
            retryable=False,
        )
    if problem.code() in (problem.TOPIC_AUTHORIZATION_FAILED, problem.TOPIC_EXCEPTION):
        raise _delivery_failed(topic, problem, settings)
    if problem.code() == problem.UNKNOWN_TOPIC_OR_PART and waited > TOPIC_WAIT:
        reason = f"There is no topic '{topic}' on the broker, or we may not see it."
        raise LatentEncoderError("KAFKA_DELIVERY_FAILED", reason, "Create the topic, and give us the right to write.")
    if over:
        raise LatentEncoderError(
            "KAFKA_UNAVAILABLE",
            f"No Kafka broker was ready within {settings.timeout_seconds:g} s; nothing was sent "
            f"({_words(connection or problem, settings)}).",
        )


def _delivery_failed(topic: str, error: Any, settings: PublisherSettings) -> LatentEncoderError:
    """The error of the catalogue for one that the broker, or librdkafka on its behalf, gives to a message."""
    reason = _words(error, settings)
    code = delivery_code(error)
    if code == "MESSAGE_TOO_LARGE":
        return LatentEncoderError(
            code,
            f"The message is larger than Kafka allows for the topic '{topic}' ({reason}).",
            "Set payload to 'reference'; the limits are message.max.bytes of the client and the broker, and the "
            "topic's max.message.bytes.",
        )
    if code == "KAFKA_UNAVAILABLE":
        return LatentEncoderError(code, f"The Kafka broker went away ({reason}).", _LOOK_FIRST)
    return LatentEncoderError(code, f"Kafka refused the message for the topic '{topic}' ({reason}).")


def delivery_code(error: Any) -> str:
    """The catalogue's code for a ``KafkaError`` that a message got: MESSAGE_TOO_LARGE, KAFKA_UNAVAILABLE or
    KAFKA_DELIVERY_FAILED."""
    if error.code() in (error.MSG_SIZE_TOO_LARGE, error.RECORD_LIST_TOO_LARGE):
        return "MESSAGE_TOO_LARGE"
    if error.code() in (error._MSG_TIMED_OUT, error._TIMED_OUT, error._TRANSPORT, error._ALL_BROKERS_DOWN):
        return "KAFKA_UNAVAILABLE"
    return "KAFKA_DELIVERY_FAILED"


def _words(error: Any, settings: PublisherSettings) -> str:
    """What the client says, without secrets and without the dot at its end."""
    return without_secrets(error.str(), settings.client).rstrip(".") if error is not None else "no answer"
