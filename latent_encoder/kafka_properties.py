"""Kafka's ``client.properties``: read, checked against what would break our promises, and shown without its secrets.

The names are librdkafka's (``bootstrap.servers``, ``sasl.password``, ...), as in its CONFIGURATION.md. Nothing here
imports the Kafka library before ``load_confluent_kafka`` is called.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import LatentEncoderError
from .paths import read_regular_file

LOGGER = "latent_encoder.librdkafka"
MAX_FILE_BYTES = 1 << 20
HIDDEN = "********"

GUARANTEES = frozenset(
    {
        "acks",
        "auto.commit.enable",
        "delivery.report.only.error",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.idempotence",
        "group.id",
        "isolation.level",
        "max.in.flight",
        "max.in.flight.requests.per.connection",
        "offset.store.method",
        "offset.store.path",
        "request.required.acks",
        "transactional.id",
    }
)
"""What decides whether a message is lost or doubled: Latent Encoder sets it, nobody else."""

RUNS_CODE = frozenset({"plugin.library.paths", "sasl.kerberos.kinit.cmd", "ssl.engine.location"})
"""What makes librdkafka run a program or load a library."""

FUNCTIONS = ("_cb", "logger", "on_commit", "on_delivery", "partitioner_callback")
"""What the library for Python takes as a function, and no file can give."""

QUIET = {"reconnect.backoff.ms": "500", "reconnect.backoff.max.ms": "10000", "log_level": "5"}
REPEAT_SECONDS = 60.0
"""A line that librdkafka has just logged is not logged again for so long: it may say four times a second that a broker
is away, whatever its settings."""

_VARYING = re.compile(r"\d+ms|#\w+-\d+")  # times, and the count of clients that this process has made
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SECRET = re.compile(r"password|passphrase|secret|token|jaas|username|oauthbearer.config|(^|[._])key")
_IN_FILES = re.compile(r"[._](location|url)$")  # these name where a secret is, and are needed to find mistakes


def read_properties(path: Path) -> dict[str, str]:
    """The settings in a file of ``name=value`` lines; ``#`` or ``!`` begins a comment line.

    Values are taken as they stand, without the blanks around them: no quotes, escapes or continued lines.

    Raises:
        LatentEncoderError: INVALID_REQUEST for a file that cannot be read, and for a line that is wrong, which is
            named by its number and never shown, since it may hold a password.
    """
    code = "INVALID_REQUEST"
    data = read_regular_file(path, not_found=code, invalid=code, too_large=code, limit=MAX_FILE_BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _wrong_line(path, data.count(b"\n", 0, error.start) + 1, "is not UTF-8 text") from error
    properties: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped[0] in "#!":
            continue
        name, equals, value = (part.strip() for part in stripped.partition("="))
        if not equals:
            raise _wrong_line(path, number, "has no '='")
        if not _NAME.fullmatch(name):
            raise _wrong_line(path, number, "has no setting's name before its '='")
        if name in lines:
            raise _wrong_line(path, number, f"sets '{name}' again, after line {lines[name]}")
        if any(ord(character) < 32 for character in value):
            raise _wrong_line(path, number, f"gives '{name}' a control character")
        properties[name], lines[name] = value, number
    return properties


def check_properties(properties: Mapping[str, str], *, reserved: Iterable[str] = ()) -> None:
    """Refuse settings that would break a guarantee, run other programs, or are the caller's own.

    Args:
        properties: names and values, as ``read_properties`` gives them.
        reserved: more names that the caller sets itself.

    Raises:
        LatentEncoderError: INVALID_REQUEST; it names all of them.
    """
    own = GUARANTEES | set(reserved)
    refused = sorted(name for name in properties if _plain(name) in own)
    # A mocked cluster would confirm messages that nobody gets.
    dangerous = sorted(
        name
        for name in properties
        if _plain(name) in RUNS_CODE or _plain(name).startswith("test.mock.") or _plain(name).endswith(FUNCTIONS)
    )
    reasons = []
    if refused:
        reasons.append(f"{', '.join(refused)}: Latent Encoder sets this itself, or its guarantees would not hold")
    if dangerous:
        reasons.append(f"{', '.join(dangerous)}: this would run other code or a broker that is none")
    if reasons:
        raise LatentEncoderError(
            "INVALID_REQUEST",
            f"These Kafka settings are refused: {'; '.join(reasons)}.",
            "Take the named lines out of the Kafka settings.",
        )


def is_secret(name: str) -> bool:
    """Whether a setting's value is never shown; files and addresses that a secret comes from are no secrets."""
    plain = name.lower()
    return bool(_SECRET.search(plain)) and not _IN_FILES.search(plain)


def without_secrets(text: str, properties: Mapping[str, Any]) -> str:
    """A text of the Kafka library in which the values of these settings' secrets, should they occur, are hidden."""
    secrets = {str(value) for name, value in properties.items() if is_secret(name) and "username" not in name.lower()}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN) if secret else text
    return text


def quiet(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings, with defaults that keep a broker that is away from filling the log."""
    return {**QUIET, **properties}


def client_logger(name: str, properties: Mapping[str, Any]) -> logging.Logger:
    """A logger to give to the Kafka library (its argument ``logger``): it hides the secrets of these settings, and
    leaves out what repeats itself.

    Args:
        name: the logger's name; its filter is replaced where it is asked for again.
    """
    logger = logging.getLogger(name)
    for old in [entry for entry in logger.filters if isinstance(entry, _ClientLog)]:
        logger.removeFilter(old)
    logger.addFilter(_ClientLog(properties))
    return logger


def hide_secrets(logger: logging.Logger, properties: Mapping[str, Any]) -> None:
    """Let a logger that repeats what the Kafka library says do it without the secrets of these settings."""
    for old in [entry for entry in logger.filters if isinstance(entry, _WithoutSecrets)]:
        logger.removeFilter(old)
    logger.addFilter(_WithoutSecrets(properties))


def load_confluent_kafka() -> Any:
    """The module ``confluent_kafka``.

    Raises:
        LatentEncoderError: KAFKA_UNAVAILABLE where it is not installed, or cannot be loaded.
    """
    try:
        import confluent_kafka

        return confluent_kafka
    except ImportError as error:
        raise LatentEncoderError(
            "KAFKA_UNAVAILABLE",
            f"The Kafka library confluent-kafka cannot be imported ({error}).",
            "Install it into this program's Python: pip install confluent-kafka",
            retryable=False,
        ) from error


class _WithoutSecrets(logging.Filter):
    """Rewrites each line without its secrets."""

    def __init__(self, properties: Mapping[str, Any]) -> None:
        super().__init__()
        self._properties = dict(properties)

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_secrets(record.getMessage(), self._properties), ()
        return True


class _ClientLog(_WithoutSecrets):
    """Also drops a line that was logged within ``REPEAT_SECONDS``, and what does not concern us."""

    def __init__(self, properties: Mapping[str, Any]) -> None:
        super().__init__(properties)
        self._logged: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        super().filter(record)
        if record.msg.startswith("CONFWARN") and "property and will be ignored by this" in record.msg:
            return False  # one client.properties serves consumers and producers
        line, now = _VARYING.sub("", record.msg), time.monotonic()
        if now - self._logged.get(line, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return False
        if len(self._logged) >= 256:
            self._logged.clear()
        self._logged[line] = now
        return True


def _plain(name: str) -> str:
    """A setting's name as librdkafka compares it; a topic's setting may have this prefix."""
    return name.lower().removeprefix("topic.")


def _wrong_line(path: Path, number: int, problem: str) -> LatentEncoderError:
    return LatentEncoderError(
        "INVALID_REQUEST",
        f"Line {number} of '{path.name}' {problem}.",
        "A line is name=value, for example bootstrap.servers=broker.example.org:9092; # begins a comment.",
    )
