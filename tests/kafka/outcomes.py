"""What must be true of every run, whatever happened in it."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException, Message
from kafka.topics import Topics, hanging_transactions, produce, read_topic, unread

from latent_encoder.latent_file import load_latent
from latent_encoder.provenance import REQUEST_ID

FINISH_SECONDS = 120.0
TRANSACTION_SECONDS = 20.0  # the workers' transaction.timeout.ms, and what the broker takes to see it


@dataclass
class Outcome:
    """The answers and dead letters of a run.

    Attributes:
        answers: by request id, in the order of their partitions.
        dead: the dead letters.
    """

    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    dead: list[Message] = field(default_factory=list)

    def codes(self) -> Counter[str]:
        """How many answers of each code; ``success`` for a good one."""
        return Counter(answer["error_code"] or "success" for found in self.answers.values() for answer in found)


def requests(ids: Sequence[str], picture: str, **fields: Any) -> list[dict[str, Any]]:
    """Records that ask for one picture under many ids."""
    return [{"key": name, "value": json.dumps({"request_id": name, "image_path": picture, **fields})} for name in ids]


def send(bootstrap: str, topics: Topics, records: list[dict[str, Any]]) -> list[Message]:
    """Send requests; the delivered messages."""
    return produce(bootstrap, topics.request, records)


def wait_answered(bootstrap: str, topics: Topics, group: str, timeout: float = FINISH_SECONDS) -> None:
    """Wait until the group has committed the end of the request topic."""
    deadline = time.monotonic() + timeout
    while left := still_unread(bootstrap, topics, group):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not answered after {timeout:g} s, by partition: {left}")
        time.sleep(0.2)


def still_unread(bootstrap: str, topics: Topics, group: str) -> dict[int, int] | str:
    """What the group has still before it, or why that is not known yet; empty where nothing is."""
    try:
        return unread(bootstrap, group, topics.request)
    except (KafkaException, TimeoutError) as error:  # a broker that has just started loads the group's offsets first
        return str(error)


def check_outcome(
    bootstrap: str, topics: Topics, folder: Path, sent: list[Message], *, repeats: bool = False
) -> Outcome:
    """Read everything that came of these messages, and hold it against every promise.

    One answer for each message that tells an id, none else; each file that is named is there, loads and has the
    checksum of its answer, and is this very request's; answers are in the order of their requests' partition; the dead
    letters are exactly the error answers and what tells no id; the group's offsets are the end; no temporary file is
    left; no transaction hangs.

    Args:
        repeats: delivery is at least once: what came more often than it should is left out of the rest.
    """
    group = f"{topics.request}-group"
    assert unread(bootstrap, group, topics.request) == {}
    _check_transactions(bootstrap, topics)
    outcome = Outcome(messages=read_topic(bootstrap, topics.response), dead=read_topic(bootstrap, topics.dlq))
    for message in outcome.messages:
        answer = json.loads(message.value())
        outcome.answers.setdefault(answer["request_id"], []).append(answer)

    wanted = Counter(id_of(message) for message in sent)
    del wanted[None]
    if repeats:
        outcome.answers = {name: found[: wanted[name]] for name, found in outcome.answers.items()}
        outcome.dead = list({_place_of(letter): letter for letter in outcome.dead}.values())
    assert Counter({name: len(found) for name, found in outcome.answers.items()}) == wanted
    if not repeats:
        _check_order(outcome, sent)
    _check_dead_letters(outcome, sent)
    _check_files(outcome, folder)
    return outcome


def id_of(message: Message) -> str | None:
    """The id that a message's body, else its key, tells."""
    try:
        name = json.loads(message.value())["request_id"]
    except (ValueError, TypeError, KeyError, RecursionError):
        name = (message.key() or b"").decode("utf-8", "replace")
    return name if REQUEST_ID.fullmatch(name) else None


def text_header(message: Message, name: str) -> str:
    """A header as text; the last one of that name."""
    return next(value.decode() for found, value in reversed(message.headers() or []) if found == name)


def _check_transactions(bootstrap: str, topics: Topics) -> None:
    """What is open is about to be committed, or a dead worker's, which the broker ends after its time."""
    deadline = time.monotonic() + TRANSACTION_SECONDS
    while open_ones := hanging_transactions(bootstrap, topics.response, topics.dlq):
        assert time.monotonic() < deadline, open_ones
        time.sleep(0.2)


def _check_order(outcome: Outcome, sent: list[Message]) -> None:
    """Within a partition of the answers, those to one partition of requests are in its order; of messages that come
    twice with one id nobody can say whose answer is whose."""
    times = Counter(id_of(message) for message in sent)
    places = {id_of(message): (message.partition(), message.offset()) for message in sent}
    last: dict[tuple[int, int], int] = {}
    for message in outcome.messages:
        name = json.loads(message.value())["request_id"]
        if times[name] == 1:
            partition, offset = places[name]
            assert last.get((message.partition(), partition), -1) < offset, name
            last[message.partition(), partition] = offset


def _check_dead_letters(outcome: Outcome, sent: list[Message]) -> None:
    by_place = {(message.partition(), message.offset()): message for message in sent}
    failed = Counter(
        (name, answer["error_code"]) for name, found in outcome.answers.items() for answer in found
        if answer["status"] == "error"
    )  # fmt: skip
    dead: Counter[tuple[str | None, str]] = Counter()
    for letter in outcome.dead:
        original = by_place.pop(_place_of(letter))  # raises where one message has two dead letters
        assert (letter.key(), letter.value()) == (original.key(), original.value())
        assert (letter.headers() or [])[: len(original.headers() or [])] == (original.headers() or [])
        dead[id_of(original), text_header(letter, "dlq.error.code")] += 1
    without_id = Counter(entry for entry in dead.elements() if entry[0] is None)
    assert dead - without_id == failed
    assert sum(without_id.values()) == sum(id_of(message) is None for message in sent)


def _place_of(letter: Message) -> tuple[int, int]:
    """Where a dead letter's message stood."""
    return int(text_header(letter, "dlq.original.partition")), int(text_header(letter, "dlq.original.offset"))


def _check_files(outcome: Outcome, folder: Path) -> None:
    named = set()
    for name, found in outcome.answers.items():
        good = [answer for answer in found if answer["status"] == "success"]
        assert len({(answer["latent_file_path"], answer["metadata"]["file_sha256"]) for answer in good}) <= 1
        for answer in good[:1]:
            path = Path(answer["latent_file_path"])
            assert (path.stem, answer["metadata"]["request_id"]) == (name, name)
            assert hashlib.sha256(path.read_bytes()).hexdigest() == answer["metadata"]["file_sha256"]
            loaded = load_latent(path)
            assert loaded.verified
            assert loaded.record["request_id"] == name
            assert list(loaded.latent["samples"].shape) == answer["latent_shape"]
            named |= {path.name, f"{path.name}.json"}
    # A message that was given up may have left a file behind: whole, but named by no answer.
    left = {path.name for path in (folder / "latents").iterdir()} - named
    assert not [name for name in left if not name.endswith((".safetensors", ".json"))]
