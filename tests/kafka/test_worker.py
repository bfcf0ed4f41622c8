"""One worker at work: answers, dead letters, headers, ids, and what it tells of itself."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from kafka.broker import Broker
from kafka.outcomes import check_outcome, requests, send, text_header, wait_answered
from kafka.topics import Topics, create_topics
from kafka.workers import WorkerProcess, make_picture


@pytest.fixture(scope="module")
def topics(broker: Broker) -> Topics:
    topics = Topics.fresh()
    create_topics(broker.bootstrap, topics.request, topics.response, topics.dlq)
    return topics


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worker")


@pytest.fixture(scope="module")
def picture(folder: Path) -> str:
    return make_picture(folder, "one.png")


@pytest.fixture(scope="module")
def worker(broker: Broker, topics: Topics, folder: Path, picture: str) -> Iterator[WorkerProcess]:
    with WorkerProcess(broker.bootstrap, topics, folder) as worker:
        yield worker.wait_ready()


class Session:
    """Everything that was sent to the one worker of this module."""

    def __init__(self, broker: Broker, topics: Topics, folder: Path) -> None:
        self.broker, self.topics, self.folder = broker, topics, folder
        self.sent: list[Any] = []

    def ask(self, *records: dict[str, Any]) -> Any:
        """Send records, wait for all answers, and check every promise; the outcome."""
        self.sent += send(self.broker.bootstrap, self.topics, list(records))
        wait_answered(self.broker.bootstrap, self.topics, f"{self.topics.request}-group")
        return check_outcome(self.broker.bootstrap, self.topics, self.folder, self.sent)


@pytest.fixture(scope="module")
def session(broker: Broker, topics: Topics, folder: Path, worker: WorkerProcess) -> Session:
    return Session(broker, topics, folder)


def answer_of(outcome: Any, name: str) -> dict[str, Any]:
    (answer,) = outcome.answers[name]
    return answer


def message_of(outcome: Any, name: str) -> Any:
    return next(message for message in outcome.messages if json.loads(message.value())["request_id"] == name)


def test_requests_are_answered_with_their_files(session: Session, picture: str) -> None:
    outcome = session.ask(*requests([f"plain-{number}" for number in range(20)], picture))
    answer = answer_of(outcome, "plain-7")
    assert answer["status"] == "success"
    assert answer["latent_file_path"] == str(session.folder / "latents" / "plain-7.safetensors")
    assert answer["metadata"]["request_id"] == "plain-7"
    assert answer["metadata"]["vae_name"] == "pixel_space"


def test_the_answer_bears_the_request_s_key_and_the_headers_that_are_passed_on(session: Session, picture: str) -> None:
    passed = [("correlation-id", b"order-1"), ("traceparent", b"00-aa-bb-01"), ("tracestate", b"x=1"),
              ("kafka_correlationId", b"\x00\xff")]  # fmt: skip
    (record,) = requests(["headers"], picture)
    outcome = session.ask(record | {"key": b"\xffodd", "headers": [*passed, ("other", b"stays"), ("ce_id", b"e-1")]})
    message = message_of(outcome, "headers")
    assert message.key() == b"\xffodd"
    headers = dict(message.headers())
    assert {name: headers[name] for name, _ in passed} == dict(passed)
    assert "other" not in headers
    assert headers["causation-id"] == b"e-1"
    assert answer_of(outcome, "headers")["correlation_id"] == "order-1"


def test_a_correlation_id_that_is_no_text_is_passed_on_and_no_more(session: Session, picture: str) -> None:
    (record,) = requests(["bytes"], picture)
    outcome = session.ask(record | {"headers": [("correlation-id", b"\xff\x00order")]})
    assert dict(message_of(outcome, "bytes").headers())["correlation-id"] == b"\xff\x00order"
    assert answer_of(outcome, "bytes")["correlation_id"] is None


def test_the_answer_is_a_cloud_event(session: Session, picture: str) -> None:
    outcome = session.ask(*requests(["event"], picture))
    headers = {name: value.decode() for name, value in message_of(outcome, "event").headers()}
    assert headers["content-type"] == "application/json"
    assert headers["ce_specversion"] == "1.0"
    assert headers["ce_type"] == "latent_encoder.encode_response.v1"
    assert headers["ce_source"] == "/latent-encoder/worker"
    assert headers["ce_id"]
    datetime.fromisoformat(headers["ce_time"].replace("Z", "+00:00"))


def test_a_cloud_event_in_binary_mode_is_a_request(session: Session, picture: str) -> None:
    (record,) = requests(["binary"], picture)
    headers = {"ce_specversion": "1.0", "ce_id": "1", "ce_source": "/shop", "ce_type": "shop.encode",
               "content-type": "application/json; charset=utf-8"}  # fmt: skip
    outcome = session.ask(record | {"headers": list(headers.items())})
    assert answer_of(outcome, "binary")["status"] == "success"


def test_a_structured_cloud_event_is_refused_in_words(session: Session, picture: str) -> None:
    (record,) = requests(["structured"], picture)
    outcome = session.ask(record | {"headers": [("content-type", "application/cloudevents+json")]})
    answer = answer_of(outcome, "structured")
    assert answer["error_code"] == "INVALID_REQUEST"
    assert "binary mode" in answer["error_hint"]


def test_without_an_id_the_key_is_the_id(session: Session, picture: str) -> None:
    outcome = session.ask({"key": "from-the-key", "value": json.dumps({"image_path": picture})})
    assert answer_of(outcome, "from-the-key")["status"] == "success"


def test_without_id_and_key_an_id_is_made_of_the_message_s_place(session: Session, picture: str) -> None:
    sent = send(session.broker.bootstrap, session.topics, [{"value": json.dumps({"image_path": picture})}])
    wait_answered(session.broker.bootstrap, session.topics, f"{session.topics.request}-group")
    place = f"{session.topics.request}-{sent[0].partition()}-{sent[0].offset()}-{sent[0].timestamp()[1]}"
    assert (session.folder / "latents" / f"{place}.safetensors").is_file()
    session.sent.append(_WithId(sent[0], place))
    session.ask()


class _WithId:
    """A message whose id was made by the worker."""

    def __init__(self, message: Any, name: str) -> None:
        self._message, self._name = message, name

    def value(self) -> bytes:
        return json.dumps({"request_id": self._name}).encode()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)


WRONG = {
    "no json": (b"{", "INVALID_REQUEST"),
    "not utf-8": (b'{"request_id": "\xff"}', "INVALID_REQUEST"),
    "a list": (b"[1]", "INVALID_REQUEST"),
    "no value": (None, "INVALID_REQUEST"),
    "empty": (b"", "INVALID_REQUEST"),
    "deep": (b"[" * 100_000, "MESSAGE_TOO_LARGE"),
    "deep and small": (b"[" * 10_000, "INVALID_REQUEST"),
    "missing field": (b"{}", "INVALID_REQUEST"),
    "unknown field": (b'{"image_path": "a.png", "colour": 1}', "INVALID_REQUEST"),
    "wrong value": (b'{"image_path": "a.png", "megapixels": 99}', "INVALID_REQUEST"),
    "no such picture": (b'{"image_path": "PICTURES/none.png"}', "IMAGE_NOT_FOUND"),
    "outside": (b'{"image_path": "/etc/hostname"}', "PATH_NOT_ALLOWED"),
}


def test_what_cannot_be_encoded_is_answered_and_dead_lettered(session: Session) -> None:
    pictures = str(session.folder / "pictures").encode()
    records = []
    for name, (value, _) in WRONG.items():
        told = value.replace(b"PICTURES", pictures) if value else value
        records.append({"key": f"wrong-{name}".replace(" ", "-"), "value": told, "headers": [("mine", b"kept")]})
    outcome = session.ask(*records)
    for name, (_, code) in WRONG.items():
        answer = answer_of(outcome, f"wrong-{name}".replace(" ", "-"))
        assert (name, answer["error_code"]) == (name, code)
        assert answer["error_message"]
        assert answer["error_hint"]


def test_what_tells_no_id_is_dead_lettered_alone(session: Session) -> None:
    before = len(session.ask().messages)
    outcome = session.ask({"value": b"{"}, {"value": b"[]", "key": b"\xff\xfe"}, {"value": None, "key": "not an id!"})
    assert len(outcome.messages) == before
    letter = next(letter for letter in outcome.dead if letter.value() == b"{" and letter.key() is None)
    assert text_header(letter, "dlq.original.topic") == session.topics.request
    assert text_header(letter, "dlq.original.group") == f"{session.topics.request}-group"
    assert text_header(letter, "dlq.error.code") == "INVALID_REQUEST"
    assert text_header(letter, "dlq.error.stage") == "read"
    assert text_header(letter, "dlq.attempts") == "1"
    assert text_header(letter, "dlq.worker") == "worker"


def test_a_message_produced_twice_gets_two_answers_that_name_one_file(session: Session, picture: str) -> None:
    (record,) = requests(["twice"], picture)
    records = [record | {"partition": number} for number in (0, 0, 1, 2)]
    session.sent += send(session.broker.bootstrap, session.topics, records)
    wait_answered(session.broker.bootstrap, session.topics, f"{session.topics.request}-group")
    outcome = check_outcome(session.broker.bootstrap, session.topics, session.folder, session.sent)
    answers = outcome.answers["twice"]
    assert [answer["status"] for answer in answers] == ["success"] * 4
    assert sorted(answer["metadata"]["reused"] for answer in answers) == [False, True, True, True]


def test_the_same_id_with_another_recipe_is_a_conflict(session: Session, picture: str) -> None:
    session.ask(*requests(["conflict"], picture))
    sent = send(session.broker.bootstrap, session.topics, requests(["conflict"], picture, megapixels=0.02))
    session.sent += sent
    wait_answered(session.broker.bootstrap, session.topics, f"{session.topics.request}-group")
    outcome = check_outcome(session.broker.bootstrap, session.topics, session.folder, session.sent)
    assert sorted(answer["error_code"] or "" for answer in outcome.answers["conflict"]) == ["", "REQUEST_ID_CONFLICT"]


def test_a_passed_deadline_is_answered_timeout(session: Session, picture: str) -> None:
    past = (datetime.now(timezone.utc) - timedelta(seconds=5)).isoformat()
    outcome = session.ask(*requests(["late"], picture, deadline=past))
    answer = answer_of(outcome, "late")
    assert answer["error_code"] == "TIMEOUT"
    assert not (session.folder / "latents" / "late.safetensors").exists()


def test_health_and_metrics(session: Session, worker: WorkerProcess, picture: str) -> None:
    assert worker.health("/health/live").json() == {"status": "live"}
    ready = worker.health("/health/ready")
    assert ready.status_code == 200
    assert ready.json()["engine"] == "embedded"
    before = worker.metric("latent_encoder_kafka_transactions_total")
    dead = worker.metric("latent_encoder_kafka_dead_letters_total")
    session.ask(*requests(["counted"], picture), {"value": b"{"})
    assert worker.metric("latent_encoder_kafka_transactions_total") > before
    assert worker.metric("latent_encoder_kafka_dead_letters_total") == dead + 1
    assert worker.metric("latent_encoder_kafka_partitions") == 4
    assert worker.metric("latent_encoder_kafka_in_flight") == 0
    deadline = time.monotonic() + 5
    while worker.metric("latent_encoder_kafka_lag") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert worker.metric("latent_encoder_kafka_lag") == 0
    assert worker.health("/v1/encode").status_code == 404
