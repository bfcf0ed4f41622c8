"""The publisher against a real broker, and what it does when the network or the broker fails at the worst moment."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kafka.broker import Broker
from kafka.supervisor import wait_until
from kafka.tcp_proxy import TcpProxy
from kafka.topics import Topics, create_topics, read_topic

from latent_encoder.errors import LatentEncoderError
from latent_encoder.kafka_message import LatentMessage
from latent_encoder.kafka_publisher import KafkaPublisher
from latent_encoder.publisher_settings import PublisherSettings

ROOT = Path(__file__).resolve().parents[2]
SLACK = 4.0


class Stop(BaseException):
    """An interrupt."""


def never() -> None:
    """Nobody interrupts."""


def message(value: bytes = b"value", key: bytes = b"key") -> LatentMessage:
    return LatentMessage(key, value, [("a", b"1"), ("ü", "ß".encode())], {})


def settings(client: dict[str, str] | str, *topics: str, seconds: float = 20) -> PublisherSettings:
    client = {"bootstrap.servers": client} if isinstance(client, str) else client
    return PublisherSettings(client, topics, timeout_seconds=seconds)


def refused(publisher: KafkaPublisher, made: PublisherSettings, sent: LatentMessage) -> LatentEncoderError:
    with pytest.raises(LatentEncoderError) as caught:
        publisher.publish(made, made.topics[0], sent, interrupted=never)
    return caught.value


def values(bootstrap: str, topic: str, **client: str) -> list[bytes | None]:
    return [found.value() for found in read_topic(bootstrap, topic, **client)]


def test_the_message_arrives_and_its_place_is_told(broker: Broker, topics: Topics) -> None:
    publisher, made = KafkaPublisher(), settings(broker.bootstrap, topics.request)
    deliveries = [
        publisher.publish(made, topics.request, message(b"%d" % number, b"k%d" % number), interrupted=never)
        for number in range(8)
    ]
    found = {(entry.partition(), entry.offset()): entry for entry in read_topic(broker.bootstrap, topics.request)}
    assert len(found) == 8
    assert len({delivery.partition for delivery in deliveries}) > 1, "keys spread"
    for number, delivery in enumerate(deliveries):
        entry = found[delivery.partition, delivery.offset]
        assert (entry.key(), entry.value()) == (b"k%d" % number, b"%d" % number)
        assert entry.headers() == message().headers
        assert entry.timestamp()[1] == delivery.timestamp
        assert str(delivery) == f"{topics.request}[{delivery.partition}]@{delivery.offset}"
    publisher.close()


def test_one_producer_for_as_long_as_its_settings_last(broker: Broker, topics: Topics, tmp_path: Path) -> None:
    publisher, made = KafkaPublisher(), settings(broker.bootstrap, topics.request)

    def send(made: PublisherSettings) -> object:
        publisher.publish(made, topics.request, message(), interrupted=never)
        return publisher._producer

    first = send(made)
    assert send(settings(broker.bootstrap, topics.request)) is first
    certificate = tmp_path / "ca.pem"
    certificate.write_text("a")
    other = settings({"bootstrap.servers": broker.bootstrap, "ssl.ca.location": str(certificate)}, topics.request)
    second = send(other)
    assert second is not first
    assert send(other) is second
    certificate.write_text("renewed")
    assert send(other) is not second
    publisher.close()


def test_closing_ends_its_threads_and_connections(broker: Broker, topics: Topics) -> None:
    def used() -> tuple[int, int]:
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    publisher, made = KafkaPublisher(), settings(broker.bootstrap, topics.request)
    publisher.publish(made, topics.request, message(), interrupted=never)
    publisher.close()
    time.sleep(0.5)  # a thread that was joined may still be in the list
    before = used()
    for _ in range(5):
        publisher.publish(made, topics.request, message(), interrupted=never)
        publisher.close()
    wait_until(lambda: used() == before, 10, lambda: f"{used()} in place of {before}")


def test_a_topic_that_is_not_there(broker: Broker) -> None:
    started = time.monotonic()
    error = refused(KafkaPublisher(), settings(broker.bootstrap, "there-is-no-such-topic"), message())
    assert error.code == "KAFKA_DELIVERY_FAILED"
    assert "there-is-no-such-topic" in error.message
    assert time.monotonic() - started < 3 + SLACK


def test_larger_than_the_client_or_the_broker_allows(broker: Broker, topics: Topics) -> None:
    small = f"{topics.request}-small"
    create_topics(broker.bootstrap, small, config={"max.message.bytes": "2000"})
    publisher = KafkaPublisher()
    for topic, size in [(small, 5_000), (topics.request, 1_100_000)]:
        error = refused(publisher, settings(broker.bootstrap, topic), message(os.urandom(size)))
        assert error.code == "MESSAGE_TOO_LARGE", error
        assert values(broker.bootstrap, topic) == []
    publisher.publish(settings(broker.bootstrap, small), small, message(b"fits"), interrupted=never)
    assert values(broker.bootstrap, small) == [b"fits"]


@pytest.mark.parametrize("protocol", ["sasl_client", "tls_client", "sasl_tls_client"])
def test_passwords_and_encryption(secure_broker: Broker, protocol: str) -> None:
    topic = f"secure-{protocol}"
    create_topics(secure_broker.bootstrap, topic)
    made = settings(getattr(secure_broker, protocol)(), topic)
    KafkaPublisher().publish(made, topic, message(), interrupted=never)
    assert values(secure_broker.bootstrap, topic) == [b"value"]


def test_a_wrong_password(secure_broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    password = "n0t-the-right-one"
    client = secure_broker.sasl_client() | {"sasl.password": password, "debug": "security,broker"}
    started = time.monotonic()
    with caplog.at_level(logging.DEBUG):
        error = refused(KafkaPublisher(), settings(client, "a"), message())
    assert time.monotonic() - started < SLACK + 3, "no use to wait"
    assert error.code == "KAFKA_UNAVAILABLE"
    assert "authentication" in error.message.lower()
    assert not error.retryable
    assert caplog.text
    assert password not in str(error) + caplog.text


def test_no_right_to_the_topic(secure_broker: Broker) -> None:
    create_topics(secure_broker.bootstrap, "forbidden")
    client = secure_broker.sasl_client(account=secure_broker.guest)
    error = refused(KafkaPublisher(), settings(client, "forbidden"), message())
    assert error.code == "KAFKA_DELIVERY_FAILED"
    assert "authoriz" in error.message.lower()


@pytest.mark.parametrize("how", ["kill", "pause"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "new"])
def test_a_broker_that_is_away_gets_nothing_later(own_broker: Broker, how: str, kept: bool) -> None:
    create_topics(own_broker.bootstrap, "a")
    publisher, made = KafkaPublisher(), settings(own_broker.bootstrap, "a", seconds=3)
    if kept:
        publisher.publish(made, "a", message(b"before"), interrupted=never)
    getattr(own_broker, how)()
    started = time.monotonic()
    error = refused(publisher, made, message(b"lost"))
    assert 3 <= time.monotonic() - started < 3 + SLACK
    assert error.code == "KAFKA_UNAVAILABLE"
    assert "nothing was sent" in error.message

    def interrupted() -> None:
        if time.monotonic() - started > 1:
            raise Stop

    started = time.monotonic()
    with pytest.raises(Stop):
        publisher.publish(settings(own_broker.bootstrap, "a"), "a", message(b"lost"), interrupted=interrupted)
    assert time.monotonic() - started < 2.2 + SLACK
    own_broker.restart() if how == "kill" else own_broker.resume()
    time.sleep(1)
    publisher.publish(settings(own_broker.bootstrap, "a"), "a", message(b"after"), interrupted=never)
    assert values(own_broker.bootstrap, "a") == ([b"before"] if kept else []) + [b"after"]


def test_an_answer_that_does_not_come_back(proxied_broker: tuple[Broker, TcpProxy]) -> None:
    """The worst moment: the message has left, and nothing says that it arrived."""
    broker, proxy = proxied_broker
    create_topics(broker.bootstrap, "a")
    publisher, made = KafkaPublisher(), settings(broker.proxied_bootstrap, "a", seconds=3)
    publisher.publish(made, "a", message(b"before"), interrupted=never)
    reach = publisher._reach

    def reach_then_lose_the_network(*arguments: object) -> None:
        reach(*arguments)  # type: ignore[arg-type]
        proxy.drop_answers()

    publisher._reach = reach_then_lose_the_network  # type: ignore[method-assign]
    error = refused(publisher, made, message(b"unknown"))
    assert error.code == "KAFKA_UNAVAILABLE"
    assert "not known" in error.hint
    assert "nothing was sent" not in error.message
    publisher._reach = reach  # type: ignore[method-assign]
    proxy.heal()
    publisher.publish(made, "a", message(b"after"), interrupted=never)
    assert values(broker.bootstrap, "a").count(b"unknown") <= 1, "never twice"


def test_a_process_with_an_open_producer_ends_at_once(broker: Broker, topics: Topics) -> None:
    code = f"""
from latent_encoder.kafka_message import LatentMessage
from latent_encoder.kafka_publisher import KafkaPublisher
from latent_encoder.publisher_settings import PublisherSettings
settings = PublisherSettings({{"bootstrap.servers": "{broker.bootstrap}"}}, ("{topics.request}",))
publisher = KafkaPublisher()
print(publisher.publish(settings, "{topics.request}", LatentMessage(b"k", b"v", [], {{}}), interrupted=lambda: None))
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{topics.request}[")
    assert time.monotonic() - started < 5 + SLACK
