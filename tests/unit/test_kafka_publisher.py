"""The publisher as far as no broker is needed: its settings, and what it says of a broker that is not there."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latent_encoder.errors import LatentEncoderError
from latent_encoder.kafka_message import LatentMessage
from latent_encoder.kafka_publisher import KafkaPublisher
from latent_encoder.publisher_settings import PublisherSettings, allowed_topics, read_settings

MESSAGE = LatentMessage(b"key", b"value", [("a", b"b")], {})
ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "Tr0ub4dor"
SLACK = 3.0  # seconds that a busy machine may take longer


def written(folder: Path, *lines: str) -> Path:
    path = folder / "client.properties"
    path.write_text("\n".join(("bootstrap.servers=127.0.0.1:1", *lines)), encoding="utf-8")
    return path


def never() -> None:
    """Nobody interrupts."""


def refused(function: Callable[..., Any], *arguments: Any, **options: Any) -> LatentEncoderError:
    with pytest.raises(LatentEncoderError) as caught:
        function(*arguments, **options)
    return caught.value


def publish(settings: PublisherSettings, topic: str = "a", **options: Any) -> LatentEncoderError:
    return refused(KafkaPublisher().publish, settings, topic, MESSAGE, **{"interrupted": never, **options})


def test_settings(tmp_path: Path) -> None:
    path = written(tmp_path, "latent_encoder.topics= a, b-1 ,a,", "linger.ms=5", f"sasl.password={PASSWORD}")
    settings = read_settings(path)
    assert settings.topics == ("a", "b-1") == tuple(allowed_topics(path))
    assert (settings.inline_max_bytes, settings.timeout_seconds) == (524_288, 30)
    assert set(settings.client) == {"bootstrap.servers", "linger.ms", "sasl.password"}
    assert PASSWORD not in repr(settings)
    more = read_settings(written(tmp_path, "latent_encoder.inline_max_bytes=7", "latent_encoder.timeout_seconds=2.5"))
    assert (more.inline_max_bytes, more.timeout_seconds, more.topics) == (7, 2.5, ())


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("latent_encoder.topics=a b", "latent_encoder.topics"),
        ("latent_encoder.topics=", "latent_encoder.topics"),
        (f"latent_encoder.topics={'x' * 250}", "latent_encoder.topics"),
        ("latent_encoder.topic=a", "latent_encoder.topic"),
        ("latent_encoder.inline_max_bytes=1 MB", "inline_max_bytes"),
        ("latent_encoder.inline_max_bytes=-1", "inline_max_bytes"),
        ("latent_encoder.timeout_seconds=0", "timeout_seconds"),
        ("latent_encoder.timeout_seconds=nan", "timeout_seconds"),
        ("latent_encoder.timeout_seconds=9999", "timeout_seconds"),
        ("acks=0", "acks"),
        ("transactional.id=x", "transactional.id"),
        ("no equals sign", "Line 2"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, line: str, word: str, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, line, f"sasl.password={PASSWORD}")
    error = refused(read_settings, path)
    assert error.code == "INVALID_REQUEST"
    assert word in error.message
    assert allowed_topics(path) == []
    assert word in caplog.text
    assert PASSWORD not in str(error) + caplog.text


def test_no_file_says_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "__latent_encoder" / "client.properties"
    error = refused(read_settings, path)
    assert error.code == "KAFKA_UNAVAILABLE"
    assert "client.properties" in error.message
    assert "bootstrap.servers=" in error.hint
    assert "latent_encoder.topics=" in error.hint
    assert str(tmp_path) not in str(error)
    assert allowed_topics(path) == []
    assert caplog.text == ""


def test_no_broker_is_named(tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    path.write_text("latent_encoder.topics=a")
    error = refused(read_settings, path)
    assert (error.code, "bootstrap.servers" in error.message) == ("INVALID_REQUEST", True)


def test_a_topic_that_is_not_allowed() -> None:
    error = publish(PublisherSettings({"bootstrap.servers": "127.0.0.1:1"}, ("a", "b")), "c")
    assert error.code == "TOPIC_NOT_ALLOWED"
    assert "a, b" in error.hint
    error = publish(PublisherSettings({"bootstrap.servers": "127.0.0.1:1"}), "c")
    assert "latent_encoder.topics" in error.hint


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ({"no.such.setting": "x"}, "no.such.setting"),
        ({"security.protocol": "TELEPATHY"}, "security.protocol"),
        ({"ssl.ca.location": "/nowhere/ca.pem", "security.protocol": "SSL"}, "ssl.ca.location"),
        ({"retry.backoff.ms": "soon"}, "retry.backoff.ms"),
    ],
)
def test_what_librdkafka_refuses_is_named(line: dict[str, str], word: str) -> None:
    client = {"bootstrap.servers": "127.0.0.1:1", "sasl.password": PASSWORD, **line}
    error = publish(PublisherSettings(client, ("a",)))
    assert error.code == "INVALID_REQUEST"
    assert word in error.message
    assert PASSWORD not in str(error)


def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    started = time.monotonic()
    with caplog.at_level(logging.INFO):
        error = publish(PublisherSettings({"bootstrap.servers": "127.0.0.1:1"}, ("a",), timeout_seconds=2))
    assert 2 <= time.monotonic() - started < 2 + SLACK
    assert error.code == "KAFKA_UNAVAILABLE"
    assert error.retryable
    assert "2 s" in error.message
    assert "nothing was sent" in error.message
    assert "Connection refused" in error.message
    assert len(caplog.messages) <= 3, "a broker that is away does not fill the log"


def test_somebody_listens_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        started = time.monotonic()
        error = publish(PublisherSettings({"bootstrap.servers": address}, ("a",), timeout_seconds=2))
    assert 2 <= time.monotonic() - started < 2 + SLACK
    assert error.code == "KAFKA_UNAVAILABLE"


class Stop(BaseException):
    """As ComfyUI's interrupt, which is no Exception on newer versions."""


def test_an_interrupt_ends_it_soon_and_leaves_no_thread() -> None:
    before = threading.active_count()
    started = time.monotonic()

    def interrupted() -> None:
        if time.monotonic() - started > 1:
            raise Stop

    publisher = KafkaPublisher()
    settings = PublisherSettings({"bootstrap.servers": "127.0.0.1:1"}, ("a",), timeout_seconds=60)
    with pytest.raises(Stop):
        publisher.publish(settings, "a", MESSAGE, interrupted=interrupted)
    assert time.monotonic() - started < 2.2 + SLACK
    assert threading.active_count() == before
    publisher.close()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    error = publish(PublisherSettings({"bootstrap.servers": "127.0.0.1:1"}, ("a",)))
    assert error.code == "KAFKA_UNAVAILABLE"
    assert "pip install confluent-kafka" in error.hint


def test_the_library_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys, latent_encoder.kafka_publisher, latent_encoder.publisher_settings, latent_encoder.kafka_message\n"
        "print([name for name in ('confluent_kafka', 'torch', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
