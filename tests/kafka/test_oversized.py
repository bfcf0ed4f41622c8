"""Requests, answers and dead letters that are larger than a limit: ours, the client's, the topic's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from confluent_kafka import Message
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from kafka.broker import Broker
from kafka.groups import Group, ids
from kafka.outcomes import text_header
from kafka.supervisor import finish
from kafka.topics import TIMEOUT, admin_client
from kafka.worker_starter import Starter

REQUEST_BYTES = 1 << 16


class WithoutValue:
    """A message whose dead letter must be without its value and headers."""

    def __init__(self, message: Message) -> None:
        self._message = message

    def value(self) -> None:
        return None

    def headers(self) -> list[Any]:
        return []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)


def limit(group: Group, topic: str, size: int) -> None:
    """Set a topic's max.message.bytes."""
    entry = ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = admin_client(group.bootstrap)
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(TIMEOUT)


def padded(group: Group, name: str, size: int, field: str = "image_path") -> dict[str, Any]:
    """A request of exactly so many bytes."""
    fields = {"request_id": name, "image_path": group.picture}
    missing = size - len(json.dumps(fields | {field: ""}))
    return {"key": name, "value": json.dumps(fields | {field: "x" * missing})}


def test_requests_at_a_limit_and_above_it(broker: Broker, starter: Starter, tmp_path: Path) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=1) as group:
        spaces = json.dumps({"request_id": "spaces", "image_path": group.picture}).ljust(REQUEST_BYTES)
        sizes = {"limit": REQUEST_BYTES, "above": REQUEST_BYTES + 1, "large": 900_000}
        group.send([{"key": "spaces", "value": spaces}])
        group.send([padded(group, name, size) for name, size in sizes.items()])
        # Its dead letter, with headers, would be larger than the worker's own client sends.
        group.send([padded(group, "largest", 999_800) | {"headers": [("mine", b"x")]}])
        group.ask(["after"])
        group.sent[-2] = WithoutValue(group.sent[-2])
        group.worker()
        outcome = finish(group)
        codes = {name: answers[0]["error_code"] for name, answers in outcome.answers.items()}
        too_large = dict.fromkeys(("above", "large", "largest"), "MESSAGE_TOO_LARGE")
        assert codes.pop("limit") != "MESSAGE_TOO_LARGE"
        assert codes == {"spaces": None, "after": None} | too_large
        omitted = [text_header(letter, "dlq.value.omitted") for letter in outcome.dead if letter.value() is None]
        assert omitted == ["true"]


def test_answers_that_the_client_does_not_send(broker: Broker, starter: Starter, tmp_path: Path) -> None:
    (tmp_path / "client.properties").write_text("session.timeout.ms=3000\nmessage.max.bytes=1000\n", encoding="utf-8")
    with Group(broker.bootstrap, tmp_path, starter, partitions=2) as group:
        group.ask(ids("request", 10))
        worker = group.worker()
        outcome = finish(group)
        assert outcome.codes() == {"MESSAGE_TOO_LARGE": 10}
        assert worker.terminate() == 0


def test_answers_that_the_broker_does_not_take(broker: Broker, starter: Starter, tmp_path: Path) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=2) as group:
        limit(group, group.topics.response, 1000)
        group.ask(ids("request", 10), correlation_id="c" * 200)
        worker = group.worker()
        outcome = finish(group)
        assert outcome.codes() == {"MESSAGE_TOO_LARGE": 10}
        assert worker.terminate() == 0


def test_answers_that_are_too_large_only_together(broker: Broker, starter: Starter, tmp_path: Path) -> None:
    """The broker's limit holds for all that is sent at once to a partition."""
    with Group(broker.bootstrap, tmp_path, starter, partitions=1) as group:
        limit(group, group.topics.response, 3000)
        worker = group.worker().wait_ready()
        group.ask(ids("request", 40))
        outcome = finish(group)
        assert "is too large for its topic" not in worker.log()
        assert outcome.codes() == {"success": 40}


def test_a_dead_letter_that_the_broker_does_not_take(broker: Broker, starter: Starter, tmp_path: Path) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=1) as group:
        limit(group, group.topics.dlq, 2000)
        group.ask(["before"])
        group.send([padded(group, "large", 5000, "colour") | {"headers": [("mine", b"x" * 100)]}])
        group.send([{"key": "small", "value": b"{"}])
        group.send([{"value": b"{" * 5000}])
        group.ask(["after"])
        for index in (1, 3):
            group.sent[index] = WithoutValue(group.sent[index])
        group.worker()
        outcome = finish(group)
        assert outcome.codes() == {"success": 2, "INVALID_REQUEST": 2}
        omitted = [letter for letter in outcome.dead if letter.value() is None]
        assert [text_header(letter, "dlq.value.omitted") for letter in omitted] == ["true", "true"]
        assert len(outcome.dead) == 3


def test_a_topic_that_takes_no_answer_at_all_ends_the_worker_and_loses_nothing(
    broker: Broker, starter: Starter, tmp_path: Path
) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=1) as group:
        limit(group, group.topics.response, 100)
        group.ask(ids("request", 3))
        worker = group.worker()
        assert worker.wait(30) == 1
        assert "raise its max.message.bytes" in worker.log()
        limit(group, group.topics.response, 1 << 20)
        worker.start()
        outcome = finish(group)
        assert outcome.codes() == {"success": 3}
