"""Files that are whole or absent: temporary files, placing them, locks on names, and what dead writers leave."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.odd_latents import random_tensor

from latent_encoder import atomic_file
from latent_encoder.atomic_file import (
    TEMPORARY_PREFIX,
    TemporaryFile,
    name_lock,
    sweep,
    sweep_before_save,
    sync_folder,
)
from latent_encoder.latent_file import load_latent, save_latent

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks and links")


def write(folder: Path, data: bytes, place: Callable[[TemporaryFile], Any]) -> Any:
    with TemporaryFile(folder) as file:
        file.write(data[:3])
        file.write(memoryview(data)[3:])
        return place(file)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_that_is_not_placed_is_gone(tmp_path: Path) -> None:
    with TemporaryFile(tmp_path) as file:
        file.write(b"x")
        assert names_in(tmp_path) == {file.path.name} and file.path.name.startswith(TEMPORARY_PREFIX)
    assert not names_in(tmp_path)
    with pytest.raises(ZeroDivisionError), TemporaryFile(tmp_path) as file:
        file.write(b"x")
        raise ZeroDivisionError
    assert not names_in(tmp_path)


def test_placing(tmp_path: Path) -> None:
    final = tmp_path / "a"
    assert write(tmp_path, b"first", lambda file: file.place_new(final)) is True
    assert write(tmp_path, b"second", lambda file: file.place_new(final)) is False
    assert final.read_bytes() == b"first"
    write(tmp_path, b"third", lambda file: file.place_over(final))
    assert final.read_bytes() == b"third" and names_in(tmp_path) == {"a"}
    write(tmp_path, b"new", lambda file: file.place_over(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == b"new"


def test_an_open_reader_keeps_what_it_reads(tmp_path: Path) -> None:
    final = tmp_path / "a"
    write(tmp_path, b"first", lambda file: file.place_new(final))
    with final.open("rb") as reader:
        write(tmp_path, b"second", lambda file: file.place_over(final))
        assert reader.read() == b"first"


@posix_only
def test_a_file_has_the_usual_rights(tmp_path: Path) -> None:
    """Those that the process's umask leaves, so that a group may share a folder."""
    before = os.umask(0o002)
    try:
        write(tmp_path, b"x", lambda file: file.place_new(tmp_path / "a"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o664


@posix_only
@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_a_file_system_without_hard_links(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    final = tmp_path / "a"
    assert write(tmp_path, b"first", lambda file: file.place_new(final)) is True
    assert write(tmp_path, b"second", lambda file: file.place_new(final)) is False
    assert final.read_bytes() == b"first" and names_in(tmp_path) == {"a"}
    (tmp_path / "dangling").symlink_to("nowhere")
    assert write(tmp_path, b"x", lambda file: file.place_new(tmp_path / "dangling")) is False
    latent = {"samples": random_tensor("float32", (1, 4, 2, 2))}
    saved: list[Path] = []
    threads = [
        threading.Thread(target=lambda: saved.extend(save_latent(latent, tmp_path, "n").path for _ in range(5)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(saved)) == 20 and all(load_latent(path).verified for path in saved)


@posix_only
def test_a_disk_that_fails_while_placing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match="input/output"):
        write(tmp_path, b"x", lambda file: file.place_new(tmp_path / "a"))
    assert not names_in(tmp_path)


def test_sweeping_spares_what_is_being_written(tmp_path: Path) -> None:
    with TemporaryFile(tmp_path) as file, name_lock(tmp_path / "a"):
        (tmp_path / f"{TEMPORARY_PREFIX}dead.tmp").write_bytes(b"half")
        (tmp_path / f"{TEMPORARY_PREFIX}dead.lock").write_bytes(b"")
        (tmp_path / ".other").write_bytes(b"")
        (tmp_path / "a.tmp").write_bytes(b"")
        (tmp_path / f"{TEMPORARY_PREFIX}folder").mkdir()
        before = names_in(tmp_path)
        if sys.platform == "win32":
            return  # no locks tell the dead from the living there: their age does
        assert sweep(tmp_path) == 2
        gone = {f"{TEMPORARY_PREFIX}dead.tmp", f"{TEMPORARY_PREFIX}dead.lock"}
        assert names_in(tmp_path) == before - gone and file.path.exists()
        assert sweep(tmp_path) == 0


@posix_only
def test_a_large_folder_is_swept_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / f"{TEMPORARY_PREFIX}dead.tmp"
    cases = [(1000, 60.0, True), (1000, 60.0, True), (1, 60.0, True), (1, 60.0, False), (1, 0.0, True)]
    for many, seconds, gone in cases:
        monkeypatch.setattr(atomic_file, "MANY_FILES", many)
        monkeypatch.setattr(atomic_file, "SWEEP_SECONDS", seconds)
        left.write_bytes(b"half")
        (tmp_path / "whole").touch()
        sweep_before_save(tmp_path)
        assert left.exists() is not gone


@posix_only
def test_sweeping_takes_the_link_not_the_finished_file(tmp_path: Path) -> None:
    """A writer killed between link() and unlink() leaves two names of one file."""
    final = tmp_path / "a"
    write(tmp_path, b"whole", lambda file: file.place_new(final))
    os.link(final, tmp_path / f"{TEMPORARY_PREFIX}{'0' * 32}.tmp")
    assert sweep(tmp_path) == 1 and names_in(tmp_path) == {"a"} and final.read_bytes() == b"whole"


@posix_only
def test_sweeping_follows_no_link_and_waits_for_no_pipe(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"x")
    (tmp_path / f"{TEMPORARY_PREFIX}link").symlink_to(target)
    os.mkfifo(tmp_path / f"{TEMPORARY_PREFIX}pipe")
    thread = threading.Thread(target=sweep, args=(tmp_path,), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive() and target.read_bytes() == b"x"


@posix_only
def test_without_locks_age_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems know no flock()."""

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(atomic_file.fcntl, "flock", flock)
    young, old = (tmp_path / f"{TEMPORARY_PREFIX}{name}.tmp" for name in ("young", "old"))
    young.write_bytes(b"")
    old.write_bytes(b"")
    os.utime(old, (time.time() - 3600,) * 2)
    assert sweep(tmp_path) == 1 and young.exists() and not old.exists()
    saved = save_latent({"samples": random_tensor("float32", (1,))}, tmp_path, "a")
    assert load_latent(saved.path).verified


def test_a_name_is_held_by_one(tmp_path: Path) -> None:
    inside, most = 0, 0

    def hold() -> None:
        nonlocal inside, most
        for _ in range(10):
            with name_lock(tmp_path / "a"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and not names_in(tmp_path)


def test_other_names_are_free(tmp_path: Path) -> None:
    with name_lock(tmp_path / "a"), name_lock(tmp_path / "b"), name_lock(tmp_path / ("x" * 255)):
        assert len(names_in(tmp_path)) == 3
    assert not names_in(tmp_path)


def test_waiting_for_a_name_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_file, "LOCK_TIMEOUT_SECONDS", 0.1)
    with name_lock(tmp_path / "a"), pytest.raises(TimeoutError), name_lock(tmp_path / "a"):
        pass
    with name_lock(tmp_path / "a"):
        pass
    assert not names_in(tmp_path)


@posix_only
def test_a_dead_holder_is_passed_by(tmp_path: Path) -> None:
    """The lock's file outlives its holder, the lock does not."""
    reader, writer = os.pipe()
    command = "import os, sys, time, pathlib; from latent_encoder.atomic_file import name_lock\n"
    command += "with name_lock(pathlib.Path(sys.argv[1])): os.write(int(sys.argv[2]), b'x'); time.sleep(600)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    arguments = [sys.executable, "-c", command, str(tmp_path / "a"), str(writer)]
    with subprocess.Popen(arguments, pass_fds=[writer], env=environment) as holder:
        assert os.read(reader, 1) == b"x"
        holder.kill()
        holder.wait()
    os.close(reader)
    os.close(writer)
    assert len(names_in(tmp_path)) == 1, "its lock is left behind"
    start = time.monotonic()
    with name_lock(tmp_path / "a"):
        assert time.monotonic() - start < 5
    assert not names_in(tmp_path)


def test_a_folder_can_be_synced(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    with pytest.raises(OSError):
        sync_folder(tmp_path / "absent")
