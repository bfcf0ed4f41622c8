"""Workers on a broker with SASL, TLS and rights: let in by settings, by secret files, by KAFKA_CONFIG_FILE; or not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka.broker import Broker
from kafka.command_runs import Commands
from kafka.topics import Topics, create_topics
from kafka.workers import WorkerProcess, make_picture

from latent_encoder.kafka_properties import is_secret

FAST = {"wait": 0.01}
Told = Callable[[Broker, Path], dict[str, str]]


def by_settings(broker: Broker, folder: Path) -> dict[str, str]:
    """SCRAM, without TLS."""
    client = broker.sasl_client("SCRAM-SHA-512")
    return {f"KAFKA_{name.upper().replace('.', '_')}": value for name, value in client.items()}


def by_secret_files(broker: Broker, folder: Path) -> dict[str, str]:
    """PLAIN over TLS; name and password as Kubernetes lays secrets."""
    client = broker.sasl_tls_client("PLAIN")
    told = {f"KAFKA_{name.upper().replace('.', '_')}": value for name, value in client.items()}
    for name in ("KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"):
        (folder / name).write_text(f"{told.pop(name)}\n", encoding="utf-8")
        told[f"{name}_FILE"] = str(folder / name)
    return told


def by_a_file(broker: Broker, folder: Path) -> dict[str, str]:
    """TLS with a client's certificate whose key is encrypted."""
    client, files = broker.tls_client(certificate=True), broker.certificates
    assert files
    client |= {"ssl.key.location": str(files.encrypted_client_key), "ssl.key.password": files.client_key_password}
    return in_file(folder, client)


def by_a_file_that_the_environment_beats(broker: Broker, folder: Path) -> dict[str, str]:
    """SCRAM over TLS; the file's password is wrong, the environment's is not."""
    client = broker.sasl_tls_client("SCRAM-SHA-256")
    return in_file(folder, client | {"sasl.password": "wrong"}) | {"KAFKA_SASL_PASSWORD": broker.user.password}


def in_file(folder: Path, client: dict[str, str]) -> dict[str, str]:
    path = folder / "secure.properties"
    lines = [f"{name}={value}\n" for name, value in client.items()]
    path.write_text("".join([*lines, "session.timeout.ms=3000\n"]), encoding="utf-8")
    return {"KAFKA_CONFIG_FILE": str(path), "KAFKA_BOOTSTRAP_SERVERS": ""}


def secrets_of(broker: Broker) -> list[str]:
    assert broker.certificates
    return [broker.user.password, broker.guest.password, broker.certificates.client_key_password]


@pytest.fixture
def secure_topics(secure_broker: Broker) -> Topics:
    topics = Topics.fresh()
    create_topics(secure_broker.bootstrap, topics.request, topics.response, topics.dlq)
    return topics


@pytest.mark.parametrize("told", [by_settings, by_secret_files, by_a_file, by_a_file_that_the_environment_beats])
def test_a_worker_is_let_in(secure_broker: Broker, secure_topics: Topics, tmp_path: Path, told: Told) -> None:
    settings = told(secure_broker, tmp_path)
    with WorkerProcess("", secure_topics, tmp_path, harness=FAST, **settings) as worker:
        picture = make_picture(tmp_path, "a.png")
        worker.wait_ready()
        commands = Commands.on("", secure_topics, tmp_path, **settings)
        done = commands.run("send", "--image-path", picture, "--wait", "--timeout", "60")
        assert done.code == 0, done.said
        assert done.lines[0]["status"] == "success"
        assert worker.terminate() == 0
    shown = commands.run("--show-settings")
    assert not [secret for secret in secrets_of(secure_broker) if secret in worker.log() + shown.out + done.said]


def test_a_wrong_password(secure_broker: Broker, secure_topics: Topics, tmp_path: Path) -> None:
    wrong = "not-the-password"
    settings = by_settings(secure_broker, tmp_path) | {"KAFKA_SASL_PASSWORD": wrong}
    with WorkerProcess("", secure_topics, tmp_path, harness=FAST, **settings) as worker:
        worker.wait_log("uthentication failed", timeout=60)
        time.sleep(2)
        assert worker.is_running
        assert not worker.is_ready
        ready = worker.health("/health/ready")
        assert (ready.status_code, ready.json()["error_code"]) == (503, "KAFKA_UNAVAILABLE")
        assert worker.health("/health/live").status_code == 200
        commands = Commands.on("", secure_topics, tmp_path, **settings)
        done = commands.run("send", "--image-path", "a.png")
        assert (done.code, done.out) == (1, "")
        assert "KAFKA_UNAVAILABLE: The Kafka brokers do not let us in" in done.said
        assert "uthentication failed" in done.said
        assert worker.terminate() == 0
        assert len(worker.log().splitlines()) < 30, "it does not fill the log"
    shown = commands.run("--show-settings")
    assert wrong not in worker.log() + done.said + ready.text + shown.out


def test_a_broker_that_is_none_of_ours(secure_broker: Broker, secure_topics: Topics, tmp_path: Path) -> None:
    settings = {"KAFKA_BOOTSTRAP_SERVERS": secure_broker.tls_bootstrap, "KAFKA_SECURITY_PROTOCOL": "ssl"}
    commands = Commands.on("", secure_topics, tmp_path, **settings)
    done = commands.run("topics", "check")
    assert done.code == 1
    assert "certificate verify failed" in done.said
    assert secure_broker.certificates
    settings |= {"KAFKA_SSL_CA_LOCATION": str(secure_broker.certificates.ca)}
    assert commands.run("dlq", "list", **settings).code == 0


def test_what_counts_as_a_secret() -> None:
    assert all(map(is_secret, ("sasl.password", "ssl.key.password", "ssl.key.pem", "sasl.oauthbearer.client.secret")))
    assert not any(map(is_secret, ("ssl.key.location", "security.protocol", "bootstrap.servers")))
