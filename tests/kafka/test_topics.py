"""``python main.py topics create | check`` on brokers without and with rights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ConfigResource,
    ResourcePatternType,
    ResourceType,
)
from kafka.broker import Broker
from kafka.broker_security import Account
from kafka.command_runs import Commands
from kafka.topics import Topics, admin_client, create_topics, produce

from latent_encoder.service.kafka.topics import DAY_MS, retention_words


@pytest.fixture
def names() -> Topics:
    """Topics that are not there."""
    return Topics.fresh()


@pytest.fixture
def commands(broker: Broker, names: Topics, tmp_path: Path) -> Commands:
    return Commands.on(broker.bootstrap, names, tmp_path)


def topic_config(bootstrap: str, topic: str) -> dict[str, str]:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    admin = admin_client(bootstrap)  # by name: what it has begun ends with it
    found: Any = admin.describe_configs([resource])[resource].result()
    return {name: entry.value for name, entry in found.items()}


def partitions(bootstrap: str, topic: str) -> int:
    return len(admin_client(bootstrap).list_topics(timeout=10).topics[topic].partitions)


def test_topics_are_created_once(broker: Broker, names: Topics, commands: Commands) -> None:
    dry = commands.run("topics", "create", "--dry-run")
    assert (dry.code, dry.out.count("would be created: 12 partitions")) == (0, 3)
    assert names.request not in admin_client(broker.bootstrap).list_topics(timeout=10).topics

    done = commands.run("topics", "create")
    assert (done.code, done.out.count("created: 12 partitions, kept for")) == (0, 3), done.said
    for topic, days in ((names.request, 7), (names.response, 7), (names.dlq, 30)):
        config = topic_config(broker.bootstrap, topic)
        assert (config["cleanup.policy"], config["retention.ms"]) == ("delete", str(days * DAY_MS))
        assert partitions(broker.bootstrap, topic) == 12

    again = commands.run("topics", "create")
    assert (again.code, again.out.count("is there; left as it is.")) == (0, 3)
    assert len(again.out.splitlines()) == 3, "nothing differs"


def test_what_differs_is_told_and_left(broker: Broker, names: Topics, commands: Commands) -> None:
    create_topics(broker.bootstrap, names.request, config={"retention.ms": "3600000", "cleanup.policy": "compact"})
    done = commands.run("topics", "create", "--partitions", "2", "--dlq-retention-days", "1")
    assert done.code == 0, done.said
    assert done.out.splitlines() == [
        f"{names.request}: is there; left as it is.",
        "  It has 4 partitions; 2 were asked for.",
        "  Its cleanup.policy is compact; delete was asked for.",
        "  Its retention.ms is 1 hour; 7 days was asked for.",
        f"{names.response}: created: 2 partitions, kept for 7 days.",
        f"{names.dlq}: created: 2 partitions, kept for 1 day.",
    ]
    assert partitions(broker.bootstrap, names.request) == 4


def test_what_the_brokers_refuse(commands: Commands) -> None:
    done = commands.run("topics", "create", "--replication-factor", "3")
    assert done.code == 1
    assert done.out.count("cannot be created") == 3
    assert "replication" in done.out.lower()
    assert commands.run("topics", "create", "--partitions", "0").code == 2
    assert commands.run("topics", "create", "--partitions", "many").code == 2


def test_what_is_missing_is_told(broker: Broker, names: Topics, commands: Commands) -> None:
    create_topics(broker.bootstrap, names.request, config={"cleanup.policy": "compact"})
    done = commands.run("topics", "check")
    assert done.code == 1
    assert done.out.count("Not found: Broker: Unknown topic or partition.") == 2
    assert "Its cleanup.policy is compact" in done.out
    assert (
        f"A worker lacks: cleanup.policy=delete of the topic {names.request}; the topic {names.response};" in done.out
    )


def test_all_is_there(broker: Broker, names: Topics, commands: Commands) -> None:
    commands.run("topics", "create", "--partitions", "1")
    members = []
    for _ in range(2):
        own = {"bootstrap.servers": broker.bootstrap, "group.id": f"{names.request}-group"}
        member = Consumer(own | {"allow.auto.create.topics": False})
        member.subscribe([names.request])
        members.append(member)
    while sum(len(member.assignment()) for member in members) < 1 or not all(_joined(member) for member in members):
        for member in members:
            member.poll(0.1)
    done = commands.run("topics", "check")
    for member in members:
        member.close()
    assert done.code == 0, done.out
    assert "no authorizer: every user may do everything" in done.out
    assert "Note: 2 workers are in the group, so 1 of them have nothing to do." in done.out
    assert done.out.count("Partitions: 1, each on 1 of the brokers.") == 3
    assert "Messages are kept for 30 days, and may have up to 1,048,588 bytes." in done.out
    assert "This user may read, describe and write it." in done.out
    assert f"'{names.request}-group.topics-check' may be used." in done.out
    assert done.out.endswith("A worker has all that it needs.\n")


def _joined(member: Consumer) -> bool:
    return bool(member.memberid())


def test_brokers_that_are_away(commands: Commands) -> None:
    done = commands.run("topics", "check", KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert (done.code, done.out) == (1, "")
    assert "No Kafka broker at 127.0.0.1:1 has answered" in done.said


def as_user(broker: Broker, account: Account) -> dict[str, str]:
    return {
        "KAFKA_BOOTSTRAP_SERVERS": broker.sasl_bootstrap,
        "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "KAFKA_SASL_MECHANISM": "scram-sha-256",
        "KAFKA_SASL_USERNAME": account.name,
        "KAFKA_SASL_PASSWORD": account.password,
    }


def test_a_user_without_rights(secure_broker: Broker, names: Topics, tmp_path: Path) -> None:
    commands = Commands.on(secure_broker.bootstrap, names, tmp_path, **as_user(secure_broker, secure_broker.guest))
    done = commands.run("topics", "create")
    assert (done.code, done.out.count("cannot be created")) == (1, 3)
    done = commands.run("topics", "check")
    assert done.code == 1
    assert "reached as 'guest'" in done.out
    assert "no authorizer" not in done.out
    assert done.out.count("this user may not see it") == 3
    assert f"rights on the group {names.request}-group" in done.out
    assert f"rights on the transactional ids {names.request}-group.*" in done.out
    done = commands.run("topics", "check", **as_user(secure_broker, secure_broker.user))
    assert "Unknown topic" in done.out


@pytest.fixture
def worker_rights(secure_broker: Broker, names: Topics) -> Iterator[None]:
    """The guest may do what a worker does, and no more."""
    operation, topic, user = AclOperation, ResourceType.TOPIC, f"User:{secure_broker.guest.name}"
    literal, prefixed = ResourcePatternType.LITERAL, ResourcePatternType.PREFIXED
    group = f"{names.request}-group"
    rights = [
        (topic, names.request, literal, operation.READ),
        (topic, names.response, literal, operation.WRITE),
        (topic, names.dlq, literal, operation.WRITE),
        (ResourceType.GROUP, group, literal, operation.READ),
        (ResourceType.TRANSACTIONAL_ID, f"{group}.", prefixed, operation.WRITE),
    ]
    bindings = [
        AclBinding(kind, name, pattern, user, "*", right, AclPermissionType.ALLOW)
        for kind, name, pattern, right in rights
    ]
    admin = admin_client(secure_broker.bootstrap)
    for created in admin.create_acls(bindings).values():
        created.result()
    yield
    whose = AclBindingFilter(
        ResourceType.ANY, None, ResourcePatternType.ANY, user, None, AclOperation.ANY, AclPermissionType.ANY
    )
    for deleted in admin.delete_acls([whose]).values():
        deleted.result()


@pytest.mark.usefixtures("worker_rights")
def test_a_worker_s_rights_are_enough_for_a_worker(secure_broker: Broker, names: Topics, tmp_path: Path) -> None:
    create_topics(secure_broker.bootstrap, names.request, names.response, names.dlq)
    commands = Commands.on(secure_broker.bootstrap, names, tmp_path, **as_user(secure_broker, secure_broker.guest))
    done = commands.run("topics", "check")
    assert done.code == 0, done.out
    assert "It may not write it, as send and dlq replay must." in done.out
    assert "It may not read it, as send --wait must." in done.out
    assert "It may not read it, as dlq must." in done.out
    assert "Its settings cannot be read: The Kafka brokers refuse" in done.out
    done = commands.run("send", "--image-path", "a.png")
    assert (done.code, done.out) == (1, "")
    assert "KAFKA_DELIVERY_FAILED" in done.said
    assert "Topic authorization failed" in done.said
    produce(secure_broker.bootstrap, names.dlq, [{"value": b"x"}])
    done = commands.run("dlq", "list")
    assert (done.code, done.out) == (1, "")
    assert "KAFKA_UNAVAILABLE: The topic cannot be read" in done.said
    assert "Topic authorization failed" in done.said


def test_times_in_words() -> None:
    words = {"-1": "ever", "604800000": "7 days", "3600000": "1 hour", "5400000": "90 minutes", "1": "1 ms"}
    assert {value: retention_words(value) for value in words} == words
