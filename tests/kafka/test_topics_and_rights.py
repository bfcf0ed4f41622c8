"""Topics that are not there, rights that are missing, a wrong password: said in words, and mended without a restart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, ResourcePatternType, ResourceType
from kafka.broker import Broker
from kafka.broker_security import Account
from kafka.groups import Group, ids
from kafka.supervisor import Supervisor, finish, readiness, wait_until
from kafka.topics import TIMEOUT, admin_client, create_topics, delete_topics
from kafka.worker_starter import Starter
from kafka.workers import WorkerProcess


def wait_for_reason(worker: WorkerProcess, text: str, timeout: float = 30) -> None:
    """Wait until readiness and the log name this."""
    wait_until(
        lambda: text in readiness(worker)[1] and text in worker.log(),
        timeout,
        lambda: f"{readiness(worker)} {worker.log()[-3000:]}",
    )
    assert readiness(worker)[0] == "KAFKA_UNAVAILABLE"


def worker_says(worker: WorkerProcess, text: str) -> None:
    """Wait until the log of any of its lives holds this."""
    wait_until(lambda: text in worker.log(), 30, lambda: f"no {text!r}: {worker.log()[-3000:]}")


def test_no_topic_at_the_start(broker: Broker, starter: Starter, tmp_path: Path) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=2) as group:
        names = [group.topics.request, group.topics.response, group.topics.dlq]
        delete_topics(broker.bootstrap, *names)
        worker = group.worker()
        wait_for_reason(worker, f"no topic {group.topics.request}")
        create_topics(broker.bootstrap, group.topics.request, partitions=2)
        wait_for_reason(worker, f"no topic {group.topics.response}")
        create_topics(broker.bootstrap, group.topics.response, group.topics.dlq, partitions=2)
        group.ask(ids("request", 4))
        assert finish(group).codes() == {"success": 4}
        worker.wait_ready(10)
        assert worker.log().count("\n") < 30


def test_the_answers_topic_is_deleted_while_pictures_are_encoded(
    broker: Broker, starter: Starter, tmp_path: Path
) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=2) as group:
        worker = group.worker(harness={"wait": 0.1}).wait_ready()
        delete_topics(broker.bootstrap, group.topics.response)
        group.ask(ids("request", 20))
        with Supervisor(worker) as supervisor:
            supervisor.wait_for("KAFKA_UNAVAILABLE")
            time.sleep(2)
            create_topics(broker.bootstrap, group.topics.response, partitions=2)
            outcome = finish(group)
            supervisor.wait_for("ready")
        assert outcome.codes() == {"success": 20}
        assert supervisor.exit_codes in ([], [3])


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_the_requests_topic_is_deleted_and_made_again(
    broker: Broker, starter: Starter, tmp_path: Path, protocol: str
) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=2, KAFKA_GROUP_PROTOCOL=protocol) as group:
        worker = group.worker(harness={"wait": 0.1}).wait_ready()
        time.sleep(2)  # by then it fetches, which tells nothing of a topic that is away
        delete_topics(broker.bootstrap, group.topics.request)
        with Supervisor(worker) as supervisor:
            supervisor.wait_for("KAFKA_UNAVAILABLE")
            time.sleep(2)
            create_topics(broker.bootstrap, group.topics.request, partitions=2)
            group.ask(ids("request", 20))
            outcome = finish(group)
            supervisor.wait_for("ready")
        assert outcome.codes() == {"success": 20}
        assert supervisor.exit_codes in ([], [3])
        assert any(group.topics.request in reason for reason in supervisor.reasons), supervisor.reasons
        assert "topics create" in worker.log()


def stays_unready(supervisor: Supervisor) -> None:
    """Hold it to KAFKA_UNAVAILABLE for longer than the worker needs to look at the brokers again."""
    supervisor.wait_for("KAFKA_UNAVAILABLE")
    before = len(supervisor.seen)
    time.sleep(3)
    assert set(supervisor.seen[before:]) <= {"KAFKA_UNAVAILABLE", ""}, supervisor.reasons


def login(account: Account) -> dict[str, str]:
    """A worker's settings."""
    return {
        "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
        "KAFKA_SASL_USERNAME": account.name,
        "KAFKA_SASL_PASSWORD": account.password,
    }


def allow(broker: Broker, rights: Sequence[tuple[ResourceType, str, AclOperation]]) -> None:
    """Give rights to the guest."""
    admin = admin_client(broker.bootstrap)
    bindings = [
        AclBinding(kind, name, ResourcePatternType.LITERAL, f"User:{broker.guest.name}", "*", operation,
                   AclPermissionType.ALLOW)
        for kind, name, operation in rights
    ]  # fmt: skip
    for done in admin.create_acls(bindings).values():
        done.result(TIMEOUT)


def test_rights_that_are_missing_are_named_and_may_be_given_later(
    secure_broker: Broker, starter: Starter, tmp_path: Path
) -> None:
    with Group(secure_broker.bootstrap, tmp_path, starter, partitions=2) as group:
        worker = group.worker(
            harness={"wait": 0.1}, bootstrap=secure_broker.sasl_bootstrap, **login(secure_broker.guest)
        )
        topic, topics = ResourceType.TOPIC, group.topics
        read, write = AclOperation.READ, AclOperation.WRITE
        # Metadata shows all topics: that says nothing of what may be done with them.
        allow(secure_broker, [(topic, name, AclOperation.DESCRIBE) for name in vars(topics).values()])
        with Supervisor(worker) as supervisor:
            worker_says(worker, "Transactional Id authorization failed")
            allow(secure_broker, [(ResourceType.TRANSACTIONAL_ID, f"{group.name}.one", write)])
            worker_says(worker, "Group authorization failed")
            stays_unready(supervisor)
            assert "ready" not in supervisor.seen
            allow(secure_broker, [(ResourceType.GROUP, group.name, read)])
            worker_says(worker, f"{topics.request} cannot be read")
            stays_unready(supervisor)
            allow(secure_broker, [(topic, topics.request, read)])
            group.ask(ids("request", 10))
            worker_says(worker, "Answers cannot be sent")
            supervisor.wait_for("KAFKA_UNAVAILABLE")
            allow(secure_broker, [(topic, topics.response, write), (topic, topics.dlq, write)])
            outcome = finish(group)
            supervisor.wait_for("ready")
        assert outcome.codes() == {"success": 10}
        assert set(supervisor.exit_codes) == {1}  # without a right to its transactional.id it cannot even begin
        assert secure_broker.guest.password not in worker.log()


def test_a_wrong_password(secure_broker: Broker, starter: Starter, tmp_path: Path) -> None:
    with Group(secure_broker.bootstrap, tmp_path, starter, partitions=2) as group:
        wrong = login(Account(secure_broker.user.name))
        worker = group.worker(bootstrap=secure_broker.sasl_bootstrap, **wrong)
        wait_for_reason(worker, "uthentication failed")
        time.sleep(3)
        assert worker.is_running
        assert worker.health("/health/live").status_code == 200
        assert worker.log().count("\n") < 20
        assert wrong["KAFKA_SASL_PASSWORD"] not in worker.log()
        assert worker.terminate() == 0
        group.ask(["request"])
        group.worker("right", bootstrap=secure_broker.sasl_bootstrap, **login(secure_broker.user))
        assert finish(group).codes() == {"success": 1}
