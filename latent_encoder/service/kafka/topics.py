"""``topics create`` and ``topics check``: the topics as they should be, as they are, and what this user may do."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from confluent_kafka import KafkaError, KafkaException, TopicCollection

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.exit_codes import DONE, FAILED

from .brokers import REACH_SECONDS, SLICE_SECONDS, Brokers, admin, answer

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings

DAY_MS = 86_400_000
UNITS = {"day": DAY_MS, "hour": 3_600_000, "minute": 60_000, "second": 1000}
READ, WRITE, DESCRIBE = admin.AclOperation.READ, admin.AclOperation.WRITE, admin.AclOperation.DESCRIBE
HIDDEN_CODES = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED)
NOT_YET = (KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.NOT_COORDINATOR)
RIGHTS: dict[str, tuple[tuple[Any, ...], dict[Any, str]]] = {
    "requests": ((READ, DESCRIBE), {WRITE: "send and dlq replay"}),
    "answers": ((WRITE, DESCRIBE), {READ: "send --wait"}),
    "dead letters": ((WRITE, DESCRIBE), {READ: "dlq"}),
}
"""What a worker does with each topic; and what others do, and who."""

SHOWN_CONFIG = ("cleanup.policy", "retention.ms", "max.message.bytes")


@dataclass(frozen=True)
class Plan:
    """How topics are to be created.

    Attributes:
        partitions, replication: of each; a replication of -1 is the brokers' own default.
        retention_days, dlq_retention_days: how long messages are kept.
    """

    partitions: int = 12
    replication: int = -1
    retention_days: int = 7
    dlq_retention_days: int = 30

    @classmethod
    def of(cls, options: argparse.Namespace) -> Plan:
        """What the command line says.

        Raises:
            LatentEncoderError: INVALID_REQUEST for a number that cannot be.
        """
        plan = cls(options.partitions, options.replication_factor, options.retention_days, options.dlq_retention_days)
        if min(plan.partitions, plan.retention_days, plan.dlq_retention_days) < 1 or plan.replication not in (
            -1,
            *range(1, 33),
        ):
            raise LatentEncoderError(
                "INVALID_REQUEST",
                "Partitions and days are at least 1; the replication factor is -1, or 1 to 32.",
                "",
            )
        return plan

    def config(self, settings: Settings, topic: str) -> dict[str, str]:
        """A topic's own settings."""
        days = self.dlq_retention_days if topic == settings.kafka_dlq_topic else self.retention_days
        return {"cleanup.policy": "delete", "retention.ms": str(days * DAY_MS)}


def names(settings: Settings) -> dict[str, str]:
    """The topics, by what they are for."""
    return {
        "requests": settings.kafka_request_topic,
        "answers": settings.kafka_response_topic,
        "dead letters": settings.kafka_dlq_topic,
    }


def create(settings: Settings, plan: Plan, *, dry_run: bool) -> int:
    """Create the topics that are not there, and say what is otherwise with those that are; returns the exit code.

    Raises:
        LatentEncoderError: KAFKA_UNAVAILABLE.
    """
    brokers = Brokers(settings, f"topics-{uuid4().hex[:8]}")
    there = brokers.topics()
    failed = False
    for name in dict.fromkeys(names(settings).values()):
        if name in there and not there[name].error:
            print(f"{name}: is there; left as it is.")
            _print_differences(brokers, there[name], plan, plan.config(settings, name))
            continue
        failed = not _create_one(brokers, name, plan, plan.config(settings, name), dry_run) or failed
    return FAILED if failed else DONE


def _create_one(brokers: Brokers, name: str, plan: Plan, config: dict[str, str], dry_run: bool) -> bool:
    topic = admin.NewTopic(name, plan.partitions, plan.replication, config=config)
    futures = brokers.admin.create_topics(
        [topic], validate_only=dry_run, operation_timeout=REACH_SECONDS, request_timeout=2 * REACH_SECONDS
    )
    kept = retention_words(config["retention.ms"])
    try:
        answer(futures[name])
    except KafkaException as error:
        reason = error.args[0]
        if reason.code() == KafkaError.TOPIC_ALREADY_EXISTS:
            print(f"{name}: is there already; this user may not see it, or another one was faster.")
            return True
        print(f"{name}: cannot be created: {brokers.words(reason)}.")
        return False
    print(f"{name}: {'would be created' if dry_run else 'created'}: {plan.partitions} partitions, kept for {kept}.")
    return True


def _print_differences(brokers: Brokers, topic: Any, plan: Plan, wanted: dict[str, str]) -> None:
    name = str(topic.topic)
    if len(topic.partitions) != plan.partitions:
        print(f"  It has {len(topic.partitions)} partitions; {plan.partitions} were asked for.")
    try:
        config = _config(brokers, name)
    except LatentEncoderError as error:
        print(f"  Its settings cannot be read: {error.message}")
        return
    for key, value in wanted.items():
        if config.get(key) != value:
            print(f"  Its {key} is {_spoken(key, config.get(key))}; {_spoken(key, value)} was asked for.")


def check(settings: Settings) -> int:
    """Say in words how the topics are, and what this user may do with them, the group and the transactions.

    Returns:
        0 where a worker has all that it needs, else 1.

    Raises:
        LatentEncoderError: KAFKA_UNAVAILABLE.
    """
    brokers = Brokers(settings, f"topics-{uuid4().hex[:8]}")
    brokers.topics()
    report = _Report(settings, brokers)
    report.authorizer()
    members = report.group()
    for purpose, name in names(settings).items():
        report.topic(purpose, name, members)
    report.transactions()
    print(f"\nA worker lacks: {'; '.join(report.missing)}." if report.missing else "\nA worker has all that it needs.")
    return FAILED if report.missing else DONE


class _Report:
    """Prints what it finds.

    Attributes:
        missing: what a worker would not get.
    """

    def __init__(self, settings: Settings, brokers: Brokers) -> None:
        self._settings, self._brokers = settings, brokers
        self.missing: list[str] = []

    def authorizer(self) -> None:
        """Whether these brokers check rights at all."""
        user = self._settings.kafka_sasl_username
        print(f"Brokers at {self._brokers.addresses}: reached{f' as {user!r}' if user else ''}.")
        broker = str(min(self._brokers.admin.list_topics(timeout=REACH_SECONDS).brokers))
        resource = admin.ConfigResource(admin.ResourceType.BROKER, broker)
        try:
            futures = self._brokers.admin.describe_configs([resource], request_timeout=REACH_SECONDS)
            found = answer(futures[resource]).get("authorizer.class.name")
        except KafkaException:  # who may not ask for this is under somebody's rights
            return
        if found and not found.value:
            print("They have no authorizer: every user may do everything.")

    def topic(self, purpose: str, name: str, members: int) -> None:
        """One topic."""
        print(f"\n{name} ({purpose})")
        try:
            found = self._describe(name)
        except KafkaException as error:
            hidden = error.args[0].code() in HIDDEN_CODES
            words = "this user may not see it" if hidden else self._brokers.words(error.args[0])
            print(f"  Not found: {words}.")
            self.missing.append(f"the topic {name}")
            return
        replicas = min((len(part.replicas) for part in found.partitions), default=0)
        print(f"  Partitions: {len(found.partitions)}, each on {replicas} of the brokers.")
        if purpose == "requests" and len(found.partitions) < members:
            idle = members - len(found.partitions)
            print(f"  Note: {members} workers are in the group, so {idle} of them have nothing to do.")
        self._print_config(purpose, name)
        self._print_rights(f"the topic {name}", found.authorized_operations, *RIGHTS[purpose])

    def group(self) -> int:
        """The consumer group; returns how many workers are in it."""
        group = self._settings.kafka_consumer_group
        print(f"\nConsumer group {group}")
        try:
            found = self._describe_group(group)
        except KafkaException as error:
            print(f"  It cannot be described: {self._brokers.words(error.args[0])}.")
            self.missing.append(f"rights on the group {group}")
            return 0
        print(f"  Workers in it: {len(found.members)}.")
        self._print_rights(f"the group {group}", found.authorized_operations, (READ, DESCRIBE), {})
        return len(found.members)

    def transactions(self) -> None:
        """Whether a transaction may be begun, as KAFKA_DELIVERY=exactly_once does. The id is one of no worker's, for
        trying a worker's own would end that worker."""
        if self._settings.kafka_delivery != "exactly_once":
            return
        prefix = f"{self._settings.kafka_consumer_group}."
        print(f"\nTransactional ids {prefix}*")
        producer = self._brokers.producer(f"{prefix}topics-check")
        try:
            producer.init_transactions(REACH_SECONDS)
        except KafkaException as error:
            print(f"  '{prefix}topics-check' may not be used: {self._brokers.words(error.args[0])}.")
            self.missing.append(f"rights on the transactional ids {prefix}* (or KAFKA_DELIVERY=at_least_once)")
            return
        print(f"  '{prefix}topics-check' may be used.")

    def _describe_group(self, group: str) -> Any:
        give_up = time.monotonic() + REACH_SECONDS
        while True:
            futures = self._brokers.admin.describe_consumer_groups(
                [group], include_authorized_operations=True, request_timeout=REACH_SECONDS
            )
            try:
                return answer(futures[group])
            except KafkaException as error:  # new brokers have no coordinator for the first moments
                if error.args[0].code() not in NOT_YET or time.monotonic() > give_up:
                    raise
            time.sleep(SLICE_SECONDS)

    def _describe(self, name: str) -> Any:
        futures = self._brokers.admin.describe_topics(
            TopicCollection([name]), include_authorized_operations=True, request_timeout=REACH_SECONDS
        )
        return answer(futures[name])

    def _print_config(self, purpose: str, name: str) -> None:
        try:
            config = _config(self._brokers, name)
        except LatentEncoderError as error:
            print(f"  Its settings cannot be read: {error.message}")
            return
        kept, size = _spoken("retention.ms", config["retention.ms"]), _spoken("bytes", config["max.message.bytes"])
        print(f"  Messages are kept for {kept}, and may have {size}.")
        if "compact" in config["cleanup.policy"]:
            print(
                f"  Its cleanup.policy is {config['cleanup.policy']}: older {purpose} of the same key are thrown away."
            )
            self.missing.append(f"cleanup.policy=delete of the topic {name}")

    def _print_rights(
        self, what: str, granted: list[Any] | None, needed: Sequence[Any], useful: Mapping[Any, str]
    ) -> None:
        """What this user may do.

        Args:
            needed: what a worker does.
            useful: what else is done, and by whom.
        """
        have = set(granted or ())
        may = [right.name.lower() for right in (*needed, *useful) if right in have]
        print(f"  This user may {f'{_and(may)} it' if may else 'do nothing with it'}.")
        may_not = [right.name.lower() for right in needed if right not in have]
        if may_not:
            print(f"  It may not {_and(may_not)} it, as a worker must.")
            self.missing.append(f"the right to {_and(may_not)} {what}")
        for right, whom in useful.items():
            if right not in have:
                print(f"  It may not {right.name.lower()} it, as {whom} must.")


def _config(brokers: Brokers, topic: str) -> dict[str, str]:
    """The settings of a topic, its own and those it has from the brokers.

    Raises:
        LatentEncoderError: KAFKA_UNAVAILABLE: they may not be read.
    """
    resource = admin.ConfigResource(admin.ResourceType.TOPIC, topic)
    futures = brokers.admin.describe_configs([resource], request_timeout=REACH_SECONDS)
    found: dict[str, Any] = brokers.result(futures[resource])
    return {name: str(found[name].value) for name in SHOWN_CONFIG}


def _spoken(name: str, value: str | None) -> str:
    if name == "retention.ms":
        return retention_words(value or "-1")
    return f"up to {int(value or 0):,} bytes" if name == "bytes" else str(value)


def retention_words(value: str) -> str:
    """Milliseconds in the largest unit that fits: ``7 days``; ``ever`` for -1."""
    number = int(value)
    if number < 0:
        return "ever"
    for unit, size in UNITS.items():
        if number >= size and number % size == 0:
            count = number // size
            return f"{count:,} {unit}{'s' if count > 1 else ''}"
    return f"{number:,} ms"


def _and(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
