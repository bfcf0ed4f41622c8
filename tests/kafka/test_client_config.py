"""What librdkafka is told: the file, the settings over it, what is refused by name, and that no secret is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer
from kafka.command_runs import Commands

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.config import Settings
from latent_encoder.service.kafka import client_config

SECRET = "hunter2-is-secret"


def in_file(folder: Path, *lines: str) -> str:
    path = folder / "client.properties"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def settings_of(**values: Any) -> Settings:
    return Settings(**values)


def told(settings: Settings) -> dict[str, Any]:
    return {name: value for name, value in client_config.connection(settings).items() if name != "logger"}


def test_settings_are_librdkafka_s(tmp_path: Path) -> None:
    settings = settings_of(
        kafka_bootstrap_servers="a:1,b:2",
        kafka_security_protocol="SASL_SSL",
        kafka_sasl_mechanism="scram-sha-512",
        kafka_sasl_username="me",
        kafka_sasl_password=SECRET,
        kafka_ssl_ca_location=tmp_path / "ca.pem",
        kafka_ssl_endpoint_identification_algorithm="none",
    )
    found = told(settings)
    assert {name: found[name] for name in client_config.CONNECTION.values() if name in found} == {
        "bootstrap.servers": "a:1,b:2",
        "security.protocol": "sasl_ssl",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "me",
        "sasl.password": SECRET,
        "ssl.ca.location": str(tmp_path / "ca.pem"),
        "ssl.endpoint.identification.algorithm": "none",
    }
    assert SECRET not in repr(settings)


def test_the_file_beats_defaults_and_the_settings_beat_the_file(tmp_path: Path) -> None:
    path = in_file(tmp_path, "bootstrap.servers=file:1", "sasl.username=file", "client.rack=r1", "linger.ms=7")
    found = told(settings_of(kafka_config_file=path, kafka_sasl_username="environment"))
    assert (found["bootstrap.servers"], found["sasl.username"]) == ("file:1", "environment")
    assert (found["client.rack"], found["security.protocol"]) == ("r1", "plaintext")
    made = client_config.producer(settings_of(kafka_config_file=path), "id")
    assert (made["linger.ms"], made["acks"], made["enable.idempotence"]) == ("7", "all", True)
    assert client_config.consumer(settings_of(kafka_config_file=path), "id")["client.rack"] == "r1"


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_the_clients_take_it(protocol: str, tmp_path: Path) -> None:
    lines = ("session.timeout.ms=3000", "statistics.interval.ms=60000", "bootstrap.servers=127.0.0.1:1")
    settings = settings_of(kafka_config_file=in_file(tmp_path, *lines), kafka_group_protocol=protocol)
    consumer = client_config.consumer(settings, "id")
    assert ("session.timeout.ms" in consumer) == (protocol == "classic")
    for made in (Consumer(consumer), Consumer(client_config.reader(settings, "id"))):
        made.close()
    for transactional_id in (None, "group.worker"):
        Producer(client_config.producer(settings, "id", transactional_id)).flush(0)


REFUSED = {
    "enable.auto.commit=true": "enable.auto.commit",
    "enable.auto.offset.store=true": "enable.auto.offset.store",
    "acks=0": "acks",
    "topic.request.required.acks=0": "topic.request.required.acks",
    "enable.idempotence=false": "enable.idempotence",
    "transactional.id=mine": "transactional.id",
    "isolation.level=read_uncommitted": "isolation.level",
    "group.id=mine": "group.id",
    "group.instance.id=mine": "group.instance.id",
    "partition.assignment.strategy=range": "partition.assignment.strategy",
    "max.in.flight=9": "max.in.flight",
    "plugin.library.paths=/tmp/evil": "plugin.library.paths",
    "sasl.kerberos.kinit.cmd=rm": "sasl.kerberos.kinit.cmd",
    "test.mock.num.brokers=3": "test.mock.num.brokers",
}


def test_what_would_break_the_guarantee_is_refused_by_name(tmp_path: Path) -> None:
    settings = settings_of(kafka_config_file=in_file(tmp_path, "linger.ms=1", *REFUSED))
    with pytest.raises(LatentEncoderError) as caught:
        client_config.connection(settings)
    assert caught.value.code == "INVALID_REQUEST"
    assert all(name in caught.value.message for name in REFUSED.values())
    assert "linger.ms" not in caught.value.message


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path, {"REST_PORT": "0", "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"})


WORDS = (("--mode", "kafka"), ("topics", "check"), ("dlq", "list"), ("send", "--image-path", "a.png"))


@pytest.mark.parametrize("words", WORDS, ids=lambda words: words[0])
def test_a_file_that_is_refused_ends_every_command(commands: Commands, words: tuple[str, ...]) -> None:
    path = in_file(commands.here, f"sasl.password={SECRET}", "acks=1", "group.id=x")
    done = commands.run(*words, KAFKA_CONFIG_FILE=path)
    assert (done.code, done.out) == (2, "")
    assert "KAFKA_CONFIG_FILE cannot be used" in done.said
    assert "acks, group.id" in done.said
    assert SECRET not in done.said


@pytest.mark.parametrize(
    "line", [f"sasl.password {SECRET}", f"no.such.setting={SECRET}", "security.protocol=x", "default.topic.config=x"]
)
@pytest.mark.parametrize("words", [("topics", "check"), ("--mode", "kafka")], ids=lambda words: words[1])
def test_what_the_library_does_not_take_is_told_without_secrets(
    commands: Commands, line: str, words: tuple[str, ...]
) -> None:
    path = in_file(commands.here, f"sasl.username={SECRET}", f"ssl.key.password={SECRET}", line)
    done = commands.run(*words, KAFKA_CONFIG_FILE=path)
    assert (done.code, done.out) == (2, "")
    assert SECRET not in done.said
    assert "Traceback" not in done.said


def test_secrets_from_files_and_never_shown(commands: Commands) -> None:
    (commands.here / "password").write_text(f"{SECRET}\n")
    (commands.here / "user").write_text("me\n")
    files = {"KAFKA_SASL_PASSWORD_FILE": "password", "KAFKA_SASL_USERNAME_FILE": "user"}
    done = commands.run("--show-settings", **files, KAFKA_SSL_KEY_PASSWORD=SECRET)
    assert done.code == 0
    assert SECRET not in done.out + done.said
    rows = {line.split()[0]: line.split()[1] for line in done.out.splitlines()}
    shown = ("KAFKA_SASL_PASSWORD", "KAFKA_SASL_USERNAME", "KAFKA_SSL_KEY_PASSWORD")
    assert [rows[name] for name in shown] == ["********", "me", "********"]

    both = commands.run("topics", "check", **files, KAFKA_SASL_PASSWORD=SECRET)
    assert both.code == 2
    assert "KAFKA_SASL_PASSWORD and KAFKA_SASL_PASSWORD_FILE are both set" in both.said
    assert SECRET not in both.said
