"""PublishLatentToKafka in real ComfyUI processes, against a real Apache Kafka."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from comfyui.hosts import Host
from comfyui.prompts import Outcome, Prompt, node, outcome, run, save_probe
from comfyui.servers import Server, Servers, install_models, install_pack
from confluent_kafka import Message
from kafka.broker import Broker, ExistingBroker, session_broker, started_broker
from kafka.topics import create_topics, read_topic

TIMEOUT = 3
SLACK = 5.0  # seconds that a busy machine may take longer
BLOCKED = "import sys\nsys.modules['confluent_kafka'] = None\nNODE_CLASS_MAPPINGS = {}\n"
Write = Callable[..., None]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker | ExistingBroker]:
    with session_broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture(scope="module")
def secure_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with started_broker(tmp_path_factory.mktemp("secure_broker"), sasl=True, tls=True) as broker:
        yield broker


@pytest.fixture
def topic(broker: Broker | ExistingBroker, prefix: str, host: Host) -> str:
    """A fresh topic."""
    name = f"{prefix}-{time.time_ns()}"
    create_topics(broker.bootstrap, name)
    return name


def properties_of(server: Server) -> Path:
    return server.folder / "user" / "__latent_encoder" / "client.properties"


@pytest.fixture
def write(server: Server) -> Iterator[Write]:
    """Writes the server's client.properties: the topics that are allowed, and lines by name."""

    def write(*topics: str, **lines: str | int) -> None:
        path = properties_of(server)
        path.parent.mkdir(parents=True, exist_ok=True)
        names = {"latent_encoder.topics": ",".join(topics), "latent_encoder.timeout_seconds": TIMEOUT, **lines}
        path.write_text("".join(f"{name}={value}\n" for name, value in names.items()), encoding="utf-8")

    yield write
    properties_of(server).unlink(missing_ok=True)


def publish(record: Any, topic: str, **inputs: Any) -> dict[str, Any]:
    widgets = {"key": "", "payload": "reference", "correlation_id": ""}
    return node("PublishLatentToKafka", record=record, topic=topic, **{**widgets, **inputs})


def save_and_publish(prefix: str, topic: str, kind: str = "plain", **inputs: Any) -> Prompt:
    return {**save_probe(kind, f"{prefix}/latent"), "3": publish(["2", 1], topic, **inputs)}


def sent(result: Outcome) -> dict[str, Any]:
    """What the node says of its one message."""
    assert result.success, result.text
    return result.all("kafka")[0]


def messages(broker: Any, topic: str) -> list[Message]:
    return read_topic(broker.bootstrap, topic)


def header(message: Message) -> dict[str, bytes]:
    return dict(message.headers())


def options_of(server: Server) -> list[str]:
    info = server.client.object_info("PublishLatentToKafka")["PublishLatentToKafka"]
    kind, options = info["input"]["required"]["topic"]
    return kind if isinstance(kind, list) else options["options"]


def test_a_reference(server: Server, broker: Broker, write: Write, topic: str, prefix: str) -> None:
    write("other", topic, **{"bootstrap.servers": broker.bootstrap})
    assert options_of(server) == ["other", topic]
    told = {"extra_pnginfo": {"latent_encoder": {"request_id": "request-7"}}}
    result = run(server, save_and_publish(prefix, topic, correlation_id="c-1"), extra_data=told)
    place = sent(result)
    (message,) = messages(broker, topic)
    assert json.loads(message.value()) == result.record == place["record"]
    assert Path(result.record["path"]).is_file()
    assert (message.partition(), message.offset()) == (place["partition"], place["offset"])
    assert place["published"] == f"{topic}[{message.partition()}]@{message.offset()}"
    assert place["topic"] == topic
    assert message.key() == place["key"].encode() == b"request-7"
    assert header(message)["correlation-id"] == b"c-1"
    assert header(message)["content-type"] == b"application/json"


@pytest.mark.parametrize("file_format", ["safetensors", "latent", "pt", "npy"])
def test_inline(server: Server, broker: Broker, write: Write, topic: str, prefix: str, file_format: str) -> None:
    write(topic, **{"bootstrap.servers": broker.bootstrap})
    prompt = save_probe("plain", f"{prefix}/latent", file_format=file_format)
    result = run(server, {**prompt, "3": publish(["2", 1], topic, payload="inline", key="größe")})
    sent(result)
    (message,) = messages(broker, topic)
    assert message.value() == Path(result.record["path"]).read_bytes()
    assert json.loads(header(message)["latent-record"]) == result.record
    assert message.key() == "größe".encode()


def test_a_loaded_latent(server: Server, broker: Broker, write: Write, topic: str, prefix: str) -> None:
    write(topic, **{"bootstrap.servers": broker.bootstrap})
    saved = run(server, save_probe("plain", f"{prefix}/latent")).record
    load = node("LoadLatentFromDisk", latent_file=f"{prefix}/{saved['filename']} [output]")
    place = sent(run(server, {"1": load, "2": publish(["1", 1], topic)}))
    (message,) = messages(broker, topic)
    assert json.loads(message.value()) == place["record"] == saved
    assert message.key().decode() == saved["file_sha256"]


def test_its_outputs_go_on_and_it_always_runs(
    server: Server, broker: Broker, write: Write, topic: str, prefix: str
) -> None:
    """The record that comes out can be sent again; the place is text for any node; a repeated prompt sends again."""
    write(topic, **{"bootstrap.servers": broker.bootstrap})
    record = run(server, save_probe("plain", f"{prefix}/latent")).record
    prompt = {
        "1": publish(record, topic, key="first"),
        "2": publish(["1", 0], topic, correlation_id=["1", 1], key="second"),
    }
    for _ in range(2):
        result = run(server, prompt)
        assert result.success, result.text
    found = messages(broker, topic)
    assert sorted(message.key() for message in found) == [b"first"] * 2 + [b"second"] * 2
    places = {f"{topic}[{entry.partition()}]@{entry.offset()}" for entry in found if entry.key() == b"first"}
    assert {header(entry)["correlation-id"].decode() for entry in found if entry.key() == b"second"} == places


def test_sixteen_prompts(server: Server, broker: Broker, write: Write, topic: str, prefix: str) -> None:
    write(topic, **{"bootstrap.servers": broker.bootstrap})
    ids = [server.client.submit(save_and_publish(prefix, topic, key=f"k{number}")) for number in range(16)]
    results = [outcome(server.client.wait(prompt_id, timeout=120)) for prompt_id in ids]
    found = {entry.key().decode(): entry for entry in messages(broker, topic)}
    assert sorted(found) == sorted(f"k{number}" for number in range(16))
    for number, result in enumerate(results):
        entry = found[f"k{number}"]
        assert json.loads(entry.value()) == result.record
        assert (sent(result)["partition"], sent(result)["offset"]) == (entry.partition(), entry.offset())


FORGED = {
    "absolute": ({"filename": "/etc/passwd", "subfolder": ""}, "PATH_NOT_ALLOWED"),
    "parent": ({"filename": "../secret.safetensors"}, "PATH_NOT_ALLOWED"),
    "subfolder": ({"subfolder": "../.."}, "PATH_NOT_ALLOWED"),
    "absolute-subfolder": ({"subfolder": "/etc"}, "PATH_NOT_ALLOWED"),
    "backslash": ({"filename": "..\\secret.safetensors"}, "PATH_NOT_ALLOWED"),
    "other-folder": ({"type": "temp"}, "LATENT_NOT_FOUND"),
    "other-type": ({"type": "user"}, "INVALID_REQUEST"),
    "null-type": ({"type": None}, "INVALID_REQUEST"),
    "null-filename": ({"filename": None}, "INVALID_REQUEST"),
    "null-checksum": ({"file_sha256": None}, "INVALID_REQUEST"),
    "other-checksum": ({"file_sha256": "0" * 64}, "LATENT_INVALID"),
    "link-out": ({"filename": "link.safetensors"}, "PATH_NOT_ALLOWED"),
    "no-latent": ({"filename": "notes.txt"}, "FORMAT_UNSUPPORTED"),
}


def test_forged_records(server: Server, broker: Broker, write: Write, topic: str, prefix: str, tmp_path: Path) -> None:
    write(topic, **{"bootstrap.servers": broker.bootstrap})
    record = run(server, save_probe("plain", f"{prefix}/latent")).record
    folder = server.output / prefix
    (tmp_path / "secret.safetensors").write_bytes(Path(record["path"]).read_bytes())
    (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (folder / "notes.txt").write_bytes(Path(record["path"]).read_bytes())
    for name, (lies, code) in FORGED.items():
        refused = run(server, {"1": publish(record | lies, topic, payload="inline")})
        assert refused.code == code, f"{name}: {refused.text}"
    for wrong in ("text", 3, {}):
        refused = run(server, {"1": publish(wrong, topic)})
        assert refused.code == "INVALID_REQUEST", refused.text
    assert messages(broker, topic) == []
    lies = {"path": "/etc/passwd", "vae_name": "other"}
    sent(run(server, {"1": publish(record | lies, topic)}))
    assert json.loads(messages(broker, topic)[0].value()) == record, "what the file itself says is what is sent"
    Path(record["path"]).write_bytes(b"changed")
    assert run(server, {"1": publish(record, topic)}).code == "LATENT_INVALID"


def test_topics_and_choices_that_are_not_allowed(
    server: Server, broker: Broker, write: Write, topic: str, prefix: str
) -> None:
    write("another", **{"bootstrap.servers": broker.bootstrap})
    refused = run(server, save_and_publish(prefix, topic))
    assert refused.code == "TOPIC_NOT_ALLOWED", refused.text
    assert "another" in refused.text
    assert run(server, save_and_publish(prefix, "another", payload="both")).code == "INVALID_REQUEST"
    assert messages(broker, topic) == []


def test_inline_that_is_too_large(server: Server, broker: Broker, write: Write, topic: str, prefix: str) -> None:
    """A 16 MB latent: for our own limit, for librdkafka's, and a small one for the topic's own."""
    small = f"{topic}-small"
    create_topics(broker.bootstrap, small, config={"max.message.bytes": "2000"})
    address = {"bootstrap.servers": broker.bootstrap}
    write(topic, small, **address)
    refused = run(server, save_and_publish(prefix, topic, "large", payload="inline"))
    assert refused.code == "MESSAGE_TOO_LARGE", refused.text
    write(topic, small, **address, **{"latent_encoder.inline_max_bytes": 100_000_000})
    for name, kind in ((topic, "large"), (small, "plain")):
        refused = run(server, save_and_publish(prefix, name, kind, payload="inline"))
        assert refused.code == "MESSAGE_TOO_LARGE", refused.text
        assert messages(broker, name) == [], "nor is it sent in another way"
    sent(run(server, save_and_publish(prefix, topic, "large")))


def test_without_the_file_it_says_what_to_do(server: Server, prefix: str, write: Write) -> None:
    assert options_of(server) == []
    refused = run(server, save_and_publish(prefix, "any"))
    assert refused.code == "KAFKA_UNAVAILABLE", refused.text
    assert "client.properties" in refused.text
    assert "latent_encoder.topics" in refused.text


def test_a_file_that_is_wrong_and_then_right(
    server: Server, broker: Broker, write: Write, topic: str, prefix: str
) -> None:
    """Every mistake is named, without a restart the next run uses what was written, and the routes do not serve it."""
    address = {"bootstrap.servers": broker.bootstrap}
    for lines, word in [
        ({"acks": "0", "plugin.library.paths": "x.so"}, "plugin.library.paths"),
        ({"no.such.setting": "1"}, "no.such.setting"),
        ({"latent_encoder.topik": "1"}, "latent_encoder.topik"),
        ({"security.protocol": "TELEPATHY"}, "security.protocol"),
    ]:
        write(topic, **address, **lines, **{"sasl.password": "correct horse"})
        refused = run(server, save_and_publish(prefix, topic))
        assert refused.code == "INVALID_REQUEST", refused.text
        assert word in refused.text
    with properties_of(server).open("a", encoding="utf-8") as file:
        file.write("a line of no meaning: correct horse\n")
    refused = run(server, save_and_publish(prefix, topic))
    assert (refused.code, "Line 6" in refused.text) == ("INVALID_REQUEST", True), refused.text
    assert options_of(server) == []
    assert messages(broker, topic) == []
    for path in ("userdata/client.properties", "userdata/..%2F__latent_encoder%2Fclient.properties"):
        answer = httpx.get(f"{server.process.url}/{path}", headers={"comfy-user": "__latent_encoder"})
        assert answer.status_code >= 400
        assert "correct horse" not in answer.text
    write(topic, **address)
    sent(run(server, save_and_publish(prefix, topic)))
    assert len(messages(broker, topic)) == 1
    assert "correct horse" not in server.log()


def test_passwords_and_encryption(server: Server, secure_broker: Broker, write: Write, prefix: str) -> None:
    topic = f"{prefix}-{time.time_ns()}"
    create_topics(secure_broker.bootstrap, topic)
    right = secure_broker.sasl_tls_client("SCRAM-SHA-512")
    wrong = "n0t-the-right-one"
    write(topic, **(right | {"sasl.password": wrong, "debug": "security"}))
    refused = run(server, save_and_publish(prefix, topic))
    assert refused.code == "KAFKA_UNAVAILABLE", refused.text
    assert "authentication" in refused.text.lower()
    write(topic, **right)
    sent(run(server, save_and_publish(prefix, topic, payload="inline")))
    assert len(messages(secure_broker, topic)) == 1
    for secret in (wrong, secure_broker.user.password):
        assert secret not in refused.text + str(refused.messages) + server.log()


def test_a_broker_that_is_away(server: Server, write: Write, prefix: str, tmp_path: Path) -> None:
    """Killed or frozen: after the stated time it is said so, ComfyUI answers meanwhile, Interrupt ends the wait, and
    nothing comes later.
    """
    with started_broker(tmp_path / "broker") as broker:
        create_topics(broker.bootstrap, "away")
        write("away", **{"bootstrap.servers": broker.bootstrap})
        sent(run(server, save_and_publish(prefix, "away", key="before")))
        for leave, come_back in ((broker.pause, broker.resume), (broker.kill, broker.restart)):
            leave()
            write("away", **{"bootstrap.servers": broker.bootstrap})
            took, slowest, result = waited(server, save_and_publish(prefix, "away", key="lost"))
            assert result.code == "KAFKA_UNAVAILABLE", result.text
            assert "nothing was sent" in result.text
            assert TIMEOUT <= took < TIMEOUT + SLACK
            assert slowest < TIMEOUT, "the queue and the nodes are told meanwhile, not after it"
            lines = {"bootstrap.servers": broker.bootstrap, "latent_encoder.timeout_seconds": 60}
            write("away", **lines)
            took, _, result = waited(server, save_and_publish(prefix, "away", key="lost"), interrupt_after=2)
            assert not result.success
            assert result.messages[-1][0] == "execution_interrupted"
            assert took < 2 + SLACK
            come_back()
        time.sleep(1)
        write("away", **{"bootstrap.servers": broker.bootstrap, "latent_encoder.timeout_seconds": 30})
        sent(run(server, save_and_publish(prefix, "away", key="after")))
        assert sorted(entry.key() for entry in messages(broker, "away")) == [b"after", b"before"]


def waited(server: Server, prompt: Prompt, interrupt_after: float = 1e9) -> tuple[float, float, Outcome]:
    """Run a prompt, and ask ComfyUI other things all the while.

    Returns:
        how long it took, and the slowest of the other answers, in seconds; and what came of it.
    """
    started, slowest, interrupted = time.monotonic(), 0.0, False
    prompt_id = server.client.submit(prompt)
    while not (history := httpx.get(f"{server.process.url}/history/{prompt_id}").json()):
        for path in ("queue", "object_info/PublishLatentToKafka", "prompt"):
            asked = time.monotonic()
            httpx.get(f"{server.process.url}/{path}").raise_for_status()
            slowest = max(slowest, time.monotonic() - asked)
        if not interrupted and time.monotonic() - started > interrupt_after:
            server.client.interrupt()
            interrupted = True
        assert time.monotonic() - started < 60
        time.sleep(0.1)
    return time.monotonic() - started, slowest, outcome(history[prompt_id])


def test_without_the_library(host: Host, servers: Servers, prefix: str) -> None:
    server = Server(host, "default", servers.folder / "no_library")
    nodes = server.folder / "custom_nodes"
    nodes.mkdir(parents=True)
    install_pack(nodes)
    install_models(server.folder / "models", host)
    (nodes / "no_kafka").mkdir()
    (nodes / "no_kafka" / "__init__.py").write_text(BLOCKED, encoding="utf-8")
    path = properties_of(server)
    path.parent.mkdir(parents=True)
    path.write_text("bootstrap.servers=127.0.0.1:1\nlatent_encoder.topics=a\n", encoding="utf-8")
    try:
        server.start()
        assert options_of(server) == ["a"]
        refused = run(server, save_and_publish(prefix, "a"))
        assert refused.code == "KAFKA_UNAVAILABLE", refused.text
        assert "pip install confluent-kafka" in refused.text
    finally:
        server.process.kill()
