"""client.properties: what is read, what is refused by name, and that no secret is ever shown."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_encoder.errors import LatentEncoderError
from latent_encoder.kafka_properties import (
    GUARANTEES,
    HIDDEN,
    QUIET,
    RUNS_CODE,
    check_properties,
    client_logger,
    is_secret,
    load_confluent_kafka,
    quiet,
    read_properties,
    without_secrets,
)

PASSWORD = "Tr0ub4dor=#3!"


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "client.properties"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path) -> LatentEncoderError:
    with pytest.raises(LatentEncoderError) as caught:
        read_properties(path)
    assert caught.value.code == "INVALID_REQUEST"
    return caught.value


def test_lines(tmp_path: Path) -> None:
    text = f"\ufeff# ours\r\n\r\nbootstrap.servers = a:1,b:2 \r\n! old\n  sasl.password={PASSWORD}\nclient.id=\nlast=1"
    assert read_properties(written(tmp_path, text)) == {
        "bootstrap.servers": "a:1,b:2",
        "sasl.password": PASSWORD,
        "client.id": "",
        "last": "1",
    }
    assert read_properties(written(tmp_path, b"")) == {}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (f"sasl.password {PASSWORD.replace('=', '')}", "no '='"),
        (f"={PASSWORD}", "name"),
        (f"sasl password={PASSWORD}", "name"),
        (f"pässword={PASSWORD}", "name"),
        (f"a=secret{PASSWORD}", "'a' again, after line 1"),
        (f"b={PASSWORD}\0", "control character"),
    ],
)
def test_a_wrong_line_is_named_and_not_shown(tmp_path: Path, line: str, problem: str) -> None:
    error = refusal(written(tmp_path, f"a=1\n# comment\n{line}\nz=1\n"))
    assert "Line 3 of 'client.properties'" in error.message
    assert problem in error.message
    assert PASSWORD[:6] not in str(error)


def test_a_line_that_is_no_text(tmp_path: Path) -> None:
    assert "Line 2 " in refusal(written(tmp_path, b"a=1\nb=\xff\nc=2")).message


def test_what_is_no_file(tmp_path: Path) -> None:
    assert "no file" in refusal(tmp_path / "client.properties").message
    refusal(tmp_path)
    assert "at most" in refusal(written(tmp_path, b"#" * (1 << 20) + b"\n")).message


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
values = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30).map(str.strip)


@given(st.dictionaries(names, values, max_size=8))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, properties: dict[str, str]) -> None:
    text = "\n".join(f"{name}={value}" for name, value in properties.items())
    assert read_properties(written(tmp_path_factory.mktemp("properties"), text)) == properties


def test_ordinary_settings_pass() -> None:
    check_properties({"bootstrap.servers": "a:1", "sasl.password": "x", "compression.type": "zstd", "linger.ms": "5"})


@pytest.mark.parametrize("name", sorted(GUARANTEES | RUNS_CODE | {"test.mock.num.brokers", "ACKS", "topic.acks"}))
def test_a_dangerous_setting_is_refused(name: str) -> None:
    with pytest.raises(LatentEncoderError) as caught:
        check_properties({name: "1"})
    assert caught.value.code == "INVALID_REQUEST"
    assert name in caught.value.message


def test_one_error_names_all_of_them() -> None:
    with pytest.raises(LatentEncoderError) as caught:
        check_properties(
            {"acks": "0", "group.id": "g", "plugin.library.paths": "x.so", "client.id": PASSWORD, "linger.ms": "5"},
            reserved=["client.id"],
        )
    assert all(name in str(caught.value) for name in ("acks", "group.id", "plugin.library.paths", "client.id"))
    assert "linger" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "sasl.password",
        "sasl.username",
        "ssl.key.password",
        "ssl.key.pem",
        "ssl_key",
        "ssl.keystore.password",
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.config",
        "sasl.oauthbearer.assertion.private.key.passphrase",
        "sasl.jaas.config",
        "kafka_sasl_password",
        "KAFKA_SSL_KEY_PASSWORD",
        "my.token",
    ],
)
def test_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["bootstrap.servers", "ssl.key.location", "ssl.ca.location", "socket.keepalive.enable", "security.protocol"]
)
def test_no_secrets(name: str) -> None:
    assert not is_secret(name)


def test_texts_and_logs_lose_their_secrets(caplog: pytest.LogCaptureFixture) -> None:
    properties = {"sasl.password": PASSWORD, "ssl.key.password": "", "sasl.username": "kafka"}
    assert without_secrets(f"kafka: bad {PASSWORD}", properties) == f"kafka: bad {HIDDEN}"
    for password in ("older", PASSWORD):
        logger = client_logger("test_kafka_properties", {"sasl.password": password})
    assert len(logger.filters) == 1
    with caplog.at_level(logging.INFO, "test_kafka_properties"):
        logger.warning("said %s and %d", PASSWORD, 7)
    assert caplog.messages == [f"said {HIDDEN} and 7"]


def test_a_broker_that_is_away_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = pytest.importorskip("confluent_kafka")
    settings = quiet({"bootstrap.servers": "127.0.0.1:1"})
    logger = client_logger("test_kafka_properties.away", settings)
    producer = kafka.Producer({**settings, "enable.idempotence": True}, logger=logger)
    with caplog.at_level(logging.INFO, logger.name):
        for _ in range(30):
            producer.poll(0.1)
        assert len(caplog.messages) == 1
        assert "Connection refused" in caplog.text
        monkeypatch.setattr("latent_encoder.kafka_properties.REPEAT_SECONDS", 0.5)
        begin = time.monotonic()
        for _ in range(30):
            producer.poll(0.1)
        assert 3 <= len(caplog.messages) <= (time.monotonic() - begin) / 0.5 + 2


def test_quiet_leaves_what_is_set() -> None:
    assert quiet({"log_level": "7", "a": "b"}) == {**QUIET, "log_level": "7", "a": "b"}


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(LatentEncoderError) as caught:
        load_confluent_kafka()
    assert caught.value.code == "KAFKA_UNAVAILABLE"
    assert "pip install confluent-kafka" in caught.value.hint


def test_with_the_library() -> None:
    pytest.importorskip("confluent_kafka")
    module = load_confluent_kafka()
    module.Producer({**quiet({"bootstrap.servers": "127.0.0.1:1"}), "logger": client_logger("unused", {})})
