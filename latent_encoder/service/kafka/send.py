"""``send``: a reference client. It sends requests, tells where they stand, and with ``--wait`` hands on the answers.

The answers are read from where the response topic ends before anything is sent, in no group and without commits, so
that none is missed and any number of clients may wait at once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from pydantic import ValidationError

from latent_encoder.errors import LatentEncoderError
from latent_encoder.kafka_message import event_headers
from latent_encoder.kafka_publisher import delivery_code
from latent_encoder.models import EncodeRequest, EncodeResponse
from latent_encoder.service.config_sources import COMMAND_LINE
from latent_encoder.service.doors.pictures import NamedPicture, expand, is_one_picture
from latent_encoder.service.doors.progress import Progress, show_progress
from latent_encoder.service.exit_codes import DONE, FAILED, INTERRUPTED, SOME_FAILED
from latent_encoder.service.requests import error_response, parse_request

from .brokers import READ_AT_ONCE, SLICE_SECONDS, Brokers, admin
from .messages import CAUSATION_ID, REQUEST_TYPE, Headers, header, headers_of

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings

SOURCE = "/latent-encoder/send"
ENCODING = ("vae_model_name", "upscale_method", "megapixels")
"""The settings that are a request's, too. Those that are not set here are left to the worker's own settings."""

SHOWN = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outgoing:
    """A request that is to be sent, as JSON.

    Attributes:
        name: the picture's, as answers of many are told apart.
        headers: of its own event, whose id comes back with the answer.
    """

    name: str
    request: EncodeRequest
    value: bytes
    headers: Headers = field(default_factory=lambda: [*event_headers(REQUEST_TYPE, SOURCE)])


def fields_of_settings(settings: Settings, origins: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a request that the settings give. A folder for the latents is meant only on the command line:
    elsewhere OUTPUT_DIR is a worker's own."""
    fields = {name: getattr(settings, name) for name in ENCODING if name in settings.model_fields_set}
    if origins.get("output_dir") == COMMAND_LINE:
        fields["output_dir"] = str(settings.output_dir)
    return fields


def run(settings: Settings, named: Sequence[str], fields: Mapping[str, Any], *, wait: bool, as_named: bool) -> int:
    """Send a request for each picture; on stdout one line of JSON for each, its place or with ``wait`` its answer.

    Args:
        named: what ``--image-path`` names: pictures, folders, globs, ``-``.
        fields: the other fields of the requests.
        as_named: whether relative paths stay relative, to the workers' working directory.

    Returns:
        0 done, 1 failed, 3 some of many failed, 130 interrupted.

    Raises:
        LatentEncoderError: INVALID_REQUEST, where a request would be refused, and KAFKA_UNAVAILABLE: nothing is sent.
    """
    requests = make_requests(settings, named, fields, as_named=as_named)
    if not requests:
        logger.warning("There is no picture in what --image-path names.")
        return DONE
    brokers = Brokers(settings, f"send-{uuid4().hex[:8]}")
    brokers.partitions(settings.kafka_request_topic)
    client = _Client(brokers, settings, requests, wait)
    try:
        return client.run()
    except KeyboardInterrupt:
        logger.warning("Interrupted: %s", client.state())
        return INTERRUPTED
    finally:
        client.close()


def make_requests(
    settings: Settings, named: Sequence[str], fields: Mapping[str, Any], *, as_named: bool
) -> list[Outgoing]:
    """The requests for these pictures, checked as a worker does.

    Raises:
        LatentEncoderError: INVALID_REQUEST; it names the picture.
    """
    one = is_one_picture(named)
    if "request_id" in fields and not one:
        reason = "--request-id is for one picture, and these may be many."
        raise LatentEncoderError("INVALID_REQUEST", reason, "Leave it out: every request gets an id of its own.")
    pictures = [NamedPicture(named[0], named[0])] if one else list(expand(named, sys.stdin.buffer))
    return [_make_request(settings, picture, fields, as_named) for picture in pictures]


def _make_request(settings: Settings, picture: NamedPicture, fields: Mapping[str, Any], as_named: bool) -> Outgoing:
    path = picture.file if as_named else os.path.abspath(picture.file)
    if not as_named and not os.path.exists(path):
        logger.warning("There is no file '%s' here; the workers must have it.", path)
    own = {"request_id": uuid4().hex, **fields, "image_path": path, "timestamp": datetime.now(timezone.utc)}
    try:
        if as_named and ".." in path.replace("\\", "/").split("/"):
            raise LatentEncoderError("INVALID_REQUEST", "'image_path' contains '..', which no worker follows.")
        request = parse_request(own, settings)
    except LatentEncoderError as error:
        raise LatentEncoderError("INVALID_REQUEST", f"{picture.file!r}: {error.message}", error.hint) from error
    value = request.model_dump_json(include={"schema_version", *own})
    return Outgoing(picture.name, request, value.encode())


class _Client:
    """Sends, and waits."""

    def __init__(self, brokers: Brokers, settings: Settings, requests: list[Outgoing], wait: bool) -> None:
        self._brokers, self._settings, self._requests, self._wait = brokers, settings, requests, wait
        self._missing: dict[str, Outgoing] = {}
        self._sent = self._failed = 0
        self._consumer = self._read_from_the_end() if wait else None

    def run(self) -> int:
        with show_progress(len(self._requests), quiet=len(self._requests) == 1 or not self._wait) as progress:
            for outgoing, error, message in _deliver(self._brokers, self._settings, self._requests):
                self._note_delivery(outgoing, error, message, progress)
            if self._consumer:
                self._await_answers(self._consumer, progress)
        if len(self._requests) > 1:
            logger.info(progress.summary() if self._wait else self.state())
        if not self._failed:
            return DONE
        return FAILED if self._failed == len(self._requests) else SOME_FAILED

    def state(self) -> str:
        """How far it is."""
        total = len(self._requests)
        if self._sent < total:
            text = f"{self._sent:,} of {total:,} requests are known to be sent."
        else:
            text = f"{total:,} requests are sent."
        if self._wait:
            text += f" {len(self._missing):,} answers are missing{_some(list(self._missing))}."
        return text

    def close(self) -> None:
        if self._consumer:
            self._consumer.close()

    def _read_from_the_end(self) -> Consumer:
        topic = self._settings.kafka_response_topic
        ends = self._brokers.offsets(topic, admin.OffsetSpec.latest())
        consumer = self._brokers.consumer()
        consumer.assign([TopicPartition(topic, number, offset) for number, offset in ends.items()])
        return consumer

    def _note_delivery(
        self, outgoing: Outgoing, error: KafkaError | None, message: Message | None, progress: Progress
    ) -> None:
        request = outgoing.request
        if error is not None:
            refused = delivery_error(self._brokers, self._settings.kafka_request_topic, error)
            logger.error("%s: %s: %s", outgoing.name, refused.code, refused.message)
            self._failed += 1
            if self._wait:
                response = error_response(request.request_id, request.correlation_id, refused)
                self._print_answer(outgoing, response, progress)
            return
        self._sent += 1
        if self._wait:
            self._missing[request.request_id] = outgoing
        elif message is not None:
            place = {"topic": message.topic(), "partition": message.partition(), "offset": message.offset()}
            print(json.dumps({"request_id": request.request_id, "image_path": request.image_path, **place}), flush=True)

    def _await_answers(self, consumer: Consumer, progress: Progress) -> None:
        heard_at = time.monotonic()
        while self._missing and time.monotonic() - heard_at < self._settings.timeout:
            for message in consumer.consume(READ_AT_ONCE, SLICE_SECONDS / 5):
                if self._take(message, progress):
                    heard_at = time.monotonic()
        topic = self._settings.kafka_response_topic
        for request_id, outgoing in self._missing.items():
            error = LatentEncoderError(
                "TIMEOUT",
                f"No answer has come for {self._settings.timeout:g} s.",
                f"It may still come, to the topic '{topic}': see whether workers run, and read read_committed.",
            )
            logger.error("%s: %s: %s", outgoing.name, error.code, error.message, extra={"request_id": request_id})
            self._failed += 1
            correlation_id = outgoing.request.correlation_id
            self._print_answer(outgoing, error_response(request_id, correlation_id, error), progress)

    def _take(self, message: Message, progress: Progress) -> bool:
        """Whether this message answers one of the requests; each is answered once here, whatever comes after."""
        if (error := message.error()) is not None:
            if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise self._brokers.unavailable("The answers cannot be read", error)
            return False
        request_id = (message.key() or b"").decode("utf-8", "replace")
        outgoing = self._missing.get(request_id)
        if outgoing is None or not _is_answer_to(outgoing, message):
            return False
        try:
            response = EncodeResponse.model_validate_json(message.value() or b"")
        except ValidationError as reason:
            logger.warning("What came for %s is no EncodeResponse: %s", request_id, reason.errors()[0]["msg"])
            return False
        if response.request_id != request_id:
            return False
        del self._missing[request_id]
        if response.status == "error":
            self._failed += 1
            logger.error("%s: %s: %s", outgoing.name, response.error_code, response.error_message)
        self._print_answer(outgoing, response, progress)
        return True

    def _print_answer(self, outgoing: Outgoing, response: EncodeResponse, progress: Progress) -> None:
        response.metadata.setdefault("image_name", outgoing.name)  # else nobody could tell whose failure it is
        progress.add(response)
        with progress.aside(sys.stdout):
            print(response.model_dump_json(), flush=True)


def _is_answer_to(outgoing: Outgoing, message: Message) -> bool:
    """Whether it is not the answer to somebody else's request of the same id."""
    try:
        cause = header(headers_of(message), CAUSATION_ID)
    except LatentEncoderError:
        cause = None
    return cause is None or cause == header(outgoing.headers, "ce_id")


def _deliver(
    brokers: Brokers, settings: Settings, requests: Sequence[Outgoing]
) -> Iterator[tuple[Outgoing, KafkaError | None, Message | None]]:
    """Send all; each with its error, or with the message as it stands in the topic."""
    topic = settings.kafka_request_topic
    records = [
        {"topic": topic, "key": entry.request.request_id, "value": entry.value, "headers": entry.headers}
        for entry in requests
    ]
    for index, error, message in deliver(brokers.producer(), records):
        yield requests[index], error, message


def deliver(
    producer: Producer, records: Sequence[dict[str, Any]]
) -> Iterator[tuple[int, KafkaError | None, Message | None]]:
    """Send records; yields the index of each that has its delivery report. What has none at an interrupt is dropped."""
    reports: deque[tuple[int, KafkaError | None, Message | None]] = deque()

    def note(index: int, error: KafkaError | None, message: Message) -> None:
        reports.append((index, error, message))

    try:
        for index, record in enumerate(records):
            while True:
                try:
                    producer.produce(**record, on_delivery=partial(note, index))
                except BufferError:  # the queue is full: the brokers are slower than this loop
                    producer.poll(SLICE_SECONDS)
                    continue
                except KafkaException as error:
                    reports.append((index, error.args[0], None))
                break
            producer.poll(0)
            while reports:
                yield reports.popleft()
        while producer.flush(SLICE_SECONDS) or reports:  # each record's own time-out ends this
            while reports:
                yield reports.popleft()
    finally:
        producer.purge()
        producer.flush(SLICE_SECONDS)


def delivery_error(brokers: Brokers, topic: str, error: KafkaError) -> LatentEncoderError:
    """The error of the catalogue for a record that the brokers, or the library on their behalf, refuse."""
    code = delivery_code(error)
    messages = {
        "MESSAGE_TOO_LARGE": f"The topic '{topic}' takes no message that large",
        "KAFKA_UNAVAILABLE": "The Kafka brokers went away",
        "KAFKA_DELIVERY_FAILED": f"The topic '{topic}' does not take the message",
    }
    return LatentEncoderError(code, f"{messages[code]} ({brokers.words(error)}).")


def _some(ids: Sequence[str]) -> str:
    """The first few, in brackets."""
    more = f" and {len(ids) - SHOWN:,} more" if len(ids) > SHOWN else ""
    return f" ({', '.join(ids[:SHOWN])}{more})" if ids else ""
