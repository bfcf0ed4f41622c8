"""The loop of a Kafka worker: requests in, files made, answers, dead letters and offsets out.

One thread polls, decides and publishes; the engine's slots encode beside it. What is begun is published in the order of
its partition, as many at once as are done.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message

from latent_encoder.errors import LatentEncoderError
from latent_encoder.models import EncodeResponse
from latent_encoder.service.encoder import Encoder
from latent_encoder.service.engines.base import Call
from latent_encoder.service.readiness import Readiness
from latent_encoder.service.requests import error_response
from latent_encoder.service.signals import Signals

from .assignment import MOST_DEATHS, Assignment, Work, offsets_behind
from .client_config import METADATA_REFRESH_MS
from .dead_letters import dead_letter_record
from .from_file import FromFile, killed_its_workers
from .hold import Hold, count_loss, is_away, takes_the_engine_down
from .marks import Marks
from .messages import SHORT, SHORTEST, WHOLE, Incoming, answer_record, read_request
from .numbers import Numbers
from .observing import check_brokers, measure_lag, tell_missing
from .transactions import CannotGoOn, Fenced, NotSent, Publisher, RecordTooLarge

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings

MOST_ATTEMPTS = 3
"""A message whose failure may pass is tried so often in one process."""

DRAIN_SECONDS = 20.0
"""How long what was begun may still be finished and published after the first signal."""

ANSWER, DEAD_LETTER = "answer", "dead letter"
MOST_TAKEN = 16
"""So many messages are read between two looks at what is done."""

IDLE_SECONDS, BUSY_SECONDS = 0.2, 0.005
RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.2, 5.0
LOOK_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Worker:
    """One member of the group. Every method is for the thread that polls.

    Args:
        name: as it stands in answers and dead letters.
    """

    def __init__(
        self,
        settings: Settings,
        encoder: Encoder,
        consumer: Consumer,
        publisher: Publisher,
        marks: Marks,
        readiness: Readiness,
        numbers: Numbers,
        signals: Signals,
        name: str,
    ) -> None:
        self._settings, self._encoder, self._consumer, self._publisher = settings, encoder, consumer, publisher
        self._numbers, self._signals, self._name = numbers, signals, name
        slots = encoder.engine.slots
        self._limit = 2 * slots  # as many wait for a slot as are in one: no slot waits for this thread
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="encode")
        self._marks = marks
        self._assignment = Assignment(
            consumer,
            marks,
            self._limit,
            changed=numbers.owned,
            joined=numbers.joined,
            lost=lambda: numbers.outside("The worker has lost its place in the group"),
            reachable=lambda: numbers.kafka_error is None,
        )
        self._running: set[Work] = set()
        self._finished = threading.Event()
        self._hold = Hold(settings, readiness)
        self._look_at = self._check_at = 0.0
        self._stop_at: float | None = None

    def start(self) -> None:
        """Join the group."""
        self._assignment.subscribe(self._settings.kafka_request_topic)

    def turn(self, *, begin: bool = True) -> None:
        """One turn of the loop.

        Args:
            begin: whether new messages may be begun.
        """
        self._settle()
        self._publish()
        self._try_again()
        if begin:
            self._begin()
        self._assignment.hold(not begin or self._hold.error is not None)
        self._poll()

    @property
    def busy(self) -> bool:
        """Whether anything that was begun is still to be published."""
        return bool(self._running) or bool(self._published_next())

    @property
    def gives_up(self) -> bool:
        """Whether the first signal is so long ago, or a second one has come, that nothing more is waited for."""
        if not self._signals.count:
            return False
        if self._stop_at is None:
            self._stop_at = time.monotonic() + DRAIN_SECONDS
        return self._signals.count > 1 or time.monotonic() > self._stop_at

    def cancel(self) -> None:
        """Let what runs end at once; it stays unanswered, for another worker."""
        for work in self._running:
            work.call.cancel()

    @property
    def has_threads(self) -> bool:
        """Whether an encode has not come back."""
        return any(work.response is None for work in self._running)

    def close(self) -> None:
        """Leave the group."""
        self.cancel()
        self._consumer.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    # Messages in

    def _poll(self) -> None:
        if self._running:
            self._finished.wait(BUSY_SECONDS)
            message = self._next_message(0)
        else:
            message = self._next_message(BUSY_SECONDS if self._assignment.waiting else IDLE_SECONDS)
        taken = 0
        while message is not None:
            self._take(message)
            taken += 1
            message = self._next_message(0) if taken < MOST_TAKEN else None
        self._assignment.balance()
        self._look_around()

    def _next_message(self, seconds: float) -> Message | None:
        try:
            return self._consumer.poll(seconds)
        except (KafkaException, SystemError) as error:  # so the library tells of what is fatal
            raise Fenced(f"The group cannot be gone on with: {error.__cause__ or error}.") from error

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is None:
            self._numbers.readable()
            self._assignment.take(read_request(message, self._settings))
        elif error.fatal():
            raise Fenced(error.str())
        elif error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            self._numbers.outside(error.str())
        elif error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            self._numbers.refused(f"Topic {self._settings.kafka_request_topic} cannot be read: {error.str()}")
        elif error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            tell_missing([self._settings.kafka_request_topic], self._numbers)
        elif error.code() != KafkaError._PARTITION_EOF:
            self._numbers.trouble(error.str())

    def _look_around(self) -> None:
        """What the health and metrics endpoints tell."""
        self._numbers.alive(len(self._running), self._assignment.waiting, self._hold.error)
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_SECONDS
            self._hear_clients()
            # What is paused fetches nothing that would tell.
            stale = self._hold.error is not None and self._numbers.kafka_error is None
            measure_lag(self._consumer, self._assignment, self._numbers, cached=not stale)
            # A member whose topic is deleted is told no more than that it has no partitions, as one that stands by is.
            in_trouble = self._numbers.kafka_error or not self._numbers.in_group
            if in_trouble or (len(self._assignment) == 0 and time.monotonic() >= self._check_at):
                self._check_at = time.monotonic() + METADATA_REFRESH_MS / 1000
                check_brokers(self._consumer, self._marks, self._settings, self._numbers)

    def _hear_clients(self) -> None:
        """Clients that are not asked keep what they have to say to themselves."""
        self._marks.poll()
        try:
            self._publisher.producer.poll(0)
        except (KafkaException, SystemError) as error:  # so the library tells of what is fatal
            raise Fenced(f"The producer cannot be gone on with: {error.__cause__ or error}.") from error

    # Encoding

    def _begin(self) -> None:
        while len(self._running) < self._limit:
            work = self._assignment.next_work(self._may_begin, len(self._running))
            if work is None:
                return
            self._numbers.begun()
            if work.incoming.error:
                self._fail(work, work.incoming.error)
            else:
                self._run(work)

    def _may_begin(self, incoming: Incoming) -> bool:
        """While something is away only what needs it no more, or never did, is begun."""
        if self._numbers.kafka_error is not None:
            return False  # to mark it would wait for the brokers
        return self._hold.error is None or incoming.request is None or incoming.is_late

    def _run(self, work: Work) -> None:
        request = work.incoming.request
        assert request is not None
        work.attempts += 1
        work.response = None
        work.call = call = Call()  # a new one: each try has the time that the settings give
        self._running.add(work)
        queued_at = work.incoming.received_at
        encoder = self._encoder
        if work.deaths >= MOST_DEATHS:
            encoder = FromFile(encoder.engine, self._settings, killed_its_workers(work.deaths))

        def encode() -> None:
            work.response = encoder.encode_image_to_latent(request, call=call, queued_at=queued_at)
            self._finished.set()

        self._pool.submit(encode)

    def _settle(self) -> None:
        """Decide what becomes of the work that has come back."""
        self._finished.clear()
        for work in [work for work in self._running if work.response is not None]:
            self._running.remove(work)
            response = work.response
            assert response is not None
            if not self._assignment.owns(work.partition) or work.call.cancelled:
                continue
            if response.status == "success":
                self._hold.end()
                self._finish(work, response, None)
            elif is_away(work.incoming.request, response, self._settings):
                count_loss(work, response)
                if work.engines_lost >= MOST_DEATHS:
                    self._fail(work, takes_the_engine_down(work.engines_lost))
                else:
                    self._hold.begin(work, response)
            elif response.retryable and work.attempts < MOST_ATTEMPTS and not work.incoming.is_late:
                logger.warning("Tried again: %s", response.error_message, extra=_fields(work))
                self._run(work)
            else:
                if not work.incoming.is_late:
                    self._hold.end()
                self._finish(work, response, _error_of(response))

    def _try_again(self) -> None:
        """Run what is held where what was away may be there again, or its deadline has passed."""
        for work in self._hold.due(self._assignment.owns, busy=bool(self._running)):
            work.attempts -= 1  # that something was away is not the message's fault
            self._run(work)

    def _fail(self, work: Work, error: LatentEncoderError) -> None:
        response = error_response(work.incoming.request_id, work.incoming.correlation_id, error)
        response.metadata |= {"processing_time_ms": 0.0, "queue_time_ms": 0.0}
        self._finish(work, response, error)

    def _finish(self, work: Work, response: EncodeResponse, error: LatentEncoderError | None) -> None:
        work.response, work.error, work.done = response, error, True

    # Answers out

    def _publish(self) -> None:
        while works := self._published_next():
            self._send(works)

    def _published_next(self) -> list[Work]:
        """Work that is done, from the front of each partition."""
        works: list[Work] = []
        for partition in self._assignment:
            for work in partition.begun:
                if not work.done or len(works) >= self._publisher.most_at_once:
                    break
                works.append(work)
        return works

    def _send(self, works: list[Work]) -> None:
        """Publish, however long it takes; what belongs to partitions that are lost meanwhile is dropped."""
        pause = RETRY_SECONDS
        while works := [work for work in works if self._assignment.owns(work.partition)]:
            parts = [(work, kind, record) for work in works for kind, record in self._records(work).items()]
            start = time.monotonic()
            try:
                self._publisher.publish([record for _, _, record in parts], offsets_behind(works), self._consumer)
            except RecordTooLarge as error:
                self._numbers.transaction("aborted", start)
                if len(works) > 1:  # a topic's limit holds for all that goes to a partition at once
                    for work in works:
                        self._send([work])
                    return
                work, kind, _ = parts[error.index]
                self._shorten(work, kind)
                continue
            except NotSent as error:
                self._numbers.transaction("aborted", start)
                self._numbers.cannot_send(str(error))
                if self.gives_up:
                    raise
                self._wait(pause)
                pause = min(2 * pause, LONGEST_RETRY_SECONDS)
                continue
            self._numbers.transaction("committed", start)
            self._numbers.sent()
            self._forget(works)
            return

    def _records(self, work: Work) -> dict[str, dict[str, Any]]:
        """The answer and the dead letter of a message; one without an id has no answer."""
        settings, incoming, response = self._settings, work.incoming, work.response
        assert response is not None
        records = {}
        if response.request_id is not None:
            records[ANSWER] = answer_record(
                settings.kafka_response_topic,
                incoming,
                response,
                f"/latent-encoder/{self._name}",
                length=work.lengths.get(ANSWER, WHOLE),
            )
        if work.error:
            records[DEAD_LETTER] = dead_letter_record(
                settings.kafka_dlq_topic,
                incoming,
                work.error,
                group=settings.kafka_consumer_group,
                worker=self._name,
                attempts=max(1, work.attempts, work.deaths, work.engines_lost),
                length=work.lengths.get(DEAD_LETTER, WHOLE),
            )
        return records

    def _shorten(self, work: Work, kind: str) -> None:
        """Leave out more of a record that its topic does not take."""
        if work.lengths.get(kind, WHOLE) == SHORTEST:
            raise CannotGoOn(f"A topic takes not even the shortest {kind}: raise its max.message.bytes.")
        work.lengths[kind] = SHORTEST if kind in work.lengths else SHORT
        logger.warning("The %s is too large for its topic: something is left out", kind, extra=_fields(work))
        if kind == ANSWER and work.lengths[kind] == SHORT:
            reason = "The answer is larger than its topic allows."
            self._fail(work, LatentEncoderError("MESSAGE_TOO_LARGE", reason, "Raise the topic's max.message.bytes."))

    def _forget(self, works: list[Work]) -> None:
        for work in works:
            partition, response = work.partition, work.response
            assert response is not None
            partition.begun.remove(work)
            partition.position = work.incoming.offset + 1
            partition.answered += 1
            self._numbers.answered(response, work.error)
            code = response.error_code or "success"
            logger.info("Answered", extra=_fields(work) | {"code": code})

    def _wait(self, seconds: float) -> None:
        """Pause, and stay in the group."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            message = self._next_message(left)
            if message is not None:
                self._take(message)
                self._assignment.balance()
            self._look_around()


def _error_of(response: EncodeResponse) -> LatentEncoderError:
    """The error that an answer tells of."""
    return LatentEncoderError(response.error_code or "INTERNAL", response.error_message or "", response.error_hint)


def _fields(work: Work) -> dict[str, Any]:
    """What a line of the log says of a message."""
    incoming = work.incoming
    place = f"{incoming.topic}[{incoming.partition}]@{incoming.offset}"
    return {"request_id": incoming.request_id, "correlation_id": incoming.correlation_id, "place": place}
