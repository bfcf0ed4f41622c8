"""What the worker's health and metrics endpoints tell. Written by the thread that polls, read by others."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

from latent_encoder.errors import LatentEncoderError
from latent_encoder.models import EncodeResponse
from latent_encoder.service.metrics import Metrics
from latent_encoder.service.readiness import Readiness

SLOW_SECONDS = 3.0
"""A loop that has not turned for so long waits for the brokers, the engine, or a folder that hangs."""

STUCK_SECONDS = 60.0
"""A loop that has not turned for so long is dead: longer than any call of its that waits for the brokers."""

SAID_AGAIN_SECONDS = 30.0
TRANSACTION_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 15.0)

ALL_DOWN = "/ brokers are down"
_ADDRESS = re.compile(r"[^\s']*:\d+[^\s:,']*")  # of a broker, as the library writes it
_VARYING = re.compile(r"\d+")  # the times, counts and ports in what is otherwise the same reason

logger = logging.getLogger(__name__)


class Numbers:
    """The state of one worker.

    Args:
        hide: takes the secrets out of a text of the Kafka library. Whoever asks for our health is told no addresses,
            either; the log has them.

    Attributes:
        kafka_error: what is the matter with the brokers; None while nothing is.
    """

    def __init__(self, metrics: Metrics, readiness: Readiness, hide: Callable[[str], str]) -> None:
        self.metrics, self._readiness, self._hide = metrics, readiness, hide
        self.kafka_error: LatentEncoderError | None = None
        self._topics_missing = False
        self._outside: LatentEncoderError | None = _unavailable("The worker has not joined its group yet.")
        self._refused: LatentEncoderError | None = None
        self._hold_error: LatentEncoderError | None = None
        self._send_error: LatentEncoderError | None = None
        self._turned_at = time.monotonic()
        self._said: dict[str, float] = {}
        self._count = 0
        registry = metrics.registry
        self._in_flight = Gauge(
            "latent_encoder_kafka_in_flight", "Messages that are being encoded, or wait for a slot.", registry=registry
        )
        self._waiting = Gauge("latent_encoder_kafka_waiting", "Messages that wait in this worker.", registry=registry)
        self._partitions = Gauge("latent_encoder_kafka_partitions", "Partitions that it owns.", registry=registry)
        self._lag = Gauge(
            "latent_encoder_kafka_lag", "Messages that are not answered yet, by partition.", ["partition"],
            registry=registry,
        )  # fmt: skip
        self._begun = Counter("latent_encoder_kafka_begun", "Messages that were begun.", registry=registry)
        self._transactions = Counter(
            "latent_encoder_kafka_transactions", "Publications, by outcome: committed or aborted.", ["outcome"],
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "latent_encoder_kafka_transaction_seconds", "How long a publication took.", buckets=TRANSACTION_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._dead = Counter("latent_encoder_kafka_dead_letters", "Dead letters, by code.", ["code"], registry=registry)

    def error(self) -> LatentEncoderError | None:
        """Why this worker can take no work; None where it can."""
        of_kafka = self._send_error or self.kafka_error or self._outside or self._refused or self._silence()
        return self._readiness.error() or self._hold_error or of_kafka

    @property
    def is_stuck(self) -> bool:
        """Whether the loop turns no more."""
        return time.monotonic() - self._turned_at > STUCK_SECONDS

    def alive(self, running: int, waiting: int, hold_error: LatentEncoderError | None) -> None:
        """The loop turns."""
        self.turned()
        self._hold_error = hold_error
        self._in_flight.set(running)
        self._waiting.set(waiting)

    def turned(self) -> None:
        """The thread that polls is not stuck."""
        self._turned_at = time.monotonic()

    def owned(self, count: int) -> None:
        """This worker has so many partitions now."""
        self._partitions.set(count)
        self._lag.clear()
        if count > self._count:
            self.readable()
        elif count == self._count:  # fewer may be for want of brokers
            self.connected()
        self._count = count

    def cannot_send(self, reason: str) -> None:
        """Answers do not go out; what else the brokers do says nothing of that."""
        self._send_error = self._told(f"Answers cannot be sent: {reason}")

    def sent(self) -> None:
        """Answers go out."""
        self._send_error = None
        self.connected()

    @property
    def in_group(self) -> bool:
        """Whether this worker is a member of its group, as far as is known."""
        return self._outside is None

    def joined(self) -> None:
        """This worker is a member of its group."""
        self._outside = None

    def outside(self, reason: str) -> None:
        """This worker is no member of its group; that the brokers answer does not make it one."""
        self._outside = self._told(reason)

    def refused(self, reason: str) -> None:
        """The requests cannot be read; only a message or a new assignment shows that they can be again."""
        self._refused = self._told(reason)

    def readable(self) -> None:
        """Requests come, or are about to."""
        self._refused = None
        self.connected()

    def missing(self, reason: str, hint: str) -> None:
        """Topics are not there; that the brokers answer, or give us partitions of another, does not bring them back."""
        self._topics_missing = True
        self.trouble(reason, hint)

    def complete(self) -> None:
        """All topics are there."""
        self._topics_missing = False
        self.connected()

    def connected(self) -> None:
        """The brokers answer."""
        if self.kafka_error is not None and not self._topics_missing:
            self.kafka_error = None
            logger.info("Kafka answers")

    def trouble(self, reason: str, hint: str | None = None) -> None:
        """The brokers do not do what they should."""
        error = self._told(reason, hint)
        if self.kafka_error is None or _VARYING.sub("", reason) != ALL_DOWN:  # that they are down never says why
            self.kafka_error = error

    def _told(self, reason: str, hint: str | None = None) -> LatentEncoderError:
        """Log a reason, where it is not just the last one again; the error that whoever asks for our health is told."""
        kind, now = _VARYING.sub("", reason), time.monotonic()
        if now - self._said.get(kind, -SAID_AGAIN_SECONDS) >= SAID_AGAIN_SECONDS:
            self._said[kind] = now
            logger.warning("Kafka: %s", f"{reason}. {hint}" if hint else reason)
        return _unavailable(f"{_ADDRESS.sub('a broker', self._hide(reason)).rstrip('.')}.", hint)

    def _silence(self) -> LatentEncoderError | None:
        """While the brokers let the loop wait for an answer, it cannot say so itself."""
        waits = time.monotonic() - self._turned_at
        return (
            _unavailable("The worker's loop waits: for the brokers, the engine or a folder.")
            if waits > SLOW_SECONDS
            else None
        )

    def lag(self, partition: int, count: int) -> None:
        """How many messages of a partition are not answered yet."""
        self._lag.labels(str(partition)).set(count)

    def begun(self) -> None:
        """A message was begun."""
        self._begun.inc()

    def transaction(self, outcome: str, start: float) -> None:
        """A publication that began at ``start`` (monotonic) has ended."""
        self._transactions.labels(outcome).inc()
        self._seconds.observe(time.monotonic() - start)

    def answered(self, response: EncodeResponse, error: LatentEncoderError | None) -> None:
        """A message is answered."""
        self.metrics.count(response)
        if error:
            self._dead.labels(error.code).inc()


def _unavailable(reason: str, hint: str | None = None) -> LatentEncoderError:
    return LatentEncoderError("KAFKA_UNAVAILABLE", reason, hint)
