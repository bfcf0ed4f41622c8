"""``python main.py dlq list | show | replay``, on dead letters as the worker writes them, and on a worker's own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka.broker import Broker
from kafka.command_runs import Commands
from kafka.outcomes import requests, send, wait_answered
from kafka.topics import Topics, create_topics, produce, read_topic
from kafka.workers import WorkerProcess, make_picture

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.config import Settings
from latent_encoder.service.kafka.dead_letters import dead_letter_record
from latent_encoder.service.kafka.dlq import failures
from latent_encoder.service.kafka.messages import SHORT, read_request

BYTES = b"\x00\xff\x1b[31m"


@pytest.fixture
def commands(broker: Broker, topics: Topics, tmp_path: Path) -> Commands:
    """For fresh topics that no worker reads."""
    return Commands.on(broker.bootstrap, topics, tmp_path)


def fail(
    broker: Broker, topics: Topics, *records: dict[str, Any], code: str = "IMAGE_NOT_FOUND", **options: Any
) -> None:
    """Send requests, and write their dead letters as a worker does."""
    sent = {(message.partition(), message.offset()) for message in produce(broker.bootstrap, topics.request, records)}
    letters = []
    for message in read_topic(broker.bootstrap, topics.request, until=len(sent)):
        if (message.partition(), message.offset()) in sent:
            error = LatentEncoderError(code, "It failed.")
            incoming = read_request(message, Settings())
            told: dict[str, Any] = {"group": "g", "worker": "w", "attempts": 1} | options
            record = dead_letter_record(topics.dlq, incoming, error, **told)
            letters.append({name: value for name, value in record.items() if name != "topic"} | {"partition": 0})
    produce(broker.bootstrap, topics.dlq, letters)


def request(name: str, **more: Any) -> dict[str, Any]:
    return {"key": name, "value": json.dumps({"request_id": name, "image_path": "a.png"}), **more}


def test_no_dead_letter(commands: Commands) -> None:
    done = commands.run("dlq", "list")
    assert (done.code, done.out) == (0, "There is no such dead letter.\n")
    assert commands.run("dlq", "show", "0:0").code == 1
    assert commands.run("dlq", "replay", "--yes").code == 0


def test_the_list_and_what_is_chosen(broker: Broker, topics: Topics, commands: Commands) -> None:
    fail(broker, topics, request("a"))
    time.sleep(0.01)
    fail(broker, topics, {"value": b"no JSON"}, code="INVALID_REQUEST", attempts=3)
    time.sleep(0.01)
    fail(broker, topics, {"value": json.dumps({"image_path": "a.png"})}, request("c"), code="TIMEOUT")
    rows = commands.run("dlq", "list", "--json").lines
    assert [row["code"] for row in rows] == ["IMAGE_NOT_FOUND", "INVALID_REQUEST", "TIMEOUT", "TIMEOUT"]
    assert rows[0] | {"failed_at": "", "place": ""} == {
        "place": "",
        "failed_at": "",
        "code": "IMAGE_NOT_FOUND",
        "request_id": "a",
        "attempts": "1",
        "replayed": "-",
        "message": "It failed.",
    }
    assert (rows[1]["request_id"], rows[1]["attempts"]) == ("-", "3")
    (made,) = {row["request_id"] for row in rows[2:]} - {"c"}
    assert made.startswith(f"{topics.request}-"), "the id that the worker had made of the message's place"

    def chosen(*words: str) -> list[str]:
        return [row["place"] for row in commands.run("dlq", "list", "--json", *words).lines]

    places = [row["place"] for row in rows]
    assert chosen("--code", "timeout") == places[2:]
    assert chosen("--id", made) == [row["place"] for row in rows if row["request_id"] == made]
    assert chosen("--since", rows[1]["failed_at"], "--until", rows[1]["failed_at"]) == places[1:2]
    assert chosen("--since", "5m", "--limit", "2") == places[2:]
    assert chosen("--until", "1h") == []
    table = commands.run("dlq", "list").out
    assert [line.split()[0] for line in table.splitlines()] == ["PLACE", *places, "4"]
    assert "4 dead letters: 1 IMAGE_NOT_FOUND, 1 INVALID_REQUEST, 2 TIMEOUT" in table


@pytest.mark.parametrize(
    "words",
    [
        ("list", "--since", "yesterday"),
        ("list", "--since", "999999d"),
        ("list", "--limit", "0"),
        ("show", "1"),
        ("show",),
        ("replay", "--sure"),
        (),
    ],
)
def test_wrong_words(commands: Commands, words: tuple[str, ...]) -> None:
    done = commands.run("dlq", *words)
    assert (done.code, done.out) == (2, "")
    assert done.said


def test_a_dead_letter_is_shown_whole_and_writes_nothing_else_to_the_terminal(
    broker: Broker, topics: Topics, commands: Commands
) -> None:
    fail(broker, topics, {"key": b"k", "value": BYTES, "headers": [("a", b"1\n2"), ("a", None), ("b", BYTES)]})
    out = commands.run("dlq", "show", "0:0").out
    assert out.startswith("Dead letter 0:0\n  key: k\n")
    assert "\x1b" not in out
    assert "1\\n2" in out
    assert "value: b'\\x00\\xff\\x1b[31m'" in out
    assert "dlq.error.message" in out
    (whole,) = commands.run("dlq", "show", "--json", "--id", "k").lines
    assert whole["headers"][:3] == [["a", "1\n2"], ["a", None], ["b", {"base64": "AP8bWzMxbQ=="}]]
    assert whole["value"] == {"base64": "AP8bWzMxbQ=="}
    assert dict(whole["headers"][3:])["dlq.original.topic"] == topics.request


def test_a_replay_shows_first_and_then_sends_byte_for_byte(broker: Broker, topics: Topics, commands: Commands) -> None:
    headers = [("x", BYTES), ("x", b""), ("none", None), ("traceparent", b"00-1-2-01")]
    records = [request("a", headers=headers), {"key": b"", "value": BYTES}, {"key": None, "value": None}]
    fail(broker, topics, *records)
    before = read_topic(broker.bootstrap, topics.request)
    dry = commands.run("dlq", "replay")
    assert dry.code == 0, dry.said
    assert "Nothing is sent yet: --yes sends 3 messages." in dry.out
    assert len(read_topic(broker.bootstrap, topics.request)) == 3

    done = commands.run("dlq", "replay", "--yes")
    assert done.code == 0, done.said
    assert "3 messages are sent." in done.out
    after = read_topic(broker.bootstrap, topics.request)
    assert len(after) == 6
    letters = read_topic(broker.bootstrap, topics.dlq)
    assert len(letters) == 3, "they stay"

    def contents(messages: list[Any]) -> list[Any]:
        return sorted(repr((m.key(), m.value(), m.headers())) for m in messages)

    places = {(m.partition(), m.offset()) for m in before}
    replayed = [m for m in after if (m.partition(), m.offset()) not in places]
    assert contents(replayed) == contents(letters)
    assert sorted(repr((m.key(), m.value())) for m in replayed) == sorted(repr((m.key(), m.value())) for m in before)
    assert any((m.headers() or [])[:4] == headers for m in replayed)

    again = commands.run("dlq", "replay", "--yes")
    assert again.code == 0
    assert again.out.count("it was replayed already") == 3
    assert len(read_topic(broker.bootstrap, topics.request)) == 6
    assert "1 messages are sent." in commands.run("dlq", "replay", "0:0", "--yes", "--again").out
    assert len(read_topic(broker.bootstrap, topics.request)) == 7


def test_a_place_that_is_not_there_is_named_and_nothing_is_sent(
    broker: Broker, topics: Topics, commands: Commands
) -> None:
    fail(broker, topics, request("a"))
    refused = commands.run("dlq", "replay", "0:0", "99:0", "--yes")
    assert refused.code == 1
    assert "99:0" in refused.said
    assert len(read_topic(broker.bootstrap, topics.request)) == 1


def test_what_cannot_be_replayed(broker: Broker, topics: Topics, commands: Commands) -> None:
    fail(broker, topics, request("large"), length=SHORT)
    produce(broker.bootstrap, topics.dlq, [{"value": b"of another program", "partition": 0}])
    done = commands.run("dlq", "replay", "--yes")
    assert done.code == 0
    assert "its value was not kept" in done.out
    assert "it does not tell which topic it came from" in done.out
    assert len(read_topic(broker.bootstrap, topics.request)) == 1
    assert "value: left out" in commands.run("dlq", "show", "--id", "large").out


def test_the_topic_a_message_came_from_is_gone(broker: Broker, topics: Topics, commands: Commands) -> None:
    told = {"dlq.original.topic": "gone", "dlq.original.partition": "0", "dlq.original.offset": "0"}
    produce(broker.bootstrap, topics.dlq, [{"value": b"x", "headers": told, "partition": 0}])
    done = commands.run("dlq", "replay", "--yes")
    assert done.code == 1
    assert "There is no topic 'gone'" in done.said


def test_the_failures_of_a_history_are_told_apart() -> None:
    def headers(offset: int) -> list[tuple[str, bytes | None]]:
        told = {"original.topic": "t", "original.partition": 0, "original.offset": offset, "failed_at": f"at {offset}"}
        return [(f"dlq.{name}", str(value).encode()) for name, value in told.items()]

    assert failures([("x", b"1"), *headers(1), *headers(7)]) == [("t", "0", "1", "at 1"), ("t", "0", "7", "at 7")]
    assert failures([("dlq.worker", b"w")]) == []


@pytest.fixture(scope="module")
def served(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Topics, Commands, Path]]:
    """Topics with a worker behind them, and the folder that it shares."""
    topics, folder = Topics.fresh(), tmp_path_factory.mktemp("served")
    create_topics(broker.bootstrap, topics.request, topics.response, topics.dlq)
    with WorkerProcess(broker.bootstrap, topics, folder) as worker:
        worker.wait_ready()
        yield topics, Commands.on(broker.bootstrap, topics, folder), folder


def test_a_message_fails_twice_and_keeps_its_history(broker: Broker, served: tuple[Topics, Commands, Path]) -> None:
    topics, commands, folder = served
    group = f"{topics.request}-group"
    picture = str(folder / "pictures" / "late.png")
    send(broker.bootstrap, topics, requests(["late"], picture))
    wait_answered(broker.bootstrap, topics, group)
    assert commands.run("dlq", "replay", "--id", "late", "--yes").code == 0
    wait_answered(broker.bootstrap, topics, group)
    rows = commands.run("dlq", "list", "--json").lines
    assert [(row["request_id"], row["replayed"]) for row in rows] == [("late", "failed again"), ("late", "once")]
    first, second = (commands.run("dlq", "show", row["place"], "--json").lines[0]["headers"] for row in rows)
    assert second[: len(first)] == first
    assert [name for name, _ in second].count("dlq.failed_at") == 2

    make_picture(folder, "late.png")
    done = commands.run("dlq", "replay", "--code", "IMAGE_NOT_FOUND", "--yes")
    assert done.code == 0, done.said
    assert "a later dead letter tells of that" in done.out
    assert "1 messages are sent." in done.out
    wait_answered(broker.bootstrap, topics, group)
    answers = [json.loads(message.value()) for message in read_topic(broker.bootstrap, topics.response)]
    assert [answer["error_code"] for answer in answers] == ["IMAGE_NOT_FOUND", "IMAGE_NOT_FOUND", None]
    done = commands.run("dlq", "replay", "--yes")
    assert [line.split(" ", 1)[1][:11] for line in done.out.splitlines()] == ["is left out"] * 2
    assert len(read_topic(broker.bootstrap, topics.response)) == 3
