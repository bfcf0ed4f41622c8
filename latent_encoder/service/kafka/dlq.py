"""``dlq list`` and ``dlq show``: the dead letters, chosen by code, time, request id or place."""

from __future__ import annotations

import argparse
import base64
import json
import logging
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from confluent_kafka import Message

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.exit_codes import DONE, FAILED
from latent_encoder.service.logs import CONTROL

from .brokers import Brokers, admin
from .dead_letters import DeadLetter
from .messages import Headers, headers_of, read_request

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings

AGO = re.compile(r"(\d{1,6})([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
COLUMNS = ("PLACE", "FAILED AT", "CODE", "REQUEST ID", "TRIED", "REPLAYED", "MESSAGE")
NARROWEST = 20

Failure = tuple[str, str, str, str]
"""What tells one failure from every other: the topic, partition and offset of the message, and when it failed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A dead letter, and what is known of it.

    Attributes:
        failed_at: None where it does not tell.
        request_id: as its answer had it; None where it had none.
        failed_again: whether it was replayed, and a later dead letter tells of that.
    """

    letter: DeadLetter
    failed_at: datetime | None
    request_id: str | None
    failed_again: bool = False

    @property
    def place(self) -> str:
        """``PARTITION:OFFSET`` in the dead letter topic."""
        return f"{self.letter.partition}:{self.letter.offset}"

    @property
    def code(self) -> str:
        return self.letter.told("dlq.error.code")


@dataclass(frozen=True)
class Choice:
    """Which dead letters are meant; what is None or empty chooses nothing.

    Attributes:
        since, until: when they failed.
        limit: the newest so many of those that fit.
    """

    places: frozenset[str] = frozenset()
    request_id: str | None = None
    code: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    limit: int | None = None

    @classmethod
    def of(cls, options: argparse.Namespace) -> Choice:
        """What the command line says.

        Raises:
            LatentEncoderError: INVALID_REQUEST; it names the option.
        """
        for place in options.places:
            if not re.fullmatch(r"\d{1,9}:\d{1,18}", place):
                raise _wrong("PARTITION:OFFSET", place, "Two numbers, as dlq list shows them: 0:17.")
        if options.limit is not None and not re.fullmatch(r"[1-9]\d{0,8}", options.limit):
            raise _wrong("--limit", options.limit, "A whole number from 1.")
        return cls(
            frozenset(
                f"{int(partition)}:{int(offset)}" for partition, offset in (p.split(":") for p in options.places)
            ),
            options.id,
            options.code and options.code.upper(),
            _time("--since", options.since),
            _time("--until", options.until),
            options.limit and int(options.limit),
        )

    def fits(self, entry: Entry) -> bool:
        """Whether this one is meant, ``limit`` aside."""
        failed_at = entry.failed_at or datetime.fromtimestamp(0, timezone.utc)
        return (
            (not self.places or entry.place in self.places)
            and self.request_id in (None, entry.request_id)
            and self.code in (None, entry.code)
            and (self.since is None or failed_at >= self.since)
            and (self.until is None or failed_at <= self.until)
        )


def list_letters(settings: Settings, chosen: Choice, *, as_json: bool) -> int:
    """Print a table of the dead letters, or a line of JSON for each; returns the exit code."""
    entries = find_letters(Brokers(settings, f"dlq-{uuid4().hex[:8]}"), chosen)
    if as_json:
        for entry in entries:
            print(json.dumps(_row(entry)))
        return DONE
    print_table(entries)
    return DONE


def show_letters(settings: Settings, chosen: Choice, *, as_json: bool) -> int:
    """Print all headers and the value of dead letters; returns the exit code, 1 where there is none."""
    entries = find_letters(Brokers(settings, f"dlq-{uuid4().hex[:8]}"), chosen)
    if not entries:
        logger.error("There is no such dead letter in '%s'.", settings.kafka_dlq_topic)
        return FAILED
    for number, entry in enumerate(entries):
        if as_json:
            print(json.dumps(_whole(entry)))
        else:
            print("\n" * bool(number) + "\n".join(_lines(entry)))
    return DONE


def find_letters(brokers: Brokers, chosen: Choice) -> list[Entry]:
    """The chosen dead letters, the oldest first.

    Raises:
        LatentEncoderError: KAFKA_UNAVAILABLE.
    """
    topic = brokers.settings.kafka_dlq_topic
    start, end = (brokers.offsets(topic, wanted) for wanted in (admin.OffsetSpec.earliest(), admin.OffsetSpec.latest()))
    found: list[Entry] = []
    replayed: set[Failure] = set()
    for message in brokers.read(topic, start, end):
        entry = _entry(message, brokers.settings)
        replayed.update(failures(entry.letter.headers)[:-1])
        if chosen.fits(entry):
            found.append(entry)
    found.sort(key=lambda entry: (entry.failed_at is not None, entry.failed_at, entry.letter.offset))
    found = found[-chosen.limit :] if chosen.limit else found
    return [
        Entry(entry.letter, entry.failed_at, entry.request_id, newest_failure(entry.letter) in replayed)
        for entry in found
    ]


def failures(headers: Headers) -> list[Failure]:
    """Every failure that these headers tell of, in order. Each begins with ``dlq.original.topic``."""
    found: list[dict[str, str]] = []
    for name, value in headers:
        if name == "dlq.original.topic":
            found.append({})
        if found and name.startswith("dlq."):
            found[-1][name.removeprefix("dlq.")] = (value or b"").decode("utf-8", "replace")
    wanted = ("original.topic", "original.partition", "original.offset", "failed_at")
    topic, partition, offset, failed_at = wanted
    return [(told[topic], told.get(partition, ""), told.get(offset, ""), told.get(failed_at, "")) for told in found]


def newest_failure(letter: DeadLetter) -> Failure | None:
    """The failure that made this dead letter; None where it does not tell."""
    return next(reversed(failures(letter.headers)), None)


def print_table(entries: Sequence[Entry]) -> None:
    """One dead letter a line, and how many of each code."""
    if not entries:
        print("There is no such dead letter.")
        return
    rows = [COLUMNS, *(tuple(map(str, _row(entry).values())) for entry in entries)]
    rows = [tuple(cell.translate(CONTROL) for cell in row) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS) - 1)]
    left = max(NARROWEST, shutil.get_terminal_size((10_000, 24)).columns - sum(widths) - 2 * len(widths))
    if not sys.stdout.isatty():
        left = 10_000
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[-1] if len(row[-1]) <= left else row[-1][: left - 3] + "..."]).rstrip())
    counts = ", ".join(
        f"{count:,} {code or 'without a code'}" for code, count in Counter(e.code for e in entries).items()
    )
    print(f"{len(entries):,} dead letters: {counts}")


def _row(entry: Entry) -> dict[str, Any]:
    """What a line of the list says."""
    letter = entry.letter
    replayed = f"{letter.replays} times" if letter.replays != 1 else "once"
    state = [replayed] * bool(letter.replays) + ["failed again"] * entry.failed_again
    return {
        "place": entry.place,
        "failed_at": letter.told("dlq.failed_at") or "-",
        "code": entry.code,
        "request_id": entry.request_id or "-",
        "attempts": letter.told("dlq.attempts"),
        "replayed": ", ".join(state) or "-",
        "message": letter.told("dlq.error.message"),
    }


def _whole(entry: Entry) -> dict[str, Any]:
    letter = entry.letter
    return {
        "place": entry.place,
        "request_id": entry.request_id,
        "failed_again": entry.failed_again,
        "key": _json_bytes(letter.key),
        "headers": [[name, _json_bytes(value)] for name, value in letter.headers],
        "value": _json_bytes(letter.value),
    }


def _json_bytes(data: bytes | None) -> Any:
    """Bytes as text, else ``{"base64": ...}``."""
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data or b"").decode()}


def _lines(entry: Entry) -> Iterator[str]:
    letter = entry.letter
    yield f"Dead letter {entry.place}" + (", replayed, and failed again" if entry.failed_again else "")
    yield f"  key: {_shown(letter.key)}"
    width = max((len(name) for name, _ in letter.headers), default=0)
    for name, value in letter.headers:
        yield f"  {name.translate(CONTROL):<{width}}  {_shown(value)}"
    if letter.told("dlq.value.omitted") == "true":
        yield "  value: left out, because the topic took no message that large"
    else:
        yield f"  value: {_shown(letter.value)}"


def _shown(data: bytes | None) -> str:
    """Bytes on a terminal: text without control characters, else as Python writes them."""
    if data is None:
        return "null"
    try:
        return data.decode().translate(CONTROL)
    except UnicodeDecodeError:
        return repr(data)


def _entry(message: Message, settings: Settings) -> Entry:
    letter = DeadLetter(
        message.partition() or 0, message.offset() or 0, message.key(), message.value(), _headers_of(message)
    )
    failed_at = _read_time(letter.told("dlq.failed_at"))
    kind, written_at = message.timestamp()
    if failed_at is None and kind:
        failed_at = datetime.fromtimestamp(written_at / 1000, timezone.utc)
    return Entry(letter, failed_at, _request_id(letter, settings))


def _headers_of(message: Message) -> Headers:
    try:
        return list(headers_of(message))
    except LatentEncoderError:
        return []


def _request_id(letter: DeadLetter, settings: Settings) -> str | None:
    """The id that the message was answered under: one that was made was made of the message's place."""
    partition, offset, written_at = (
        letter.told(f"dlq.original.{name}") for name in ("partition", "offset", "timestamp")
    )
    if not (partition.isdecimal() and offset.isdecimal()):
        return None
    original = Message(
        topic=letter.told("dlq.original.topic"),
        partition=int(partition),
        offset=int(offset),
        key=letter.key,
        value=letter.value,
        headers=[(name, value) for name, value in letter.headers],
        timestamp=(1, int(written_at)) if written_at.isdecimal() else (0, 0),
    )
    if letter.told("dlq.value.omitted") == "true":
        return (letter.key or b"").decode("utf-8", "replace") or None
    return read_request(original, settings).request_id


def _time(option: str, text: str | None) -> datetime | None:
    """A time as RFC 3339 writes it, or so long ago."""
    if text is None:
        return None
    moment = _long_ago(text) or _read_time(text)
    if moment is None:
        raise _wrong(option, text, "A time such as 2026-01-02T03:04:05Z, or so long ago: 90m, 12h, 7d.")
    return moment


def _long_ago(text: str) -> datetime | None:
    ago = AGO.fullmatch(text)
    try:
        return datetime.now(timezone.utc) - timedelta(seconds=int(ago[1]) * SECONDS[ago[2]]) if ago else None
    except OverflowError:  # before the year 1
        return None


def _read_time(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", text))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _wrong(option: str, value: str, hint: str) -> LatentEncoderError:
    return LatentEncoderError("INVALID_REQUEST", f"{option} is {value!r:.80}.", hint)
