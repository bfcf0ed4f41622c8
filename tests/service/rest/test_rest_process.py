"""The process: what keeps it from starting, who may call it without a token, and how it stops."""

from __future__ import annotations

import signal
import socket
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from service.rest.process import HELD, RestService, error_of, wait_for

RUNNING = 'latent_encoder_running{engine="embedded"}'
WAITING = 'latent_encoder_queue_depth{queue="encode"}'


def refusal(service: RestService) -> str:
    """Why the service does not start: what it says when it ends with 2."""
    process = service.spawn()
    assert process.wait(60) == 2
    return service.log_path.read_text()


def test_second_process_with_one_state_dir_says_so(rest: RestService) -> None:
    said = refusal(RestService(rest.here))
    assert "in use by process" in said and str(rest.process.pid) in said


def test_taken_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in refusal(RestService(tmp_path, REST_PORT=str(port)))


def test_damaged_jobs(tmp_path: Path) -> None:
    service = RestService(tmp_path)
    (tmp_path / ".latent_encoder").mkdir()
    (tmp_path / ".latent_encoder" / "jobs.sqlite3").write_bytes(b"this is no database" * 100)
    assert "not a database" in refusal(service)


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings GNU's OpenMP on Linux")
@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, "20000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_torchs_threads_keep_no_core_busy_while_a_caller_is_answered(
    tmp_path: Path, own: dict[str, str], expected: str
) -> None:
    service = RestService(tmp_path, OMP_DISPLAY_ENV="verbose", **own).start()
    assert service.stop() == 0
    assert f"GOMP_SPINCOUNT = '{expected}'" in service.log_path.read_text()


@pytest.mark.parametrize("end", ["broken", "stopped"])
def test_callers_who_wait_for_an_engine_that_never_starts_are_answered(tmp_path: Path, end: str) -> None:
    service = RestService(tmp_path, script=HELD)
    service.flag("starting")
    service.start(ready=False)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(service.upload, request_id=f"early-{number}") for number in range(3)]
        wait_for(lambda: service.metric(WAITING) == 3)
        if end == "broken":
            service.flag("broken")
            service.flag("starting", False)
        else:
            service.process.send_signal(signal.SIGTERM)
        for answer in waiting:
            assert error_of(answer.result()) == (503, "ENGINE_UNAVAILABLE")
    assert service.process.wait(30) == (1 if end == "broken" else 0)
    assert service.uploads() == [] and ("The test has broken" in service.log_path.read_text()) == (end == "broken")


def test_comfyui_that_is_named_and_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    nobody = {"LATENT_ENCODER_ENGINE": "comfyui", "COMFYUI_URL": "http://127.0.0.1:9"}
    service = RestService(tmp_path, **nobody).start(ready=False)
    assert error_of(service.client.get("/health/ready")) == (503, "ENGINE_UNAVAILABLE")
    assert error_of(service.encode()) == (503, "ENGINE_UNAVAILABLE")
    assert error_of(service.client.get("/v1/vaes")) == (503, "ENGINE_UNAVAILABLE")
    service.submit(request_id="patient")
    assert service.job("patient")["status"] == "queued" and service.stop() == 0


def test_open_address_needs_a_token_or_the_word_that_none_is_wanted(tmp_path: Path) -> None:
    assert "--no-auth" in refusal(RestService(tmp_path, REST_HOST="0.0.0.0"))
    service = RestService(tmp_path, "--no-auth", script=HELD, REST_HOST="0.0.0.0").start()
    try:
        stranger = {"Host": "encoder.example", "Origin": "https://page.example"}
        assert service.client.get("/v1/vaes", headers=stranger).status_code == 200
    finally:
        assert service.stop() == 0


STRANGERS = (
    ("Origin", "https://evil.example"),
    ("Origin", "null"),
    ("Origin", "http://["),
    ("Host", "["),
    ("Host", "evil.example"),
    ("Host", "127.0.0.1.nip.io"),
)


@pytest.mark.parametrize(("header", "value"), STRANGERS)
def test_without_a_token_pages_of_other_sites_are_refused(rest: RestService, header: str, value: str) -> None:
    response = rest.client.post("/v1/jobs", files={"image": b"x"}, headers={header: value})
    assert error_of(response) == (401, "UNAUTHORIZED")
    assert "Access-Control-Allow-Origin" not in response.headers


def test_without_a_token_own_pages_are_served(rest: RestService) -> None:
    port = rest.address[1]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert rest.client.get("/v1/vaes", headers=headers).status_code == 200


def test_sigterm_under_load_finishes_what_was_promised(tmp_path: Path) -> None:
    service = RestService(tmp_path, script=HELD).start()
    service.hold()
    with ThreadPoolExecutor(8) as pool:
        load = [pool.submit(service.encode, request_id=f"load-{number}") for number in range(6)]
        wait_for(lambda: service.metric(RUNNING) == 3 and service.metric(WAITING) == 3)
        service.submit(request_id="stays")
        with httpx.Client(base_url=service.url) as follower, follower.stream("GET", "/v1/jobs/stays/events") as events:
            service.process.send_signal(signal.SIGTERM)
            wait_for(lambda: not service.is_ready())
            assert events.read().count(b"event: job") == 1  # its end comes with the service's
        assert error_of(service.client.get("/health/ready")) == (503, "ENGINE_UNAVAILABLE")
        assert service.client.get("/health/live").status_code == 200
        for refused in (service.encode(), service.upload(), service.submit()):
            assert error_of(refused) == (503, "ENGINE_UNAVAILABLE") and refused.json()["retryable"] is True
        service.hold(False)
        assert [request.result().status_code for request in load] == [200] * 6
    assert service.stop() == 0
    assert jobs_of(service) == [("stays", "queued", 0)]


def test_second_signal_hurries_and_loses_no_job(tmp_path: Path) -> None:
    service = RestService(tmp_path, script=HELD).start()
    service.hold()
    service.submit(request_id="again")
    wait_for(lambda: service.metric(RUNNING) == 1)
    with ThreadPoolExecutor(4) as pool:
        load = [pool.submit(service.encode, request_id=f"hurried-{number}") for number in range(3)]
        wait_for(lambda: service.metric(WAITING) == 1)
        service.process.send_signal(signal.SIGINT)
        wait_for(lambda: not service.is_ready())
        service.process.send_signal(signal.SIGINT)
        assert [error_of(request.result()) for request in load] == [(409, "INTERRUPTED")] * 3
    assert service.process.wait(30) == 0
    assert jobs_of(service) == [("again", "queued", 0)]


def jobs_of(service: RestService) -> list[tuple[str, str, int]]:
    """What the table of jobs holds."""
    with closing(sqlite3.connect(service.here / ".latent_encoder" / "jobs.sqlite3")) as database:
        return database.execute("SELECT job_id, status, deaths FROM jobs").fetchall()
