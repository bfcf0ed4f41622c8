"""How the worker's process ends, with a worker that is none: no broker."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from latent_encoder.service.kafka import process


def test_the_watchdog_watches_over_the_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """To leave the group and to close the engine may hang as well."""
    closed: list[threading.Event] = []
    monkeypatch.setattr(process, "_watch", lambda numbers, event: closed.append(event))
    monkeypatch.setattr(process, "_keep_asking", lambda *_: None)
    monkeypatch.setattr(process.logging, "shutdown", lambda: None)
    watched = []

    def close() -> None:
        watched.append(not closed[0].is_set())

    def turn() -> None:
        signals.count += 1

    signals: Any = SimpleNamespace(count=0, came=threading.Event())
    worker: Any = SimpleNamespace(start=lambda: None, turn=turn, busy=False, close=close, has_threads=False)
    engine: Any = SimpleNamespace(name="none", start=lambda: None, close=close)
    readiness: Any = SimpleNamespace(update=lambda: True, stop=lambda: None)
    numbers: Any = SimpleNamespace(turned=lambda: None)
    publisher: Any = SimpleNamespace(start=lambda: None)
    assert process._live(worker, engine, readiness, numbers, publisher, signals) == process.DONE
    assert watched == [True, True]
    assert closed[0].is_set()
