"""The Kafka door: a worker that reads requests from a topic, and what sends, watches and mends around it.

``process`` starts and ends the worker, ``worker`` is its loop, ``assignment`` what it owns, ``marks`` how it tells a
message that kills, ``hold`` what stops it, ``transactions`` how answers leave; ``messages`` and ``dead_letters`` are
the formats. ``docs/kafka.md`` describes all of it from outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latent_encoder.service.signals import Signals

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings


def run(settings: Settings, signals: Signals) -> int:
    """Work until a signal comes; returns the exit code.

    0: ended as it was told to; 1: it cannot go on; 2: a setting, the port or STATE_DIR stand in the way; 3: another
    process has this worker's name, or the brokers have lost its state: it is to be started again.
    """
    from latent_encoder.kafka_properties import load_confluent_kafka

    load_confluent_kafka()
    from .process import run_worker

    return run_worker(settings, signals)
