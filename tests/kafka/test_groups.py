"""Several workers: rebalances, a frozen one that comes back, two of one name, an orderly end, what comes again."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from kafka.broker import Broker
from kafka.groups import Group, ids
from kafka.supervisor import wait_until
from kafka.topics import group_offsets, grow_topic
from kafka.worker_starter import Starter

from latent_encoder.atomic_file import sweep
from latent_encoder.service.kafka.assignment import MOST_WAITING


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_workers_come_and_go_while_pictures_are_encoded(
    broker: Broker, starter: Starter, tmp_path: Path, protocol: str
) -> None:
    with Group(broker.bootstrap, tmp_path, starter, KAFKA_GROUP_PROTOCOL=protocol) as group:
        slow = {"wait": 0.6}
        first = group.worker("first", harness=slow).wait_ready()
        group.ask(ids("request", 40))
        second = group.worker("second", harness=slow).wait_ready()
        third = group.worker("third", harness=slow).wait_ready()
        time.sleep(2)
        assert second.terminate() == 0
        time.sleep(1)
        outcome = group.finish()
        assert outcome.codes() == {"success": 40}
        by_worker = Counter(dict(message.headers())["ce_source"].decode() for message in outcome.messages)
        assert by_worker.keys() == {f"/latent-encoder/{name}" for name in ("first", "second", "third")}
        assert first.metric("latent_encoder_kafka_partitions") + third.metric("latent_encoder_kafka_partitions") == 4


def test_what_a_worker_was_frozen_over_is_answered_by_another_and_not_once_more(
    broker: Broker, starter: Starter, tmp_path: Path
) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=2) as group:
        frozen = group.worker("frozen", harness={"wait": 1.5}).wait_ready()
        group.ask(ids("request", 8))
        frozen.wait_log("Answered")
        time.sleep(0.5)  # some are answered, one runs, and none is about to be published
        frozen.signal(signal.SIGSTOP)
        other = group.worker("other", harness={"wait": 0.1}).wait_ready()
        group.finish()
        frozen.signal(signal.SIGCONT)
        frozen.wait_log("Lost")
        outcome = group.finish()
        assert outcome.codes() == {"success": 8}
        assert frozen.is_running
        group.ask(ids("later", 8))
        assert group.finish().codes() == {"success": 16}
        assert other.terminate() == 0
        assert frozen.terminate() == 0


@pytest.mark.parametrize("point", ["before-begin", "before-send_offsets", "before-commit"])
def test_what_a_frozen_worker_has_done_and_not_published_is_published_by_another_alone(
    broker: Broker, starter: Starter, tmp_path: Path, point: str
) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=2) as group:
        at_point = {"wait": 0.1, "at": point, "do": "freeze", "once": tmp_path / "frozen"}
        zombie = group.worker("zombie", harness=at_point).wait_ready()
        group.ask(ids("request", 8))
        wait_until(lambda: zombie.is_frozen, 30, zombie.log)
        other = group.worker("other", harness={"wait": 0.1}).wait_ready()
        group.finish()
        assert other.log().count("Answered") == 8
        zombie.signal(signal.SIGCONT)
        wait_until(lambda: "Lost" in zombie.log() or not zombie.is_running, 30, zombie.log)
        wait_until(lambda: not zombie.is_running or zombie.is_idle, 30, zombie.log)
        if not zombie.is_running:  # it has ended at once, maybe in the midst of a save: the next writer clears that
            sweep(tmp_path / "latents")
        assert group.finish().codes() == {"success": 8}
        if not zombie.is_running:  # its transactions are another's, or too old: the orchestrator starts it again
            assert zombie.exit_code == 3
            zombie.start().wait_ready()
        group.ask(ids("later", 8))
        assert group.finish().codes() == {"success": 16}
        assert (zombie.terminate(), other.terminate()) == (0, 0)


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_worker_that_polls_too_late_loses_its_partitions_and_publishes_nothing_twice(
    broker: Broker, starter: Starter, tmp_path: Path, protocol: str
) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=2, KAFKA_GROUP_PROTOCOL=protocol) as group:
        session = "session.timeout.ms=3000\n" if protocol == "classic" else ""  # else the broker has the say over it
        (tmp_path / "client.properties").write_text(f"max.poll.interval.ms=6000\n{session}", encoding="utf-8")
        late = group.worker("late", harness={"wait": 0.1, "at": "before-begin", "do": 15, "count": 2}).wait_ready()
        group.ask(ids("request", 8))
        other = group.worker("other", harness={"wait": 0.1})
        group.finish()
        late.wait_log("Lost")
        group.ask(ids("later", 8))
        assert group.finish().codes() == {"success": 16}
        assert other.log().count("Answered") >= 4
        assert (late.terminate(), other.terminate()) == (0, 0)


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_partitions_that_were_paused_go_from_worker_to_worker(
    broker: Broker, starter: Starter, tmp_path: Path, protocol: str
) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=2, KAFKA_GROUP_PROTOCOL=protocol) as group:
        first = group.worker("first", harness={"wait": 0.03}).wait_ready()
        group.ask(ids("request", 800))  # far more than may wait in a worker
        wait_until(lambda: first.metric("latent_encoder_kafka_waiting") >= MOST_WAITING, 30, first.log)
        second = group.worker("second", harness={"wait": 0.03}).wait_ready()
        wait_until(lambda: second.metric("latent_encoder_kafka_waiting") >= MOST_WAITING, 30, second.log)
        wait_until(lambda: second.log().count("Answered") > 20, 30, second.log)
        assert second.terminate() == 0
        assert group.finish().codes() == {"success": 800}
        for worker in (first, second):
            assert worker.log().count("Answered") > 20


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_partitions_that_are_added_are_read_by_workers_that_run(
    broker: Broker, starter: Starter, tmp_path: Path, protocol: str
) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=1, KAFKA_GROUP_PROTOCOL=protocol) as group:
        workers = [group.worker(name).wait_ready() for name in ("one", "two")]
        group.ask(ids("before", 4))
        group.finish()
        grow_topic(group.bootstrap, group.topics.request, 4)
        group.ask(ids("after", 40))
        assert group.finish().codes() == {"success": 44}
        for worker in workers:
            assert "Answered" in worker.log()


def test_of_two_workers_with_one_name_the_older_ends_with_3(broker: Broker, starter: Starter, tmp_path: Path) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=2) as group:
        older = group.worker("twin", harness={"wait": 0.1}).wait_ready()
        group.ask(ids("request", 4))
        group.finish()
        newer = group.worker("twin", harness={"wait": 0.1}, log="newer.log").wait_ready()
        group.ask(ids("later", 20))
        assert older.wait(60) == 3
        assert group.finish().codes() == {"success": 24}
        assert newer.terminate() == 0


def test_sigterm_finishes_what_runs_and_the_next_worker_goes_on_behind_it(
    broker: Broker, starter: Starter, tmp_path: Path
) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=1) as group:
        worker = group.worker("first", harness={"wait": 1}).wait_ready()
        group.ask(ids("request", 6))
        worker.wait_log("Answered")
        assert worker.terminate() == 0
        answered = worker.log().count("Answered")
        assert 1 < answered < 6
        assert group_offsets(group.bootstrap, group.name, group.topics.request) == {0: answered}
        next_one = group.worker("second", harness={"wait": 0.1})
        assert group.finish().codes() == {"success": 6}
        assert next_one.log().count("Answered") == 6 - answered


def test_two_signals_end_a_worker_soon_and_lose_nothing(broker: Broker, starter: Starter, tmp_path: Path) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=1) as group:
        worker = group.worker("first", harness={"wait": 60}).wait_ready()
        group.ask(["long"])
        group.send([{"key": "broken", "value": b"{"}])  # done at once, behind one that is not
        worker.wait_running()
        worker.signal(signal.SIGTERM)
        worker.wait_log("Stopping")
        worker.signal(signal.SIGTERM)
        assert worker.wait(15) == 0
        group.worker("second", harness={"wait": 0.1})
        assert group.finish().codes() == {"success": 1, "INVALID_REQUEST": 1}
        assert "have died" not in group.workers[-1].log()


def test_sigterm_comes_through_at_any_moment_of_the_start(broker: Broker, tmp_path: Path) -> None:
    with Group(broker.bootstrap, tmp_path, None) as group:  # as users start it, with its imports
        for number, delay in enumerate((0, 0.5, 1, 2, 4, 8, 16)):
            worker = group.worker(f"worker-{number}")
            wait_until(lambda worker=worker: worker.catches(signal.SIGTERM), 30, worker.log)  # type: ignore[misc]
            time.sleep(delay)
            assert worker.terminate(30) == 0, (delay, worker.log())
            assert "Traceback" not in worker.log()


def test_what_is_delivered_again_is_answered_from_its_file(broker: Broker, starter: Starter, tmp_path: Path) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=1) as group:
        group.ask(ids("request", 5))
        worker = group.worker("first")
        group.finish()
        assert worker.terminate() == 0
        _set_offset(group, 0)
        group.worker("second")
        group.sent *= 2
        outcome = group.finish()
        assert outcome.codes() == {"success": 10}
        for answers in outcome.answers.values():
            assert sorted(answer["metadata"]["reused"] for answer in answers) == [False, True]


def test_a_request_that_two_partitions_hold_names_one_file_by_two_workers(
    broker: Broker, starter: Starter, tmp_path: Path
) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=2) as group:
        for name in ("one", "two"):
            group.worker(name, harness={"wait": 0.5})
        for worker in group.workers:
            worker.wait_ready()
        names = ids("request", 6)
        value = {name: json.dumps({"request_id": name, "image_path": group.picture}) for name in names}
        group.send([{"partition": number, "value": value[name]} for name in names for number in (0, 1)])
        outcome = group.finish()
        assert outcome.codes() == {"success": 12}
        for answers in outcome.answers.values():  # whoever else has encoded it answers from the file of the first
            assert sorted(answer["metadata"]["reused"] for answer in answers) == [False, True]


def test_a_picture_may_take_longer_than_the_group_waits_for_a_poll(
    broker: Broker, starter: Starter, tmp_path: Path
) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=1) as group:
        config = tmp_path / "client.properties"
        config.write_text("max.poll.interval.ms=12000\nsession.timeout.ms=10000\n", encoding="utf-8")
        worker = group.worker("slow", harness={"wait": 16}).wait_ready()
        group.ask(["request"])
        assert group.finish().codes() == {"success": 1}
        assert "Lost" not in worker.log()
        assert worker.log().count("Assigned") == 1


def _set_offset(group: Group, offset: int) -> None:
    consumer = Consumer({"bootstrap.servers": group.bootstrap, "group.id": group.name, "enable.auto.commit": False})
    consumer.commit(offsets=[TopicPartition(group.topics.request, 0, offset)], asynchronous=False)
    consumer.close()
