"""The test broker is what the other tests take it for: a real Kafka that can be killed, with doors that are shut."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from kafka import broker_jars
from kafka.broker import PORTS, Broker, ExistingBroker, free_ports, session_broker, started_broker
from kafka.broker_jars import BrokerUnavailable
from kafka.broker_security import Account, make_certificates
from kafka.topics import (
    Topics,
    admin_client,
    create_topics,
    delete_topics,
    group_offsets,
    hanging_transactions,
    produce,
    read_topic,
    unread,
)

RECORDS = [{"key": f"key-{number}", "value": f"value {number}", "headers": {"n": str(number)}} for number in range(40)]


def consume(bootstrap: str, topic: str, group: str, count: int, **options: str) -> None:
    """Take part in a group until ``count`` messages are read and committed."""
    own = {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False, "log_level": 0}
    consumer = Consumer({**own, **options, "bootstrap.servers": bootstrap})
    consumer.subscribe([topic])
    messages = consumer.consume(count, timeout=30)
    assert [message.error() for message in messages] == [None] * count
    consumer.commit(asynchronous=False)
    consumer.close()


def cannot(client: dict[str, str]) -> str:
    """Let this client try to log in, and return what it was told."""
    heard: list[KafkaError] = []
    admin = admin_client(client["bootstrap.servers"], **client, error_cb=heard.append)
    deadline = time.monotonic() + 20
    while not heard and time.monotonic() < deadline:
        with pytest.raises(KafkaException):
            admin.list_topics(timeout=0.5)
        admin.poll(0)
    assert heard, "neither let in nor refused"
    return " ".join(error.str() for error in heard)


def test_what_is_sent_is_read_back(broker: Broker, topics: Topics) -> None:
    sent = produce(broker.bootstrap, topics.request, RECORDS)
    read = read_topic(broker.bootstrap, topics.request, until=len(RECORDS))
    assert len(sent) == len(read) == len(RECORDS)
    assert {m.key().decode(): m.value().decode() for m in read} == {r["key"]: r["value"] for r in RECORDS}
    assert all(message.headers() == [("n", message.value().split()[1])] for message in read)
    assert {message.partition() for message in read} == {0, 1, 2, 3}
    assert [(m.partition(), m.offset()) for m in read] == sorted((m.partition(), m.offset()) for m in sent)


def test_reading_waits_for_as_many_as_it_is_told(broker: Broker, topics: Topics) -> None:
    produce(broker.bootstrap, topics.request, RECORDS[:3])
    assert len(read_topic(broker.bootstrap, topics.request)) == 3
    with pytest.raises(TimeoutError, match="3 messages, 4 partitions"):
        read_topic(broker.bootstrap, topics.request, until=4, timeout=8)


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_group_has_its_offsets(broker: Broker, topics: Topics, protocol: str) -> None:
    produce(broker.bootstrap, topics.request, RECORDS)
    group = f"group-{uuid.uuid4().hex[:8]}"
    assert sum(unread(broker.bootstrap, group, topics.request).values()) == len(RECORDS)
    consume(broker.bootstrap, topics.request, group, len(RECORDS), **{"group.protocol": protocol})
    assert unread(broker.bootstrap, group, topics.request) == {}
    assert sum(group_offsets(broker.bootstrap, group, topics.request).values()) == len(RECORDS)


def test_an_open_transaction_is_seen(broker: Broker, topics: Topics) -> None:
    name = f"transaction-{uuid.uuid4().hex[:8]}"
    producer = Producer({"bootstrap.servers": broker.bootstrap, "transactional.id": name})
    producer.init_transactions(20)
    for ending in (producer.abort_transaction, producer.commit_transaction):
        assert hanging_transactions(broker.bootstrap, topics.response) == {}
        producer.begin_transaction()
        producer.produce(topics.response, b"x", partition=2)
        producer.flush(10)
        produce(broker.bootstrap, topics.response, [{"value": b"behind it", "partition": 2}])
        before = len(read_topic(broker.bootstrap, topics.response))
        assert list(hanging_transactions(broker.bootstrap, topics.response)) == [(topics.response, 2)]
        ending(10)
        assert len(read_topic(broker.bootstrap, topics.response, until=before + 1)) > before
    assert [m.value() for m in read_topic(broker.bootstrap, topics.response)] == [b"behind it", b"x", b"behind it"]


def test_topics_are_deleted_and_never_made_by_themselves(broker: Broker, topics: Topics) -> None:
    delete_topics(broker.bootstrap, topics.dlq)
    admin = admin_client(broker.bootstrap)
    while topics.dlq in (known := admin.list_topics(timeout=10).topics):
        time.sleep(0.05)
    assert topics.request in known
    with pytest.raises(RuntimeError, match="not all records were delivered"):
        produce(broker.bootstrap, topics.dlq, RECORDS[:1], **{"topic.metadata.propagation.max.ms": 1000})


def test_a_restart_keeps_data_and_ports_and_a_freeze_ends(own_broker: Broker) -> None:
    bootstrap, pids = own_broker.bootstrap, [own_broker.pid]
    create_topics(bootstrap, "kept")
    for orderly in (False, True):
        produce(bootstrap, "kept", RECORDS)
        consume(bootstrap, "kept", "group", len(RECORDS))
        if not orderly:
            own_broker.kill()
            assert not psutil.pid_exists(pids[-1])
            assert not own_broker.is_running
        own_broker.restart(orderly=orderly)
        pids.append(own_broker.pid)
        assert own_broker.bootstrap == bootstrap
        assert len(read_topic(bootstrap, "kept")) == len(RECORDS) * (1 + orderly)
        assert unread(bootstrap, "group", "kept") == {}
    assert len(set(pids)) == 3

    own_broker.pause()
    with pytest.raises(KafkaException, match=r"_TRANSPORT|_TIMED_OUT"):
        admin_client(bootstrap).list_topics(timeout=1.5)
    own_broker.resume()
    produce(bootstrap, "kept", RECORDS)
    assert len(read_topic(bootstrap, "kept")) == 3 * len(RECORDS)


def test_a_broker_dies_with_its_process(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    code = (
        "import sys, time; from pathlib import Path; from kafka.broker import Broker\n"
        "print(Broker.start(Path(sys.argv[1])).pid, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tests)}
    command = [sys.executable, "-c", code, str(tmp_path / "broker")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout
        jvm = psutil.Process(int(process.stdout.readline()))
        assert "java" in jvm.name()
        process.send_signal(signal.SIGKILL)
    jvm.wait(10)


def login(broker: Broker, way: str) -> dict[str, str]:
    """The properties of a client that is welcome."""
    listener, _, detail = way.partition(" ")
    if listener == "sasl":
        return broker.sasl_client(detail)
    if listener == "sasl_tls":
        return broker.sasl_tls_client(detail)
    client = broker.tls_client(certificate=bool(detail))
    if detail == "encrypted key":
        files = broker.certificates
        client |= {"ssl.key.location": str(files.encrypted_client_key), "ssl.key.password": files.client_key_password}
    return client


MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
WAYS = [f"{listener} {mechanism}" for listener in ("sasl", "sasl_tls") for mechanism in MECHANISMS]


@pytest.mark.parametrize("way", [*WAYS, "tls", "tls key", "tls encrypted key"])
def test_the_right_credentials_may_send_and_read(secure_broker: Broker, way: str) -> None:
    client = login(secure_broker, way)
    topic = f"secure-{uuid.uuid4().hex[:8]}"
    create_topics(client["bootstrap.servers"], topic, **client)
    produce(client["bootstrap.servers"], topic, RECORDS[:4], **client)
    assert len(read_topic(client["bootstrap.servers"], topic, **client)) == 4


@pytest.mark.parametrize("way", WAYS)
def test_a_wrong_password_or_user_is_refused(secure_broker: Broker, way: str) -> None:
    client = login(secure_broker, way)
    for wrong in ({"sasl.password": "wrong"}, {"sasl.username": "nobody"}):
        said = cannot(client | wrong)
        assert "authentication failed" in said.lower()
        assert secure_broker.user.password not in said


def test_strangers_are_refused_over_tls(secure_broker: Broker, tmp_path: Path) -> None:
    foreign = make_certificates(tmp_path)
    client = secure_broker.tls_client(certificate=True)
    assert "certificate verify failed" in cannot(client | {"ssl.ca.location": str(foreign.ca)})
    stranger = {"ssl.certificate.location": str(foreign.client), "ssl.key.location": str(foreign.client_key)}
    cannot(client | stranger)
    cannot(secure_broker.tls_client() | {"bootstrap.servers": secure_broker.mtls_bootstrap})
    for bootstrap in (secure_broker.tls_bootstrap, secure_broker.sasl_bootstrap):
        cannot({"bootstrap.servers": bootstrap, "security.protocol": "PLAINTEXT"})


def test_a_guest_has_no_rights(secure_broker: Broker) -> None:
    topic = f"secure-{uuid.uuid4().hex[:8]}"
    create_topics(secure_broker.bootstrap, topic)
    guest = secure_broker.sasl_client(account=secure_broker.guest)
    with pytest.raises(RuntimeError, match="TOPIC_AUTHORIZATION_FAILED"):
        produce(secure_broker.sasl_bootstrap, topic, RECORDS[:1], **guest)
    assert read_topic(secure_broker.bootstrap, topic) == []


def test_passwords_are_made_anew(secure_broker: Broker) -> None:
    assert Account("encoder").password != Account("encoder").password
    assert secure_broker.user.password not in secure_broker.log()


def test_a_broker_that_is_there_is_used(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_TEST_BOOTSTRAP", broker.bootstrap)
    with session_broker(tmp_path) as existing:
        assert existing == ExistingBroker(broker.bootstrap)
        topics = Topics.fresh()
        create_topics(existing.bootstrap, topics.request)
        produce(existing.bootstrap, topics.request, RECORDS)
    assert len(read_topic(broker.bootstrap, topics.request)) == len(RECORDS)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_caches() -> Iterator[None]:
    """Look for jars and Java again, before and after."""
    for found in (broker_jars.broker_class_path, broker_jars.find_java):
        found.cache_clear()
    yield
    for found in (broker_jars.broker_class_path, broker_jars.find_java):
        found.cache_clear()


@pytest.mark.usefixtures("no_caches")
def test_no_broker_is_a_skip_or_where_it_is_required_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    monkeypatch.delenv("KAFKA_REQUIRED", raising=False)
    with pytest.raises(pytest.skip.Exception, match="KAFKA_HOME has no broker"), started_broker(tmp_path):
        pass
    monkeypatch.setenv("KAFKA_REQUIRED", "1")
    with pytest.raises(pytest.fail.Exception, match="KAFKA_HOME has no broker"), started_broker(tmp_path):
        pass


@pytest.mark.usefixtures("no_caches")
def test_the_jars_of_a_kafka_home_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "kafka_2.13-4.0.0.jar").touch()
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    assert broker_jars.broker_class_path() == f"{tmp_path}/libs/*"


@pytest.mark.usefixtures("no_caches")
def test_jars_that_are_not_those_of_the_list_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in broker_jars.HASHES.read_text().split()[1::2]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "more.jar").touch()
    monkeypatch.delenv("KAFKA_HOME", raising=False)
    monkeypatch.setenv("KAFKA_TEST_JARS", str(tmp_path))
    with pytest.raises(BrokerUnavailable, match=r"not those of .*: .*kafka-clients-4.* more\.jar") as told:
        broker_jars.broker_class_path()
    assert str(told.value).count(".jar") == 47


@pytest.mark.usefixtures("no_caches")
def test_an_old_java_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"8": "1.8.0_402", "11": "11.0.2", "17": "17.0.15", "21": "21"}
    for release, text in said.items():
        java = tmp_path / release / "bin" / "java"
        java.parent.mkdir(parents=True)
        java.write_text(f"#!/bin/sh\necho 'openjdk version \"{text}\" 2025-04-15' >&2\n")
        java.chmod(0o755)
    versions = {release: broker_jars.java_version(str(tmp_path / release / "bin" / "java")) for release in said}
    assert versions == {"8": 1, "11": 11, "17": 17, "21": 21}
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "11"))
    monkeypatch.setenv("PATH", f"{tmp_path / '21' / 'bin'}:{os.environ['PATH']}")
    assert broker_jars.find_java() == str(tmp_path / "21" / "bin" / "java")
    broker_jars.find_java.cache_clear()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "17"))
    assert broker_jars.find_java() == str(tmp_path / "17" / "bin" / "java")


def test_ports_are_not_those_that_clients_get() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert set(ports) <= set(PORTS)
