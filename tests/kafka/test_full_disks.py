"""Disks without room and folders that go away: the worker waits, and goes on when they are back."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from kafka.broker import Broker, started_broker
from kafka.groups import Group, ids
from kafka.supervisor import Supervisor, finish, readiness, wait_until
from kafka.topics import read_topic
from kafka.worker_starter import Starter
from kafka.workers import WorkerProcess


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of this size, mounted on ``folder``; skips the test where that is not permitted."""
    if sys.platform != "linux" or not shutil.which("mount"):
        pytest.skip("no mount command here")
    folder.mkdir(parents=True, exist_ok=True)
    done = mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder))
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


def fill(disk: Path, room: int = 0) -> Path:
    """Fill a disk, but for so many bytes; the file that does it."""
    filler = disk / "filler.json"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - room))
    return filler


@dataclass
class Fault:
    """What is done to the folder of latents, the code that readiness tells then, and how it is mended."""

    code: str
    begin: Callable[[Path], object]
    end: Callable[[Path], object]


def replace_by_a_file(folder: Path) -> None:
    folder.rename(folder.with_name("away"))
    folder.write_bytes(b"")


def put_back(folder: Path) -> None:
    folder.unlink()
    folder.with_name("away").rename(folder)


OUTPUT_FAULTS = {
    "full": Fault("DISK_FULL", lambda folder: fill(folder, 64 << 10), lambda folder: (folder / "filler.json").unlink()),
    "read-only": Fault(
        "OUTPUT_DIR_NOT_WRITABLE",
        lambda folder: mount("-o", "remount,ro", str(folder)),
        lambda folder: mount("-o", "remount,rw", str(folder)),
    ),
    "a file": Fault("OUTPUT_DIR_NOT_WRITABLE", replace_by_a_file, put_back),
}


@pytest.mark.parametrize("name", OUTPUT_FAULTS)
def test_no_room_for_the_latents(name: str, broker: Broker, starter: Starter, tmp_path: Path) -> None:
    fault = OUTPUT_FAULTS[name]
    disk = tmp_path / "disk"
    with small_disk(disk, 1), Group(broker.bootstrap, tmp_path, starter, partitions=3) as group:
        latents = disk / "latents"
        latents.mkdir()
        (tmp_path / "latents").symlink_to(latents)
        worker = group.worker(harness={"wait": 0.05}, OUTPUT_DIR=str(latents)).wait_ready()
        group.ask(ids("before", 3))
        finish(group)
        fault.begin(disk if name != "a file" else latents)
        group.ask(ids("request", 60))
        wait_until_held(worker, fault.code)
        check_stopped(worker, group)
        fault.end(disk if name != "a file" else latents)
        outcome = finish(group)
        assert outcome.codes() == {"success": 63}
        worker.wait_ready(10)
        assert worker.terminate() == 0


def test_the_pictures_are_away(broker: Broker, starter: Starter, tmp_path: Path) -> None:
    with Group(broker.bootstrap, tmp_path, starter, partitions=3) as group:
        worker = group.worker(harness={"wait": 0.05}, LATENT_ENCODER_TIMEOUT="2").wait_ready()
        pictures = tmp_path / "pictures"
        pictures.rename(tmp_path / "away")
        group.ask(ids("request", 30))
        wait_until_held(worker, "IMAGE_NOT_FOUND")
        assert "picture.png" not in worker.health("/health/ready").text
        check_stopped(worker, group)
        time.sleep(3)  # longer than a picture may take: what is held is not late for that
        (tmp_path / "away").rename(pictures)
        outcome = finish(group)
        assert outcome.codes() == {"success": 30}
        worker.wait_ready(10)
        # With the folder there, a picture that is not is that request's own fault.
        group.ask(["none"], str(pictures / "none.png"))
        assert finish(group).codes() == {"success": 30, "IMAGE_NOT_FOUND": 1}


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_no_room_for_the_broker_s_log(starter: Starter, tmp_path: Path) -> None:
    overrides = {"log.dirs": str(tmp_path / "disk" / "data")}
    with (
        small_disk(tmp_path / "disk", 64) as disk,
        started_broker(tmp_path / "broker", overrides=overrides) as broker,
        Group(broker.bootstrap, tmp_path, starter, partitions=3) as group,
    ):
        worker = group.worker(harness={"wait": 0.1})
        group.ask(ids("request", 60))
        worker.wait_log("Answered")
        with Supervisor(worker) as supervisor:
            filler = fill(disk)
            wait_until(lambda: not broker.is_running, 60, lambda: f"the broker goes on: {worker.log()[-3000:]}")
            supervisor.wait_for("KAFKA_UNAVAILABLE")
            filler.unlink()
            broker.restart()
            # librdkafka may wait without end for a coordinator that has gone (its issues 5456 and 5511): the
            # watchdog ends that after a minute.
            outcome = finish(group, 250)
            supervisor.wait_for("ready")
        assert outcome.codes() == {"success": 60}
        assert set(supervisor.exit_codes) <= {3, -9}


def wait_until_held(worker: WorkerProcess, code: str) -> None:
    wait_until(lambda: readiness(worker)[0] == code, 30, lambda: f"{readiness(worker)} {worker.log()[-3000:]}")


def check_stopped(worker: WorkerProcess, group: Group) -> None:
    """Nothing is answered, nothing is dead-lettered, the worker lives, and one line says why it waits."""
    wait_until(lambda: worker.metric("latent_encoder_kafka_in_flight") == 0, 10, worker.log)
    answered = worker.log().count("Answered")
    time.sleep(2)
    assert worker.log().count("Answered") == answered
    assert read_topic(group.bootstrap, group.topics.dlq) == []
    assert worker.log().count("Consumption stops") == 1
    assert worker.health("/health/live").status_code == 200
