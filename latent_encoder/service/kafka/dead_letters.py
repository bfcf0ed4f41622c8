"""Dead letters: a message that failed, its key, value and headers as they were, and headers that say what happened.

A message that is replayed and fails again bears the headers of both times, in order; the last ones are the newest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from latent_encoder.errors import LatentEncoderError
from latent_encoder.kafka_message import utc_now

from .messages import SHORTEST, WHOLE, Headers, Incoming, header

FIELDS = {
    "dlq.original.topic": "the topic that the message came from",
    "dlq.original.partition": "its partition there",
    "dlq.original.offset": "its offset there",
    "dlq.original.timestamp": "its time there, in milliseconds since 1970; empty where it had none",
    "dlq.original.group": "the consumer group that read it",
    "dlq.error.code": "the error's code, as in the answer",
    "dlq.error.message": "what happened",
    "dlq.error.hint": "what to do",
    "dlq.error.stage": "read: the message is no EncodeRequest; encode: it is one",
    "dlq.attempts": "how often it was tried, or, for a process that died of it, how often that was seen",
    "dlq.worker": "the worker that gave up",
    "dlq.failed_at": "when, as RFC 3339",
    "dlq.value.omitted": "true where the value was left out because the topic takes no message that large",
}
"""Every header of ours, UTF-8 text, and its meaning."""

LONGEST_TEXT = 4096


def dead_letter_record(
    topic: str,
    incoming: Incoming,
    error: LatentEncoderError,
    *,
    group: str,
    worker: str,
    attempts: int,
    length: int = WHOLE,
) -> dict[str, Any]:
    """What ``Producer.produce`` takes for a message that failed.

    Args:
        length: SHORT leaves out its value and headers, SHORTEST its key too.
    """
    told = {
        "dlq.original.topic": incoming.topic,
        "dlq.original.partition": incoming.partition,
        "dlq.original.offset": incoming.offset,
        "dlq.original.timestamp": "" if incoming.timestamp is None else incoming.timestamp,
        "dlq.original.group": group,
        "dlq.error.code": error.code,
        "dlq.error.message": error.message[:LONGEST_TEXT],
        "dlq.error.hint": (error.hint or "")[:LONGEST_TEXT],
        "dlq.error.stage": "read" if incoming.request is None else "encode",
        "dlq.attempts": attempts,
        "dlq.worker": worker,
        "dlq.failed_at": utc_now(),
    }
    if length != WHOLE:
        told["dlq.value.omitted"] = "true"
    ours = [(name, str(value).encode()) for name, value in told.items()]
    return {
        "topic": topic,
        "key": None if length == SHORTEST else incoming.key,
        "value": incoming.value if length == WHOLE else None,
        "headers": [*incoming.headers, *ours] if length == WHOLE else ours,
    }


@dataclass(frozen=True)
class DeadLetter:
    """A dead letter, read.

    Attributes:
        partition, offset: where it stands in the dead letter topic.
        headers: all of them.
        replays: how often it has been replayed before.
    """

    partition: int
    offset: int
    key: bytes | None = field(repr=False)
    value: bytes | None = field(repr=False)
    headers: Headers = field(repr=False)

    def told(self, name: str) -> str:
        """The newest header of that name, as text; empty where there is none."""
        return (header(self.headers, name) or b"").decode("utf-8", "replace")

    @property
    def replays(self) -> int:
        return max(0, sum(name == "dlq.failed_at" for name, _ in self.headers) - 1)
