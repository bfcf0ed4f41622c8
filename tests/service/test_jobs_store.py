"""The table of jobs and the lock of its folder, without a service around them."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.conftest import mount

from latent_encoder.errors import LatentEncoderError
from latent_encoder.models import EncodeRequest, EncodeResponse
from latent_encoder.service.job_store import DATABASE_NAME, MOST_DEATHS, JobStore, contents_of
from latent_encoder.service.state_lock import StateDirInUse, hold_state_dir

LOST = LatentEncoderError("ENCODING_FAILED", "given up")
STOPPED = LatentEncoderError("INTERRUPTED", "cancelled")


def request(job_id: str = "a", **fields: object) -> EncodeRequest:
    return EncodeRequest.model_validate({"request_id": job_id, "image_path": "a.png", "correlation_id": "c"} | fields)


def success(path: Path | None = None) -> EncodeResponse:
    return EncodeResponse(status="success", request_id="a", latent_file_path=str(path or __file__))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    store = JobStore(tmp_path)
    yield store
    store.close()


def test_life_of_a_job(store: JobStore) -> None:
    job, queued = store.add(request(), "x", "upload-1")
    assert (job.status, queued, store.uploads()) == ("queued", True, {"upload-1"})
    work = store.start("a")
    assert work and work.request == request() and work.upload == "upload-1" and store.get("a").status == "running"
    assert store.start("a") is None
    assert store.finish(work, success()) and store.get("a").response == success().model_copy(
        update={"timestamp": store.get("a").response.timestamp}
    )
    assert store.uploads() == set() and not store.finish(work, success())


def test_answer_of_an_earlier_run_does_not_end_a_later_one(store: JobStore) -> None:
    store.add(request(), "x", None)
    first = store.start("a")
    store.cancel("a", STOPPED)
    store.add(request(), "x", None)
    second = store.start("a")
    assert first and second and not store.finish(first, success()) and store.finish(second, success())


def test_what_another_process_has_left_is_queued_again_in_order(tmp_path: Path, store: JobStore) -> None:
    for name in "cab":
        store.add(request(name), "x", None)
    store.start("a")
    store.cancel("b", STOPPED)
    other = JobStore(tmp_path)  # as if the first were dead
    assert other.recover(LOST) == [("c", 0), ("a", 1)] and other.get("a").status == "queued"
    other.close()


def test_close_queues_what_runs_and_counts_no_death(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    for _ in range(MOST_DEATHS + 1):
        store.add(request(), "x", None)
        assert store.start("a")
        store.close()
        store = JobStore(tmp_path)
        assert store.recover(LOST) == [("a", 0)]
    store.close()


def test_job_under_which_the_process_dies_again_and_again_is_given_up(store: JobStore) -> None:
    store.add(request(), "x", "upload-1")
    for deaths in range(1, MOST_DEATHS):
        store.start("a")
        assert store.recover(LOST) == [("a", deaths)]
    store.start("a")
    assert store.recover(LOST) == [] and store.uploads() == set()
    response = store.get("a").response
    assert response and (response.error_code, response.correlation_id) == ("ENCODING_FAILED", "c")
    assert store.add(request(), "x", None)[1] and store.start("a") and store.recover(LOST) == [("a", 1)]  # counted anew


def test_neighbours_of_a_job_that_kills_outlive_it(store: JobStore) -> None:
    """As the workers do it: three at once, those that have seen a death one at a time."""
    for name in ("innocent-1", "killer", "innocent-2", "late"):
        store.add(request(name), "x", None)
    lives = 0
    while left := store.recover(LOST):
        lives += 1
        fresh = [name for name, deaths in left if deaths == 0][:3]
        for name in fresh or [left[0][0]]:
            work = store.start(name)
            assert work and (work.deaths > 0) == (not fresh)
            if not (fresh and lives == 1) and name != "killer":
                store.finish(work, success())
    ends = [store.get(name).response for name in ("killer", "innocent-1", "innocent-2", "late")]
    assert [end and end.error_code for end in ends] == [LOST.code, None, None, None]
    assert lives == 1 + 1 + 2 + MOST_DEATHS - 1


def test_job_that_waits_for_the_engine_is_queued_once_more(store: JobStore) -> None:
    store.add(request(), "x", "upload-1")
    work = store.start("a")
    assert work and store.requeue(work) and store.get("a").status == "queued" and store.uploads() == {"upload-1"}
    assert not store.requeue(work) and store.recover(LOST) == [("a", 0)]
    store.start("a")
    store.cancel("a", STOPPED)
    assert not store.requeue(work) and store.get("a").status == "cancelled"


def test_only_what_has_ended_is_forgotten(store: JobStore) -> None:
    for name in "abc":
        store.add(request(name), "x", None)
    store.cancel("a", STOPPED)
    work = store.start("b")
    assert work and store.finish(work, success())
    assert store.forget(60) == 0 and store.forget(-60) == 2
    assert store.get("c").status == "queued"
    with pytest.raises(LatentEncoderError, match="JOB_NOT_FOUND"):
        store.get("a")


def test_contents_are_what_is_asked_for_and_not_who_waits() -> None:
    base = contents_of(request(), None)
    assert base == contents_of(request("b", correlation_id=None, deadline="2030-01-01T00:00:00Z"), None)
    others = [{"image_path": "b.png"}, {"megapixels": 2}, {"output_dir": "x"}, {"file_format": "pt"}]
    assert (
        len({base, contents_of(request(), "0" * 64), *(contents_of(request(**other), None) for other in others)}) == 6
    )


def test_newer_and_damaged_databases_are_refused(tmp_path: Path) -> None:
    JobStore(tmp_path).close()
    with sqlite3.connect(tmp_path / DATABASE_NAME) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(sqlite3.DatabaseError, match="newer"):
        JobStore(tmp_path)


def test_full_disk_is_said_and_harms_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "small disk"
    folder.mkdir()
    mount(folder, "-t", "tmpfs", "-o", "size=256k", "tmpfs")
    try:
        store = JobStore(folder)
        kept = 0
        with pytest.raises(LatentEncoderError, match="DISK_FULL"):
            for kept in range(1000):
                store.add(request(f"job-{kept}", image_path="x" * 5000), "x", None)
        assert kept > 2 and store.get("job-0").status == "queued"
        with pytest.raises(LatentEncoderError, match="JOB_NOT_FOUND"):
            store.get(f"job-{kept}")
        store.close()
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_state_dir_has_one_holder_and_is_free_after_kill_9(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from latent_encoder.service.state_lock import hold_state_dir\n"
        "with hold_state_dir(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        with pytest.raises(StateDirInUse, match=f"process {holder.pid}"), hold_state_dir(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with hold_state_dir(tmp_path):
        pass
