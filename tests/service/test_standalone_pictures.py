"""Which pictures a command line means, what each is called, and the order in which they are answered."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import random
import re
import signal
import struct
import sys
import threading
import time
from pathlib import Path

import pytest

from latent_encoder.errors import LatentEncoderError
from latent_encoder.models import EncodeResponse
from latent_encoder.service.doors.interrupts import Interrupts
from latent_encoder.service.doors.pictures import NamedPicture, find_pictures, is_one_picture
from latent_encoder.service.doors.progress import show_progress
from latent_encoder.service.doors.standalone import AHEAD, exit_code, in_order
from latent_encoder.service.engines.base import Call


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory ``here``, with pictures (empty files) in it and in ``other`` beside it."""
    names = "a.png b.JPG notes.txt .hidden.png sub/c.webp sub/deeper/d.png .cache/e.png ../other/a.png ../other/x.png"
    folder = tmp_path / "here"
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    monkeypatch.chdir(folder)
    return folder


def found(*named: str, stdin: bytes = b"") -> dict[str, str]:
    """Each picture's name and file."""
    return {picture.name: picture.file for picture in find_pictures(named, io.BytesIO(stdin))}


def test_a_folder_means_the_pictures_in_it_and_below_named_by_their_path_in_it(here: Path) -> None:
    assert list(found(".")) == ["a.png", "b.JPG", "sub/c.webp", "sub/deeper/d.png"]
    assert found("sub") == {"c.webp": "sub/c.webp", "deeper/d.png": "sub/deeper/d.png"}
    assert found("sub/") == found("sub")
    assert list(found(str(here.parent / "other"))) == ["a.png", "x.png"]


def test_a_picture_is_named_by_its_path_from_here_or_its_base_name(here: Path) -> None:
    outside = str(here.parent / "other" / "x.png")
    assert list(found("sub/c.webp", "./a.png", outside)) == ["sub/c.webp", "a.png", "x.png"]
    assert list(found(str(here / "sub" / "c.webp"), "../here/a.png")) == ["sub/c.webp", "a.png"]
    assert list(found("nothing.png", "a.png")) == ["nothing.png", "a.png"]  # its answer is IMAGE_NOT_FOUND


def test_a_glob_means_every_file_that_fits(here: Path) -> None:
    assert list(found("*.png")) == ["a.png"]
    assert list(found("**/*.*")) == ["a.png", "b.JPG", "notes.txt", "sub/c.webp", "sub/deeper/d.png"]
    assert list(found("../other/?.png")) == ["a.png", "x.png"]
    with pytest.raises(LatentEncoderError, match=r"No file fits '\*\.bmp'"):
        found("*.bmp")


def test_a_name_with_glob_signs_that_is_there_is_that_picture(here: Path) -> None:
    (here / "shot [1].png").touch()
    assert is_one_picture(["shot [1].png"])
    assert list(found("shot [1].png", "a.png")) == ["shot [1].png", "a.png"]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\0"])
def test_names_come_from_stdin_one_a_line_or_each_ended_by_a_null(here: Path, ending: str) -> None:
    text = f"a.png{ending}sub/größe 猫.png{ending}{ending}*.png"
    assert list(found("-", stdin=text.encode())) == ["a.png", "sub/größe 猫.png", "*.png"]
    assert found("-") == {}
    assert list(found("-", stdin=b"\xef\xbb\xbf" + text.encode())) == ["a.png", "sub/größe 猫.png", "*.png"]


def test_one_picture_alone_is_no_run_of_many(here: Path) -> None:
    named = (["a.png"], ["nothing.png"], ["a.png", "b.JPG"], ["sub"], ["*.png"], ["-"])
    assert [is_one_picture(names) for names in named] == [True, True, False, False, False, False]


def test_two_pictures_that_would_share_a_file_are_refused_and_one_named_twice_is_one(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = str(here.parent / "other")
    with pytest.raises(LatentEncoderError, match="would share a latent file") as refused:
        found(".", other)
    assert "'./a.png'" in refused.value.message
    assert f"{other}/a.png" in refused.value.message
    assert not caplog.records
    assert list(found("a.png", "./a.png", "-", stdin=b"a.png\nsub/c.webp")) == ["a.png", "sub/c.webp"]
    assert [record.message for record in caplog.records] == [
        "Named more than once, encoded once: './a.png', and 1 more."
    ]


def test_a_folder_without_a_picture_is_refused(here: Path) -> None:
    (here / "empty" / "sub").mkdir(parents=True)
    (here / "empty" / "notes.txt").touch()
    with pytest.raises(LatentEncoderError, match="The folder 'empty' holds no picture"):
        found("a.png", "empty")


def test_a_picture_named_as_a_folder_keeps_its_slash(here: Path) -> None:
    assert list(found("a.png/", "b.JPG")) == ["a.png/", "b.JPG"]  # its answer is IMAGE_NOT_FOUND


def test_a_folder_that_cannot_be_read_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def scan(path: str) -> object:  # root, as which tests may run, can read any folder
        if path.endswith("deeper"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(LatentEncoderError, match=r"'\./sub/deeper' cannot be read \(Permission denied\)"):
        found(".")


def answer(name: str, *, reused: bool = False, status: str = "success") -> EncodeResponse:
    return EncodeResponse(status=status, request_id=name, metadata={"reused": reused})


def test_answers_come_in_order_while_several_are_worked_on_and_few_are_held() -> None:
    pictures = [NamedPicture(str(number), str(number)) for number in range(200)]
    running = begun = answered = most_running = most_ahead = 0
    lock = threading.Lock()

    def work(picture: NamedPicture, call: Call) -> EncodeResponse:
        nonlocal running, begun, most_running, most_ahead
        with lock:
            running, begun = running + 1, begun + 1
            most_running = max(most_running, running)
            most_ahead = max(most_ahead, begun - answered)
        time.sleep(random.random() / 500)
        with lock:
            running -= 1
        return answer(picture.name)

    names = []
    for picture, response in in_order(work, pictures, 3, Interrupts()):
        assert response.request_id == picture.name
        names.append(picture)
        answered += 1
    assert names == pictures
    assert most_running == 3
    assert most_ahead <= AHEAD * 3 + 1


def test_after_the_first_signal_what_is_begun_is_answered_and_nothing_more_is_begun() -> None:
    pictures = [NamedPicture(str(number), str(number)) for number in range(100)]
    begun = []

    def work(picture: NamedPicture, call: Call) -> EncodeResponse:
        begun.append(picture)
        time.sleep(0.02)
        return answer(picture.name)

    interrupts = Interrupts()
    answered = []
    with interrupts.handled(), interrupts.work_in_hand():
        for picture, _ in in_order(work, pictures, 3, interrupts):
            answered.append(picture)
            if len(answered) == 10:
                os.kill(os.getpid(), signal.SIGTERM)
    assert interrupts.stopping.is_set()
    assert answered == pictures[: len(answered)] == sorted(begun, key=pictures.index)
    assert len(answered) <= 10 + 3 * AHEAD


def test_a_signal_with_nothing_in_hand_and_a_second_one_stop_at_once() -> None:
    interrupts = Interrupts()
    before = signal.getsignal(signal.SIGINT)
    with interrupts.handled():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with interrupts.work_in_hand(), interrupts.call() as call:
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            interrupts.cancel_calls()
            assert call.cancelled
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("failed", "code"), [(0, 0), (1, 3), (2, 3), (3, 1)])
def test_the_exit_code_says_whether_none_some_or_all_failed(failed: int, code: int) -> None:
    interrupts = Interrupts()
    with show_progress(3, quiet=True) as progress:
        for number in range(3):
            progress.add(answer("x", status="error" if number < failed else "success"))
    assert exit_code(progress, interrupts) == code
    interrupts.stopping.set()
    assert exit_code(progress, interrupts) == 130


def test_elsewhere_than_on_a_terminal_progress_is_a_line_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    begin = time.monotonic()
    with show_progress(40, line_seconds=0.1) as progress:
        for number in range(30):
            time.sleep(0.02)
            progress.add(answer("x", status="error" if number == 3 else "success", reused=number < 3))
    lines = [record.message for record in caplog.records]
    assert 3 <= len(lines) <= (time.monotonic() - begin) / 0.1 + 2, lines
    assert "of 40 pictures" in lines[-1]
    assert "pictures/s" in lines[-1]
    assert " left" in lines[-1]
    assert lines[-1].endswith("1 failed")
    counts = "40 pictures: 26 encoded, 3 already there, 1 failed, 10 not begun, in "
    assert re.match(counts + r"\d+\.\d s", progress.summary())


def read_to_end(terminal: int) -> str:
    """What was written to the other end, which is closed; one read gives no more than the system has handed on."""
    shown = b""
    with contextlib.suppress(OSError):  # Linux' word for the end
        while data := os.read(terminal, 4096):
            shown += data
    os.close(terminal)
    return shown.decode()


def test_on_a_terminal_progress_is_a_bar_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows has no pseudo-terminals of this kind")
    import fcntl
    import termios

    main_end, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with open(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with show_progress(4) as progress:
            for number in range(4):
                progress.add(answer("x"))
                time.sleep(0.15)
                with progress.aside(stream):
                    print(f"answer {number}", file=stream)
    shown = read_to_end(main_end)
    assert "| 4/4 [" in shown
    assert "img/s" in shown
    assert "<00:00" in shown
    lines = [line.rpartition("\r")[2] for line in shown.split("\r\n")]
    assert [line for line in lines if "answer" in line] == [f"answer {number}" for number in range(4)]
