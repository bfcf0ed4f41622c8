"""What ComfyUI's administrator says of Kafka: ``client.properties``, for librdkafka, with a few lines of ours."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import LatentEncoderError
from .kafka_properties import check_properties, read_properties

PROPERTIES_NAME = "client.properties"
OWN_PREFIX = "latent_encoder."
DEFAULT_TIMEOUT = 30.0
DEFAULT_INLINE_MAX_BYTES = 524_288
MAX_TIMEOUT = 3600.0

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublisherSettings:
    """What ``client.properties`` says.

    Attributes:
        client: the lines for librdkafka.
        topics: those that may be written to, in their order.
        inline_max_bytes: the largest file that may be sent inline.
        timeout_seconds: how long one message may take, until it is confirmed.
    """

    client: Mapping[str, str] = field(repr=False)
    topics: tuple[str, ...] = ()
    inline_max_bytes: int = DEFAULT_INLINE_MAX_BYTES
    timeout_seconds: float = DEFAULT_TIMEOUT


def read_settings(path: Path) -> PublisherSettings:
    """The settings in ``client.properties``.

    Raises:
        LatentEncoderError: KAFKA_UNAVAILABLE where there is no such file; INVALID_REQUEST names the line or the setting
            that is wrong.
    """
    if not path.exists():
        raise LatentEncoderError(
            "KAFKA_UNAVAILABLE",
            f"Kafka is not set up here: there is no '{path.name}' in the folder '{path.parent.name}' of ComfyUI's user "
            "folder.",
            f"The administrator writes it, with the lines bootstrap.servers=host:9092 and {OWN_PREFIX}topics=a,b.",
            retryable=False,
        )
    properties = read_properties(path)
    own = {name: value for name, value in properties.items() if name.startswith(OWN_PREFIX)}
    client = {name: value for name, value in properties.items() if name not in own}
    check_properties(client)
    if not (client.get("bootstrap.servers") or client.get("metadata.broker.list")):
        raise _wrong_setting("bootstrap.servers", "is not set", "bootstrap.servers=broker.example.org:9092")
    known = {"topics": _topics, "inline_max_bytes": _inline_max_bytes, "timeout_seconds": _timeout_seconds}
    values: dict[str, Any] = {}
    for name, value in own.items():
        short = name.removeprefix(OWN_PREFIX)
        if short not in known:
            names = ", ".join(OWN_PREFIX + entry for entry in known)
            raise _wrong_setting(name, "is no setting", f"one of {names}")
        values[short] = known[short](name, value)
    return PublisherSettings(client, **values)


def allowed_topics(path: Path) -> list[str]:
    """The topics that a user may choose; none where ``client.properties`` is missing or wrong."""
    try:
        return list(read_settings(path).topics)
    except LatentEncoderError as error:
        if path.exists():
            logger.warning("Latent Encoder: %s", error)
        return []


def _topics(name: str, value: str) -> tuple[str, ...]:
    topics = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    if not topics or not all(_TOPIC.fullmatch(topic) for topic in topics):
        raise _wrong_setting(name, "is no list of topics", f"{name}=one-topic,another-topic")
    return topics


def _inline_max_bytes(name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", value):
        raise _wrong_setting(name, "is no number of bytes", f"{name}={DEFAULT_INLINE_MAX_BYTES}")
    return int(value)


def _timeout_seconds(name: str, value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", value) or not 0 < float(value) <= MAX_TIMEOUT:
        reason = f"is no number of seconds up to {MAX_TIMEOUT:g}"
        raise _wrong_setting(name, reason, f"{name}={DEFAULT_TIMEOUT:g}")
    return float(value)


def _wrong_setting(name: str, problem: str, example: str) -> LatentEncoderError:
    return LatentEncoderError(
        "INVALID_REQUEST", f"'{name}' in '{PROPERTIES_NAME}' {problem}.", f"The administrator writes: {example}"
    )
