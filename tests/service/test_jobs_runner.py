"""The jobs' runner, where two things happen at once. Its pictures are missing, so it needs no engine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from service.rest.process import wait_for

from latent_encoder.models import EncodeRequest
from latent_encoder.service.config import Settings
from latent_encoder.service.doors.rest.job_runner import JobRunner
from latent_encoder.service.doors.rest.uploads import Uploads
from latent_encoder.service.encoder import Encoder
from latent_encoder.service.engines.embedded import EmbeddedEngine
from latent_encoder.service.job_store import JobStore, Work
from latent_encoder.service.metrics import Metrics
from latent_encoder.service.workers import ENCODE, JOBS, Workers

REQUEST = EncodeRequest(request_id="a", image_path="none.png", vae_model_name="pixel_space")


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path)


@pytest.fixture
def runner(store: JobStore, tmp_path: Path) -> Iterator[JobRunner]:
    settings = Settings(input_roots=[Path.cwd()], output_dir=tmp_path, output_roots=[tmp_path], state_dir=tmp_path)
    workers = Workers((ENCODE, JOBS), 10)
    encoder, uploads = Encoder(EmbeddedEngine(tmp_path), settings), Uploads(tmp_path / "uploads", 1000, 10)
    runner = JobRunner(store, encoder, workers, uploads, Metrics(), is_ready=lambda: True)
    workers.start(2)
    yield runner
    workers.stop()
    assert workers.wait_idle(10)
    runner.close()


def outcome(runner: JobRunner) -> str | None:
    wait_for(lambda: runner.get("a").status in ("done", "cancelled"), 10)
    response = runner.get("a").response
    return response and response.error_code


def test_job_that_is_cancelled_and_left_again_while_it_starts_is_run(
    runner: JobRunner, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, again = store.start, threading.Event()

    def cancel_and_submit() -> None:
        runner.cancel("a")
        runner.submit(REQUEST, None)
        again.set()

    def slow_start(job_id: str) -> Work | None:
        monkeypatch.setattr(store, "start", start)
        threading.Thread(target=cancel_and_submit).start()
        again.wait(0.3)
        return start(job_id)

    monkeypatch.setattr(store, "start", slow_start)
    runner.submit(REQUEST, None)
    assert again.wait(10)
    time.sleep(0.1)
    assert outcome(runner) == "IMAGE_NOT_FOUND"


def test_follower_whose_loop_is_closed_stops_no_job(runner: JobRunner) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    with runner.listen("a", lambda: loop.call_soon_threadsafe(print)):
        runner.submit(REQUEST, None)
        assert outcome(runner) == "IMAGE_NOT_FOUND"
