"""/v1/jobs: promised now, encoded later; cancelled, followed, repeated, and finished after a crash."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from functools import partial
from pathlib import Path

import httpx
import pytest
from pictures import png
from service.rest.process import HELD, PICTURE, RestService, error_of, wait_for

from latent_encoder.latent_file import verify_latent

RUNNING = 'latent_encoder_running{engine="embedded"}'
WAITING = 'latent_encoder_queue_depth{queue="jobs"}'


def test_job_is_accepted_run_and_answered(rest: RestService) -> None:
    response = rest.submit(request_id="job-1", correlation_id="order 7")
    job = response.json()
    assert response.status_code == 202 and response.headers["Location"] == "/v1/jobs/job-1"
    assert job["job_id"] == "job-1" and job["status"] in ("queued", "running") and job["response"] is None
    done = rest.ended("job-1")
    assert done["status"] == "done" and done["created_at"] <= done["started_at"] <= done["finished_at"]
    assert done["response"]["status"] == "success" and done["response"]["correlation_id"] == "order 7"
    assert verify_latent(Path(done["response"]["latent_file_path"]))


def test_failed_job_is_done_with_its_error_and_runs_again_when_repeated(rest: RestService) -> None:
    picture = rest.here / "pictures" / "later.png"
    for _ in range(2):
        assert rest.submit(request_id="job-2", image_path="pictures/later.png").status_code == 202
        assert rest.ended("job-2")["response"]["error_code"] == "IMAGE_NOT_FOUND"
    picture.write_bytes(PICTURE)
    rest.submit(request_id="job-2", image_path="pictures/later.png")
    assert rest.ended("job-2")["response"]["status"] == "success"


def test_uploaded_job_keeps_its_picture_until_it_is_done(held: RestService) -> None:
    held.hold()
    assert held.upload(path="/v1/jobs", request_id="job-3", name="cat.png").status_code == 202
    assert [path.read_bytes() for path in held.uploads()] == [PICTURE]
    held.hold(False)
    assert held.ended("job-3")["response"]["metadata"]["image_name"] == "cat.png"
    wait_for(lambda: held.uploads() == [])


def test_repeated_id_is_one_job_and_other_contents_conflict(held: RestService) -> None:
    held.hold()
    first, again = (held.upload(path="/v1/jobs", request_id="job-4") for _ in range(2))
    assert first.status_code == again.status_code == 202 and len(held.uploads()) == 1
    other = held.upload(png(64, 64, 5), path="/v1/jobs", request_id="job-4")
    assert error_of(other) == (409, "REQUEST_ID_CONFLICT") and other.json()["request_id"] == "job-4"
    held.hold(False)
    done = held.ended("job-4")
    assert held.upload(path="/v1/jobs", request_id="job-4").json() == done
    assert held.encodes().count("job-4") == 1
    path = Path(done["response"]["latent_file_path"])
    for encodes, spoil in ((2, path.unlink), (3, partial(path.write_bytes, b"cut off"))):
        spoil()
        held.upload(path="/v1/jobs", request_id="job-4")
        wait_for(lambda encodes=encodes: held.encodes().count("job-4") == encodes)
        assert held.ended("job-4")["response"]["metadata"]["reused"] is False
        assert verify_latent(path)


def test_cancel_while_it_waits_and_while_it_runs(held: RestService) -> None:
    held.hold()
    for number in range(3):
        held.upload(path="/v1/jobs", request_id=f"cancel-{number}")
    wait_for(lambda: held.metric(RUNNING) == 3)
    held.upload(path="/v1/jobs", request_id="cancel-3", correlation_id="order 7")
    for name in ("cancel-3", "cancel-0", "cancel-0"):
        response = held.client.delete(f"/v1/jobs/{name}")
        job = response.json()
        assert response.status_code == 200 and job["status"] == "cancelled" and job["finished_at"]
        assert job["response"]["error_code"] == "INTERRUPTED" and job["response"]["request_id"] == name
    wait_for(lambda: held.metric(RUNNING) == 2 and len(held.uploads()) == 2)
    held.hold(False)
    assert held.ended("cancel-1")["status"] == held.ended("cancel-2")["status"] == "done"
    assert held.client.delete("/v1/jobs/cancel-1").json() == held.job("cancel-1")
    assert held.job("cancel-3")["response"]["correlation_id"] == "order 7"
    assert "cancel-3" not in held.encodes() and not (held.here / "output" / "cancel-0.safetensors").exists()
    assert held.upload(path="/v1/jobs", request_id="cancel-0").json()["status"] in ("queued", "running")
    assert held.ended("cancel-0")["response"]["status"] == "success"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_unknown_job(rest: RestService, method: str) -> None:
    assert error_of(rest.client.request(method, "/v1/jobs/none")) == (404, "JOB_NOT_FOUND")
    assert error_of(rest.client.request(method, "/v1/jobs/-odd-")) == (400, "INVALID_REQUEST")
    assert error_of(rest.client.get("/v1/jobs/none/events")) == (404, "JOB_NOT_FOUND")


def events_of(response: httpx.Response) -> list[tuple[str, dict]]:
    found, kind = [], ""
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            found.append((kind, json.loads(value)))
    return found


def test_events_tell_status_and_progress_and_end_with_the_job(held: RestService) -> None:
    held.hold()
    held.submit(request_id="followed")
    with held.client.stream("GET", "/v1/jobs/followed/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        wait_for(lambda: "followed" in held.encodes())
        threading.Timer(2, held.hold, [False]).start()
        events = events_of(response)
    assert [job["status"] for kind, job in events if kind == "job"][-2:] == ["running", "done"]
    parts = [event["progress"] for kind, event in events if kind == "progress"]
    assert len(parts) > 1 and parts == sorted(parts) and all(0.25 <= part <= 1 for part in parts)
    assert events[-1][1] == held.job("followed")
    with held.client.stream("GET", "/v1/jobs/followed/events") as response:  # after the end: the job, and that is all
        assert events_of(response) == [events[-1]]


def test_followers_who_go_away_are_forgotten(held: RestService) -> None:
    held.hold()
    held.submit(request_id="abandoned")
    for _ in range(5):
        with held.client.stream("GET", "/v1/jobs/abandoned/events") as response:
            next(response.iter_lines())
    held.hold(False)
    assert held.ended("abandoned")["response"]["status"] == "success"


def test_jobs_wait_for_an_engine_that_goes_away_under_them(held: RestService) -> None:
    held.hold()
    names = [f"patient-{number}" for number in range(5)]
    for name in names:
        wait_for(lambda: held.metric(RUNNING) == 3 or held.metric(WAITING) == 0)
        held.upload(path="/v1/jobs", request_id=name)
    held.away()
    wait_for(lambda: held.metric(RUNNING) == 0)
    held.hold(False)
    wait_for(lambda: not held.is_ready())
    time.sleep(0.5)
    assert [held.job(name)["status"] for name in names] == ["queued"] * 5 and len(held.uploads()) == 5
    assert held.job(names[0])["started_at"] is None
    assert error_of(held.encode(request_id="told-at-once")) == (503, "ENGINE_UNAVAILABLE")
    held.away(False)
    assert [held.ended(name)["response"]["status"] for name in names] == ["success"] * 5
    wait_for(lambda: held.uploads() == [])


def test_kill_9_loses_no_job_and_a_job_that_kills_is_given_up(tmp_path: Path) -> None:
    service = RestService(tmp_path, script=HELD, LATENT_ENCODER_QUEUE_SIZE="50").start()
    service.hold()
    for number in range(8):
        sent = service.upload(png(64, 64, number), path="/v1/jobs", request_id=f"survivor-{number}")
        assert sent.status_code == 202
    wait_for(lambda: service.metric(RUNNING) == 3)
    service.client.delete("/v1/jobs/survivor-7")
    service.kill()
    stray = tmp_path / ".latent_encoder" / "uploads" / "stray"
    stray.write_bytes(b"of a caller who was cut off")
    with sqlite3.connect(tmp_path / ".latent_encoder" / "jobs.sqlite3") as database:
        database.execute("UPDATE jobs SET deaths = 4 WHERE job_id = 'survivor-0'")
        database.execute("UPDATE jobs SET finished_at = finished_at - 1e6 WHERE job_id = 'survivor-7'")
    database.close()

    service.start()  # still held back
    assert not stray.exists()
    lost = service.job("survivor-0")
    assert lost["status"] == "done" and lost["response"]["error_code"] == "ENCODING_FAILED"
    assert "ComfyUI" not in lost["response"]["error_hint"]
    wait_for(lambda: service.metric(RUNNING) == 3)
    assert error_of(service.client.get("/v1/jobs/survivor-7")) == (404, "JOB_NOT_FOUND")  # older than JOB_TTL_HOURS
    states = [service.job(f"survivor-{number}")["status"] for number in range(1, 7)]
    assert states == ["queued"] * 2 + ["running"] * 3 + ["queued"]  # those under which it died come last
    service.hold(False)
    for number in range(1, 7):
        response = service.ended(f"survivor-{number}")["response"]
        assert response["status"] == "success" and verify_latent(Path(response["latent_file_path"])), response
    assert service.uploads() == [] and service.encodes()[-2:] == ["survivor-1", "survivor-2"]
    assert service.stop() == 0
