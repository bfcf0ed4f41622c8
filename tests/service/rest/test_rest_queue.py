"""The queue in front of the encoder: full, left by callers who go away, and a crowd at once."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import psutil
import pytest
from service.rest.process import PICTURE, RestService, error_of, wait_for

RUNNING = 'latent_encoder_running{engine="embedded"}'
WAITING = 'latent_encoder_queue_depth{queue="encode"}'


def fill(held: RestService, pool: ThreadPoolExecutor, name: str) -> list[Future[httpx.Response]]:
    """Three requests that run and two that wait."""
    held.hold()
    filling = [pool.submit(held.encode, request_id=f"{name}-{number}") for number in range(5)]
    wait_for(lambda: held.metric(RUNNING) == 3 and held.metric(WAITING) == 2)
    return filling


def test_full_queue_is_429_with_retry_after_and_empties_again(held: RestService) -> None:
    with ThreadPoolExecutor(8) as pool:
        filling = fill(held, pool, "full")
        for response in (held.encode(), held.upload()):
            assert error_of(response) == (429, "QUEUE_FULL")
            assert 1 <= int(response.headers["Retry-After"]) <= 60
            assert response.json()["retryable"] is True
        assert held.submit(request_id="other-lane").status_code == 202
        held.hold(False)
        assert [request.result().status_code for request in filling] == [200] * 5
    assert held.ended("other-lane")["response"]["status"] == "success"
    assert held.encode(request_id="after-full").status_code == 200


def test_jobs_have_a_queue_of_their_own_that_fills(held: RestService) -> None:
    held.hold()
    for number in range(3):
        assert held.submit(request_id=f"lane-{number}").status_code == 202
    wait_for(lambda: held.metric(RUNNING) == 3)
    assert [held.submit(request_id=f"lane-{number}").status_code for number in (3, 4)] == [202, 202]
    assert error_of(held.submit(request_id="lane-5")) == (429, "QUEUE_FULL")
    assert error_of(held.upload(path="/v1/jobs", request_id="lane-6")) == (429, "QUEUE_FULL")
    assert error_of(held.client.get("/v1/jobs/lane-5")) == (404, "JOB_NOT_FOUND")
    held.hold(False)
    assert all(held.ended(f"lane-{number}")["response"]["status"] == "success" for number in range(5))
    assert held.uploads() == []


def test_caller_who_goes_away_while_waiting_frees_the_place(held: RestService) -> None:
    held.hold()
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(held.encode, request_id=f"stays-{number}") for number in range(3)]
        wait_for(lambda: held.metric(RUNNING) == 3)
        with httpx.Client(base_url=held.url, timeout=0.5) as impatient, pytest.raises(httpx.ReadTimeout):
            impatient.post("/v1/encode", files={"image": PICTURE}, data={"request_id": "gone-while-waiting"})
        wait_for(lambda: held.metric(WAITING) == 0)
        assert held.metric(RUNNING) == 3 and held.uploads() == []
        held.hold(False)
        assert [request.result().status_code for request in running] == [200] * 3
    assert "gone-while-waiting" not in held.encodes()


def test_caller_who_goes_away_while_it_is_encoded_stops_the_encode(held: RestService) -> None:
    held.hold()
    with httpx.Client(base_url=held.url, timeout=3) as impatient, pytest.raises(httpx.ReadTimeout):
        impatient.post("/v1/encode", files={"image": PICTURE}, data={"request_id": "gone-while-encoded"})
    wait_for(lambda: held.metric(RUNNING) == 0)  # the engine is still held back
    assert "gone-while-encoded" in held.encodes() and held.uploads() == []
    assert not (held.here / "output" / "gone-while-encoded.safetensors").exists()
    assert any(
        line.get("request_id") == "gone-while-encoded" and line.get("code") == "INTERRUPTED" for line in held.log()
    )


async def crowd(host: str, port: int, callers: int) -> Counter[int]:
    """So many connections at once, each with one request; how often each status was the answer."""
    connected, everybody = 0, asyncio.Event()

    async def call(number: int) -> int:
        nonlocal connected
        body = json.dumps({"image_path": "pictures/a.png", "request_id": f"crowd-{number % 20}"})
        reader, writer = await asyncio.open_connection(host, port)
        connected += 1
        if connected == callers:
            everybody.set()
        await everybody.wait()
        head = f"POST /v1/encode HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        answer = await reader.read()
        writer.close()
        assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["status"] in ("success", "error")
        return int(answer.split()[1])

    return Counter(await asyncio.gather(*(call(number) for number in range(callers))))


@pytest.mark.parametrize("callers", [1000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_crowd_is_answered_whole_and_memory_is_bounded(rest: RestService, callers: int) -> None:
    asyncio.run(crowd(*rest.address, 100))  # what the first encodes in each thread need is no matter of the crowd
    process = psutil.Process(rest.process.pid)
    before = process.memory_info().rss

    statuses = asyncio.run(crowd(*rest.address, callers))
    assert set(statuses) <= {200, 429} and statuses.total() == callers and statuses[200] >= 64, statuses
    assert process.memory_info().rss - before < 200_000_000 + 50_000 * callers
    assert rest.metric(WAITING) == 0 and rest.encode(request_id="after-crowd").status_code == 200
