"""What waits for an engine that is away, and who is found guilty of it: no broker, no engine, a clock of the tests'."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from latent_encoder.errors import LatentEncoderError
from latent_encoder.models import EncodeRequest
from latent_encoder.service.engines.base import Call
from latent_encoder.service.kafka import hold as module
from latent_encoder.service.kafka.assignment import MOST_DEATHS, Work
from latent_encoder.service.kafka.hold import MOST_LOSSES_BESIDE, Hold, count_loss, is_away
from latent_encoder.service.requests import error_response


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Ready:
    """An engine that says whether it is there."""

    def __init__(self) -> None:
        self.is_ready = True

    def update(self) -> bool:
        return self.is_ready

    def error(self) -> object | None:
        return None if self.is_ready else "away"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def ready() -> Ready:
    return Ready()


@pytest.fixture
def hold(clock: Clock, ready: Ready) -> Hold:
    settings: Any = SimpleNamespace(input_roots=[])
    return Hold(settings, ready)  # type: ignore[arg-type]


def made_work(*, late: bool = False) -> Work:
    incoming: Any = SimpleNamespace(is_late=late, request=None)
    partition: Any = object()
    return Work(partition, incoming, Call())


def failed(code: str = "ENGINE_UNAVAILABLE") -> Any:
    return error_response("id", None, LatentEncoderError(code, "It is away."))


def lose(hold: Hold, work: Work, code: str = "ENGINE_UNAVAILABLE") -> None:
    """As the worker does with what has come back."""
    assert is_away(None, failed(code), SimpleNamespace(input_roots=[]))  # type: ignore[arg-type]
    count_loss(work, failed(code))
    hold.begin(work, failed(code))


def due(hold: Hold, *, busy: bool = False) -> list[Work]:
    return hold.due(lambda partition: True, busy=busy)


def test_while_one_is_tried_alone_no_other_is(hold: Hold, clock: Clock) -> None:
    works = [made_work() for _ in range(3)]
    for work in works:
        lose(hold, work)
    clock.now += 2
    (probe,) = due(hold)
    assert probe.alone
    for _ in range(60):  # an encode of a minute
        clock.now += 1
        assert due(hold, busy=True) == []
    lose(hold, probe)
    assert [work.engines_lost for work in works].count(1) == 1
    assert not any(work.engines_lost for work in works if work is not probe)


def test_what_was_alone_once_is_not_for_good(hold: Hold, clock: Clock) -> None:
    work, other = made_work(), made_work()
    lose(hold, work)
    lose(hold, other)
    clock.now += 2
    (probe,) = due(hold)
    lose(hold, probe)
    hold.end()
    assert set(due(hold)) == {work, other}
    assert not probe.alone
    lose(hold, probe)
    assert probe.engines_lost == 1


def test_an_engine_that_is_away_is_nobody_s_fault_however_long(hold: Hold, ready: Ready, clock: Clock) -> None:
    work = made_work()
    lose(hold, work)
    ready.is_ready = False
    for _ in range(600):
        clock.now += 1
        assert due(hold) == []
    ready.is_ready = True
    clock.now += 15
    assert due(hold) == [work]
    assert work.engines_lost == 0


def test_an_engine_that_is_back_at_once_costs_no_attempt(hold: Hold, clock: Clock) -> None:
    """Readiness says yes already when the encode that was lost comes back."""
    work = made_work()
    lose(hold, work)
    assert work.attempts == 0
    assert hold.error is not None
    clock.now += 1
    assert due(hold) == [work]


def test_what_loses_the_engine_alone_is_found(hold: Hold, clock: Clock) -> None:
    work = made_work()
    lose(hold, work)
    for _ in range(MOST_DEATHS):
        clock.now += 20
        assert due(hold) == [work]
        count_loss(work, failed())
        hold.begin(work, failed())
    assert work.engines_lost == MOST_DEATHS


def test_what_loses_one_of_many_engines_is_tried_alone_in_the_end(hold: Hold, clock: Clock) -> None:
    guilty = made_work()
    for _ in range(MOST_LOSSES_BESIDE):
        lose(hold, guilty)
        hold.end()  # another one has come back well, from another server
        if hold.error is None:
            assert due(hold, busy=True) == [guilty]
    assert hold.error is not None
    assert due(hold, busy=True) == []
    assert due(hold) == [guilty]
    assert guilty.alone
    hold.end()
    assert hold.error is None


def test_what_is_late_waits_for_nothing(hold: Hold, ready: Ready) -> None:
    ready.is_ready = False
    work, late = made_work(), made_work(late=True)
    lose(hold, work)
    lose(hold, late)
    assert due(hold, busy=True) == [late]


def test_a_full_disk_is_tried_with_one(hold: Hold, clock: Clock) -> None:
    works = [made_work(), made_work()]
    for work in works:
        lose(hold, work, "DISK_FULL")
    clock.now += 2
    (probe,) = due(hold)
    assert probe.engines_lost == probe.engines_lost_beside == 0
    hold.end()
    assert due(hold) == [work for work in works if work is not probe]


@pytest.mark.parametrize("code", ["IMAGE_NOT_FOUND", "IMAGE_INVALID"])
def test_pictures_in_a_folder_that_is_gone_are_nobody_s_fault(tmp_path: Path, code: str) -> None:
    there, gone, link = tmp_path / "there", tmp_path / "mount" / "pictures", tmp_path / "link"
    there.mkdir()
    link.symlink_to(gone)
    endless = tmp_path / "endless"  # can be asked for nothing, like a file server that is gone
    endless.symlink_to(endless)
    settings: Any = SimpleNamespace(input_roots=[there, gone, endless])

    def away(path: Path) -> bool:
        return is_away(EncodeRequest(request_id="id", image_path=str(path)), failed(code), settings)

    assert not away(there / "a.png")
    assert [away(folder / "a.png") for folder in (gone, link, endless)] == [True, True, True]
