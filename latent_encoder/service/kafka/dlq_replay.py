"""``dlq replay``: messages that failed are sent again, byte for byte, to the topic that they came from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING
from uuid import uuid4

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.exit_codes import DONE, FAILED, SOME_FAILED

from .brokers import Brokers, admin
from .dlq import Choice, Entry, Failure, failures, find_letters, newest_failure, print_table
from .messages import headers_of
from .send import deliver, delivery_error

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings

CLOCKS_DIFFER = timedelta(hours=1)
"""A replayed message may bear an earlier time than its failure by so much, where clocks do not agree."""

logger = logging.getLogger(__name__)


@dataclass
class Plan:
    """What a replay does with the chosen dead letters.

    Attributes:
        send: these are sent.
        left_out: these are not, each with the reason.
    """

    send: list[Entry] = field(default_factory=list)
    left_out: list[tuple[Entry, str]] = field(default_factory=list)


def replay(settings: Settings, chosen: Choice, *, yes: bool, again: bool) -> int:
    """Show what would be sent, or with ``yes`` send it.

    Args:
        again: also what is known to have been replayed.

    Returns:
        0 done, 1 failed, 3 some of many failed.

    Raises:
        LatentEncoderError: KAFKA_UNAVAILABLE.
    """
    brokers = Brokers(settings, f"dlq-{uuid4().hex[:8]}")
    found = find_letters(brokers, chosen)
    if missing := set(chosen.places) - {entry.place for entry in found}:
        topic, places = settings.kafka_dlq_topic, ", ".join(sorted(missing))
        logger.error("There is no such dead letter in '%s': %s. Nothing is sent.", topic, places)
        return FAILED
    plan = _plan(brokers, found, again)
    if plan.send or not plan.left_out:
        print_table(plan.send)
    for entry, reason in plan.left_out:
        print(f"{entry.place} is left out: {reason}.")
    if not plan.send:
        return DONE
    if not yes:
        print(f"Nothing is sent yet: --yes sends {len(plan.send):,} messages.")
        return DONE
    return _send(brokers, plan.send)


def _plan(brokers: Brokers, entries: Sequence[Entry], again: bool) -> Plan:
    plan = Plan()
    possible = []
    for entry in entries:
        if entry.letter.told("dlq.value.omitted") == "true":
            plan.left_out.append((entry, "its value was not kept, because the topic took no message that large"))
        elif not entry.letter.told("dlq.original.topic"):
            plan.left_out.append((entry, "it does not tell which topic it came from"))
        elif entry.failed_again and not again:
            plan.left_out.append((entry, "it was replayed, and failed again: a later dead letter tells of that"))
        else:
            possible.append(entry)
    replayed = set() if again else _replayed(brokers, possible)
    for entry in possible:
        if newest_failure(entry.letter) in replayed:
            plan.left_out.append((entry, "it was replayed already; --again sends it once more"))
        else:
            plan.send.append(entry)
    return plan


def _replayed(brokers: Brokers, entries: Sequence[Entry]) -> set[Failure]:
    """The failures that messages in the topics of these dead letters bear: they have been replayed.

    Raises:
        LatentEncoderError: KAFKA_UNAVAILABLE: a topic is not there any more, or may not be read.
    """
    found: set[Failure] = set()
    for topic in dict.fromkeys(entry.letter.told("dlq.original.topic") for entry in entries):
        times = [entry.failed_at for entry in entries if entry.letter.told("dlq.original.topic") == topic]
        oldest = min((moment for moment in times if moment), default=datetime.fromtimestamp(86_400, timezone.utc))
        since = admin.OffsetSpec.for_timestamp(int((oldest - CLOCKS_DIFFER).timestamp() * 1000))
        start, end = brokers.offsets(topic, since), brokers.offsets(topic, admin.OffsetSpec.latest())
        for message in brokers.read(topic, start, end):
            with suppress(LatentEncoderError):  # headers that cannot be read are none of ours
                found.update(failures(headers_of(message)))
    return found


def _send(brokers: Brokers, entries: Sequence[Entry]) -> int:
    records = [
        {
            "topic": entry.letter.told("dlq.original.topic"),
            "key": entry.letter.key,
            "value": entry.letter.value,
            "headers": entry.letter.headers,
        }
        for entry in entries
    ]
    sent = failed = 0
    try:
        for index, error, message in deliver(brokers.producer(), records):
            entry = entries[index]
            if error is not None:
                failed += 1
                refused = delivery_error(brokers, str(records[index]["topic"]), error)
                logger.error("%s: %s: %s", entry.place, refused.code, refused.message)
            elif message is not None:
                sent += 1
                print(f"{entry.place} -> {message.topic()}[{message.partition()}]@{message.offset()}")
    except KeyboardInterrupt:
        logger.warning("Interrupted: %d of %d messages are known to be sent.", sent, len(entries))
        raise
    print(f"{sent:,} messages are sent.")
    if not failed:
        return DONE
    return FAILED if failed == len(entries) else SOME_FAILED
