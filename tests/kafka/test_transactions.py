"""What each error of the library's leads to, with a producer that is none: no broker."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from latent_encoder.service.kafka import transactions
from latent_encoder.service.kafka.transactions import (
    AtLeastOnce,
    CannotGoOn,
    ExactlyOnce,
    Fenced,
    NotSent,
    RecordTooLarge,
)


def error(code: int = KafkaError._STATE, **flags: bool) -> KafkaException:
    """An error of the library's: ``fatal``, ``retriable``, ``txn_requires_abort``."""
    return KafkaException(KafkaError(code, "reason", **flags))


class FakeProducer:
    """Does nothing, and fails where it is told to.

    Args:
        failures: by call, what it raises, one after another; then it does well.
        reports: by record, the error in its delivery report.
    """

    def __init__(self, reports: dict[int, int] | None = None, **failures: list[Exception]) -> None:
        self.calls: list[str] = []
        self._failures, self._reports = failures, reports or {}
        self._waiting: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any, **__: Any) -> None:
            self.calls.append(name)
            if self._failures.get(name):
                raise self._failures[name].pop(0)

        return call

    def produce(self, *, on_delivery: Any, **_: Any) -> None:
        self.calls.append("produce")
        if self._failures.get("produce"):
            raise self._failures["produce"].pop(0)
        self._waiting.append(on_delivery)

    def flush(self, _: float) -> int:
        for index, report in enumerate(self._waiting):
            code = self._reports.get(index)
            report(KafkaError(code) if code is not None else None, None)
        self._waiting.clear()
        return 0


CONSUMER: Any = SimpleNamespace(consumer_group_metadata=lambda: None, commit=lambda **_: [])
RECORDS: list[dict[str, Any]] = [{"topic": "answers"}, {"topic": "dead"}]


def publisher(*producers: FakeProducer) -> ExactlyOnce:
    """One whose first producer is the first of these, and so on."""
    made = iter(producers)
    return ExactlyOnce(lambda: next(made), lambda: None)  # type: ignore[arg-type, return-value]


def publish(exactly_once: ExactlyOnce) -> None:
    exactly_once.publish(RECORDS, [], CONSUMER)


def test_what_goes_well() -> None:
    producer = FakeProducer()
    publish(publisher(producer))
    assert producer.calls == ["init_transactions", "begin_transaction", "produce", "produce",
                              "send_offsets_to_transaction", "commit_transaction"]  # fmt: skip


@pytest.mark.parametrize("call", ["send_offsets_to_transaction", "commit_transaction"])
def test_what_is_to_be_aborted_is_and_may_be_sent_again(call: str) -> None:
    producer = FakeProducer(**{call: [error(txn_requires_abort=True)]})
    one = publisher(producer)
    with pytest.raises(NotSent):
        publish(one)
    assert producer.calls[-1] == "abort_transaction"
    publish(one)
    assert producer.calls[-1] == "commit_transaction"


def test_a_transaction_that_cannot_begin_before_the_last_is_aborted() -> None:
    """Without the abort each later one would fail in the same way."""
    producer = FakeProducer(begin_transaction=[error(txn_requires_abort=True)])
    one = publisher(producer)
    with pytest.raises(NotSent):
        publish(one)
    assert producer.calls[-1] == "abort_transaction"
    publish(one)
    assert producer.calls[-1] == "commit_transaction"


@pytest.mark.parametrize("call", ["begin_transaction", "send_offsets_to_transaction", "commit_transaction"])
def test_a_producer_that_is_fenced_is_lost(call: str) -> None:
    with pytest.raises(Fenced):
        publish(publisher(FakeProducer(**{call: [error(KafkaError._FENCED, fatal=True)]})))


def test_a_commit_in_doubt_is_asked_for_again() -> None:
    producer = FakeProducer(commit_transaction=[error(KafkaError._TIMED_OUT, retriable=True)] * 3)
    publish(publisher(producer))
    assert producer.calls.count("commit_transaction") == 4
    assert "abort_transaction" not in producer.calls


def test_a_commit_that_stays_in_doubt_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "IN_DOUBT_SECONDS", 0)
    producer = FakeProducer(commit_transaction=[error(KafkaError._TIMED_OUT, retriable=True)] * 3)
    with pytest.raises(Fenced, match="unknown"):
        publish(publisher(producer))
    assert "abort_transaction" not in producer.calls


def test_a_call_that_hangs_is_left_behind_with_its_producer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "OFFSETS_SECONDS", 0.05)
    monkeypatch.setattr(transactions, "GRACE_SECONDS", 0.05)
    old, new = FakeProducer(), FakeProducer()
    old.send_offsets_to_transaction = lambda *_: time.sleep(1)
    one = publisher(old, new)
    with pytest.raises(NotSent):
        publish(one)
    assert one.producer is new
    monkeypatch.undo()
    publish(one)
    assert new.calls[0] == "init_transactions"
    assert new.calls[-1] == "commit_transaction"


def test_an_abort_that_fails_costs_the_producer_only_where_no_commit_was_begun() -> None:
    refused = error(KafkaError.INVALID_TXN_STATE, fatal=True)
    fails = FakeProducer(send_offsets_to_transaction=[error(txn_requires_abort=True)], abort_transaction=[refused])
    new = FakeProducer()
    one = publisher(fails, new)
    with pytest.raises(NotSent):
        publish(one)
    assert one.producer is new
    fails = FakeProducer(commit_transaction=[error(txn_requires_abort=True)], abort_transaction=[refused])
    with pytest.raises(Fenced):
        publish(publisher(fails))


def test_what_only_an_administrator_can_mend() -> None:
    reason = error(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, fatal=True)
    with pytest.raises(CannotGoOn):
        publisher(FakeProducer(init_transactions=[reason])).start()


@pytest.mark.parametrize("by", ["the client", "the broker"])
def test_a_record_that_is_too_large_is_named(by: str) -> None:
    code = KafkaError.MSG_SIZE_TOO_LARGE
    producer = FakeProducer({1: code}) if by == "the broker" else FakeProducer(produce=[error(code)])
    with pytest.raises(RecordTooLarge) as caught:
        publish(publisher(producer))
    assert caught.value.index == (1 if by == "the broker" else 0)
    assert producer.calls[-1] == "abort_transaction"


def test_at_least_once_commits_nothing_of_what_is_not_sent() -> None:
    commits: list[Any] = []
    consumer: Any = SimpleNamespace(commit=lambda **options: commits.append(options) or [])
    one = AtLeastOnce(lambda: FakeProducer({0: KafkaError._MSG_TIMED_OUT}), lambda: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(NotSent):
        one.publish(RECORDS, [], consumer)
    assert commits == []
    one = AtLeastOnce(FakeProducer, lambda: None)  # type: ignore[arg-type]
    one.publish(RECORDS, [], consumer)
    assert len(commits) == 1


def test_without_transactions_no_message_is_sent_again_for_another_one_s_sake() -> None:
    assert AtLeastOnce.most_at_once == 1
