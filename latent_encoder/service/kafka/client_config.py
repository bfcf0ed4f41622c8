"""What librdkafka is told: KAFKA_CONFIG_FILE, over it what the settings say, and what the guarantee needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from confluent_kafka import KafkaError, KafkaException
from pydantic import SecretStr

from latent_encoder.errors import LatentEncoderError
from latent_encoder.kafka_properties import (
    LOGGER,
    check_properties,
    client_logger,
    quiet,
    read_properties,
    without_secrets,
)
from latent_encoder.publisher_settings import OWN_PREFIX

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings

Client = TypeVar("Client")

CONNECTION = {
    "kafka_bootstrap_servers": "bootstrap.servers",
    "kafka_security_protocol": "security.protocol",
    "kafka_sasl_mechanism": "sasl.mechanism",
    "kafka_sasl_username": "sasl.username",
    "kafka_sasl_password": "sasl.password",
    "kafka_ssl_ca_location": "ssl.ca.location",
    "kafka_ssl_certificate_location": "ssl.certificate.location",
    "kafka_ssl_key_location": "ssl.key.location",
    "kafka_ssl_key_password": "ssl.key.password",
    "kafka_ssl_endpoint_identification_algorithm": "ssl.endpoint.identification.algorithm",
}
"""The settings that are one of librdkafka's each."""

SESSION_TIMEOUT_MS = 10_000
"""How long after a worker's death its partitions go to others."""

METADATA_REFRESH_MS = 5_000
"""How often a worker looks whether its topic is still there, and as large; librdkafka's own is 5 minutes."""

SOCKET_TIMEOUT_MS = 30_000
"""How long a broker may leave a question of the worker's loop open; shorter than what the loop counts as stuck."""

TRANSACTION_TIMEOUT_MS = 15_000
"""How long a worker that died inside a transaction holds up the readers of its answers."""

OURS = (
    "client.id",
    "group.instance.id",  # one file serves many workers: they would fence each other
    "group.protocol",
    "auto.offset.reset",
    "partition.assignment.strategy",
)
"""What a worker sets itself, or leaves alone."""

ALIASES = {"metadata.broker.list": "bootstrap.servers", "sasl.mechanisms": "sasl.mechanism"}

SET_BY_THE_BROKER = ("session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy")
"""What librdkafka refuses under KAFKA_GROUP_PROTOCOL=consumer."""


def connection(settings: Settings) -> dict[str, Any]:
    """How every client of ours reaches the brokers.

    Raises:
        LatentEncoderError: INVALID_REQUEST: KAFKA_CONFIG_FILE cannot be read, or sets what is not for it to set.
    """
    properties: dict[str, Any] = {}
    if settings.kafka_config_file:
        found = read_properties(settings.kafka_config_file)
        properties = {
            ALIASES.get(name, name): value for name, value in found.items() if not name.startswith(OWN_PREFIX)
        }
        check_properties(properties, reserved=OURS)
    for attribute, name in CONNECTION.items():
        value = getattr(settings, attribute)
        if value is None or (name in properties and attribute not in settings.model_fields_set):
            continue
        properties[name] = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    return {**quiet(properties), "logger": client_logger(LOGGER, properties)}


def make_client(kind: Callable[[dict[str, Any]], Client], properties: dict[str, Any]) -> Client:
    """A client of the library's.

    Raises:
        LatentEncoderError: INVALID_REQUEST: a setting that librdkafka does not take.
    """
    try:
        return kind(properties)
    except (KafkaException, AttributeError, TypeError, ValueError) as error:
        cause = error.args[0] if error.args else error
        reason = cause.str() if isinstance(cause, KafkaError) else type(cause).__name__
        raise LatentEncoderError(
            "INVALID_REQUEST",
            f"The Kafka library does not take the settings: {without_secrets(reason, properties).rstrip('. ')}.",
            "Correct KAFKA_CONFIG_FILE or the KAFKA_ settings.",
        ) from None  # the library's error may hold what is hidden here


def consumer(settings: Settings, client_id: str) -> dict[str, Any]:
    """For the worker's consumer: nothing is committed by itself, aborted transactions are not seen."""
    defaults: dict[str, Any] = {
        "session.timeout.ms": SESSION_TIMEOUT_MS,
        "queued.max.messages.kbytes": 16_384,
        "topic.metadata.refresh.interval.ms": METADATA_REFRESH_MS,
        "socket.timeout.ms": SOCKET_TIMEOUT_MS,
    }
    properties = defaults | connection(settings)
    session = str(properties["session.timeout.ms"])
    if not session.isdecimal():
        raise LatentEncoderError(
            "INVALID_REQUEST", f"'session.timeout.ms' is {session!r}, not a whole number of milliseconds."
        )
    properties.setdefault("heartbeat.interval.ms", max(100, int(session) // 4))
    properties["partition.assignment.strategy"] = "cooperative-sticky"
    if settings.kafka_group_protocol == "consumer":
        properties = {name: value for name, value in properties.items() if name not in SET_BY_THE_BROKER}
    return properties | {
        "client.id": client_id,
        "group.id": settings.kafka_consumer_group,
        "group.protocol": settings.kafka_group_protocol,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "isolation.level": "read_committed",
        "allow.auto.create.topics": False,
    }


def producer(settings: Settings, client_id: str, transactional_id: str | None = None) -> dict[str, Any]:
    """For a producer that writes each record once; with an id, in transactions."""
    defaults: dict[str, Any] = {
        "linger.ms": 0,
        "message.timeout.ms": TRANSACTION_TIMEOUT_MS - 2_000,
        "partitioner": "murmur2_random",  # as Java's clients spread the keys
    }
    if transactional_id:
        defaults |= {"transaction.timeout.ms": TRANSACTION_TIMEOUT_MS, "retry.backoff.ms": 10}
    properties = defaults | connection(settings)
    properties |= {
        "client.id": client_id,
        "acks": "all",
        "enable.idempotence": True,
    }
    if transactional_id:
        properties["transactional.id"] = transactional_id
    return properties


def reader(settings: Settings, client_id: str) -> dict[str, Any]:
    """For a consumer that reads a topic by itself, in no group, and commits nothing."""
    return connection(settings) | {
        "client.id": client_id,
        "group.id": client_id,  # the library wants one; nothing is ever committed under it
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        "allow.auto.create.topics": False,
    }
