"""``python main.py send`` on a real broker, and with a real worker."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from kafka.broker import Broker
from kafka.command_runs import Commands, finish
from kafka.outcomes import text_header
from kafka.topics import Topics, create_topics, produce, read_topic
from kafka.workers import WorkerProcess, make_picture

from latent_encoder.latent_file import load_latent


@pytest.fixture
def commands(broker: Broker, topics: Topics, tmp_path: Path) -> Commands:
    """For fresh topics that no worker reads."""
    return Commands.on(broker.bootstrap, topics, tmp_path)


@pytest.fixture(scope="module")
def served(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Commands, Path]]:
    """Topics with a worker behind them, and the folder that it shares."""
    topics, folder = Topics.fresh(), tmp_path_factory.mktemp("served")
    create_topics(broker.bootstrap, topics.request, topics.response, topics.dlq)
    with WorkerProcess(broker.bootstrap, topics, folder) as worker:
        worker.wait_ready()
        yield Commands.on(broker.bootstrap, topics, folder), folder


def sent_to(broker: Broker, topics: Any) -> list[Any]:
    return read_topic(broker.bootstrap, topics if isinstance(topics, str) else topics.request)


def test_a_request_is_sent_and_its_place_told(broker: Broker, topics: Topics, commands: Commands) -> None:
    (commands.here / "a.png").touch()
    words = ("--request-id", "one", "--correlation-id", "c1", "--deadline", "2030-01-02T03:04:05Z")
    done = commands.run("send", "--image_path", "a.png", *words, "--megapixels", "0.5", "--output-dir", "out")
    assert done.code == 0, done.said
    (line,) = done.lines
    (message,) = sent_to(broker, topics)
    place = {"topic": topics.request, "partition": message.partition(), "offset": message.offset()}
    assert line == {"request_id": "one", "image_path": str(commands.here / "a.png")} | place
    fields = json.loads(message.value())
    assert datetime.fromisoformat(fields.pop("timestamp").replace("Z", "+00:00")).tzinfo
    assert fields == {
        "schema_version": 1,
        "request_id": "one",
        "correlation_id": "c1",
        "image_path": str(commands.here / "a.png"),
        "megapixels": 0.5,
        "output_dir": str(commands.here / "out"),
        "deadline": "2030-01-02T03:04:05Z",
    }
    assert message.key() == b"one"
    assert text_header(message, "content-type") == "application/json"
    assert text_header(message, "ce_type") == "latent_encoder.encode_request.v1"


def test_what_is_not_said_is_left_to_the_worker(broker: Broker, topics: Topics, commands: Commands) -> None:
    done = commands.run("send", "--image-path", "sub/a.png", "--as-named", MEGAPIXELS="0.25", OUTPUT_DIR="elsewhere")
    assert done.code == 0, done.said
    (message,) = sent_to(broker, topics)
    fields = json.loads(message.value())
    assert fields["image_path"] == "sub/a.png"
    assert set(fields) == {"schema_version", "request_id", "image_path", "timestamp", "megapixels"}
    assert fields["megapixels"] == 0.25


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--megapixels", "99"], "MEGAPIXELS is '99'"),
        (["--resolution-steps", "0"], "'resolution_steps'"),
        (["--file-format", "gif"], "'file_format'"),
        (["--request-id", "../x"], "'request_id'"),
        (["--deadline", "soon"], "'deadline'"),
        (["--as-named", "--image-path", "../a.png"], "'..'"),
        (["--image-path", "b.png", "--request-id", "x"], "--request-id is for one picture"),
        (["--colour", "red"], "There is no flag '--colour'"),
        (["--image-path", "*.nothing"], "No file fits"),
    ],
)
def test_what_would_be_refused_is_not_sent(
    broker: Broker, topics: Topics, commands: Commands, words: list[str], reason: str
) -> None:
    done = commands.run("send", "--image-path", "a.png", *words)
    assert (done.code, done.out) == (2, "")
    assert reason in done.said
    assert not sent_to(broker, topics)


def test_pictures_of_one_name_in_two_folders_and_names_on_stdin(
    broker: Broker, topics: Topics, commands: Commands, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    for name in ("x/a.png", "y/a.png"):
        make_picture(outside, name)
    names = [str(outside / "pictures" / name) for name in ("x/a.png", "y/a.png")]
    done = commands.run("send", "--image-path", "-", stdin="\n".join(names))
    assert done.code == 0, done.said
    assert sorted(line["image_path"] for line in done.lines) == names
    assert len({line["request_id"] for line in done.lines}) == len(sent_to(broker, topics)) == 2
    assert "2 requests are sent." in done.said


def test_a_topic_that_is_not_there(broker: Broker, topics: Topics, commands: Commands) -> None:
    start = time.monotonic()
    done = commands.run("send", "--image-path", "a.png", KAFKA_REQUEST_TOPIC="nobody-made-this")
    assert (done.code, done.out) == (1, "")
    assert "KAFKA_UNAVAILABLE: There is no topic 'nobody-made-this'" in done.said
    assert "topics create" in done.said
    done = commands.run("send", "--image-path", "a.png", "--wait", KAFKA_RESPONSE_TOPIC="nobody-made-this")
    assert (done.code, done.out) == (1, "")
    assert not sent_to(broker, topics), "nothing is sent whose answer could not be read"
    assert time.monotonic() - start < 20


def test_a_broker_that_is_away(commands: Commands) -> None:
    start = time.monotonic()
    done = commands.run("send", "--image-path", "a.png", "--wait", KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert (done.code, done.out) == (1, "")
    assert "KAFKA_UNAVAILABLE: No Kafka broker at 127.0.0.1:1 has answered within 10 s" in done.said
    assert "refused" in done.said
    assert len(done.said.splitlines()) == 2, "one warning, one error: the library is kept quiet"
    assert 10 <= time.monotonic() - start < 20


def test_no_answer_comes(topics: Topics, commands: Commands) -> None:
    done = commands.run("send", "--image-path", "a.png", "--wait", "--timeout", "1", "--request-id", "lost")
    assert done.code == 1
    (line,) = done.lines
    assert (line["request_id"], line["status"], line["error_code"]) == ("lost", "error", "TIMEOUT")
    assert topics.response in line["error_hint"]


def test_ctrl_c_says_how_many_answers_are_missing(broker: Broker, topics: Topics, commands: Commands) -> None:
    process = commands.start("send", "--image-path", "a.png", "b.png", "c.png", "--wait")
    messages = read_topic(broker.bootstrap, topics.request, until=3)
    answered = json.loads(messages[0].value())["request_id"]
    answer = {"schema_version": 1, "status": "success", "request_id": answered}
    produce(broker.bootstrap, topics.response, [{"key": answered, "value": json.dumps(answer)}])
    assert process.stdout
    assert json.loads(process.stdout.readline())["request_id"] == answered
    os.killpg(process.pid, signal.SIGINT)
    done = finish(process)
    assert done.code == 130
    assert "3 requests are sent. 2 answers are missing" in done.said
    assert all(json.loads(message.value())["request_id"] in done.said for message in messages[1:])


def test_answers_from_before_and_of_others_are_not_mine(broker: Broker, topics: Topics, commands: Commands) -> None:
    def answer(name: str, **fields: Any) -> dict[str, Any]:
        told = {"schema_version": 1, "status": "success", "request_id": name, "metadata": {"image_name": "x"}} | fields
        return {"key": name, "value": json.dumps(told)}

    produce(broker.bootstrap, topics.response, [answer("mine", latent_file_path="/old")])
    process = commands.start("send", "--image-path", "a.png", "--wait", "--request-id", "mine")
    read_topic(broker.bootstrap, topics.request, until=1)
    broken = {"key": "mine", "value": "no JSON"}
    produce(broker.bootstrap, topics.response, [answer("another"), broken, answer("mine", latent_file_path="/new")])
    done = finish(process)
    assert done.code == 0, done.said
    assert [line["latent_file_path"] for line in done.lines] == ["/new"]
    assert "no EncodeResponse" in done.said


def test_an_answer_is_waited_for(served: tuple[Commands, Path]) -> None:
    commands, folder = served
    make_picture(folder, "one.png")
    words = ("--request-id", "one", "--correlation-id", "c1", "--file-format", "latent")
    done = commands.run("send", "--image-path", "pictures/one.png", "--wait", *words)
    assert done.code == 0, done.said
    (answer,) = done.lines
    assert (answer["status"], answer["request_id"], answer["correlation_id"]) == ("success", "one", "c1")
    assert answer["latent_file_path"] == str(folder / "latents" / "one.latent")
    assert load_latent(Path(answer["latent_file_path"]))


def test_the_answers_of_many_some_of_which_fail(served: tuple[Commands, Path]) -> None:
    commands, folder = served
    for number in range(12):
        make_picture(folder, f"many/{number}.png")
    (folder / "pictures/many/broken.png").write_bytes(b"no picture")
    done = commands.run("send", "--image-path", "pictures/many", "--wait", "--correlation-id", "many")
    assert done.code == 3, done.said
    by_name = {answer["metadata"]["image_name"]: answer for answer in done.lines}
    assert len(done.lines) == 13
    assert by_name["broken.png"]["error_code"] == "IMAGE_INVALID"
    assert sum(answer["status"] == "success" for answer in done.lines) == 12
    assert {answer["correlation_id"] for answer in done.lines} == {"many"}
    assert "13 pictures: 12 encoded, 0 already there, 1 failed" in done.said


def test_nobody_reads_the_answers(served: tuple[Commands, Path]) -> None:
    commands, folder = served
    make_picture(folder, "pipe.png")
    process = commands.start("send", "--image-path", "pictures/pipe.png", "--wait")
    assert process.stdout
    process.stdout.close()
    process.stdout = None
    done = finish(process)
    assert done.code == 1
    assert "Traceback" not in done.said
    assert "Exception ignored" not in done.said
