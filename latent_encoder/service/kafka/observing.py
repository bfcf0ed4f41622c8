"""What a worker asks the brokers for its health and metrics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaException

from .assignment import Assignment
from .marks import Marks
from .numbers import Numbers

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings

ASK_SECONDS = 1.0
TOPICS_HINT = (
    "See what is missing with 'python main.py topics check', or create it with 'python main.py topics create'."
)


def check_brokers(consumer: Consumer, marks: Marks, settings: Settings, numbers: Numbers) -> None:
    """Find out whether the brokers answer again, have our topics, and count us as a member of the group."""
    try:
        topics = consumer.list_topics(timeout=ASK_SECONDS).topics
    except KafkaException as error:
        numbers.trouble(error.args[0].str())
        return
    wanted = (settings.kafka_request_topic, settings.kafka_response_topic, settings.kafka_dlq_topic)
    missing = [name for name in wanted if name not in topics or topics[name].error]
    if missing:
        tell_missing(missing, numbers)
        return
    numbers.complete()
    # A member without partitions is told nothing under KAFKA_GROUP_PROTOCOL=consumer.
    if not numbers.in_group and marks.is_member(ASK_SECONDS):
        numbers.joined()


def tell_missing(topics: Iterable[str], numbers: Numbers) -> None:
    """Say that these topics are not there."""
    numbers.missing(f"There is no topic {' and no topic '.join(topics)}, or no right to it", TOPICS_HINT)


def measure_lag(consumer: Consumer, assignment: Assignment, numbers: Numbers, *, cached: bool) -> None:
    """Tell how many messages of each partition are not answered yet.

    Args:
        cached: take the ends that came with the last messages, rather than ask for them.
    """
    for partition in assignment:
        try:
            _, high = consumer.get_watermark_offsets(partition.at(0), ASK_SECONDS, cached=cached)
        except KafkaException:
            if cached:
                continue
            return  # each of the others may take as long
        numbers.turned()
        first = partition.first_unanswered
        if high >= 0:
            numbers.lag(partition.number, high - (high if first is None else min(first, high)))
