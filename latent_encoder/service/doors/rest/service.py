"""What the routes share: the encoder behind its queues, the jobs, the uploads, and how ready the engine is."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.encoder import Encoder
from latent_encoder.service.engines.base import Engine
from latent_encoder.service.job_store import JobStore
from latent_encoder.service.metrics import Metrics
from latent_encoder.service.readiness import STOPPING, Readiness
from latent_encoder.service.workers import ENCODE, JOBS, Workers

from .job_runner import JobRunner
from .uploads import Uploads

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings

    from .waiting import Waiting

UPLOADS_NAME = "uploads"
CHECK_SECONDS = 1.0
CLEAN_EVERY_SECONDS = 60.0
SECONDS_PER_HOUR = 3600


class Service:
    """One service process. Made before the engine is started; requests wait until it is.

    Args:
        settings: the caller holds ``state_dir``.

    Raises:
        OSError, sqlite3.DatabaseError: what lies in ``state_dir`` cannot be used.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        self.encoder = Encoder(engine, settings)
        self.metrics = Metrics()
        self.workers = Workers((ENCODE, JOBS), settings.queue_size)
        self.workers.hold(JOBS, True)
        self.uploads = Uploads(
            settings.state_dir / UPLOADS_NAME, settings.max_upload_mb * 1_000_000, settings.queue_size
        )
        self.readiness = Readiness(engine)
        store = JobStore(settings.state_dir)
        self.jobs = JobRunner(
            store, self.encoder, self.workers, self.uploads, self.metrics, is_ready=self.readiness.update
        )
        self.waiting: set[Waiting] = set()  # the requests to /v1/encode that have no answer yet
        self.ending = threading.Event()
        self._watch()
        self.jobs.recover()

    def start(self) -> None:
        """Begin to work; the engine has been started."""
        self.workers.start(self.engine.slots)
        threading.Thread(target=self._keep_house, name="housekeeping", daemon=True).start()

    def refuse(self) -> None:
        """Take no new request, start no further job, and say so in ``/health/ready``."""
        self.ending.set()
        self.workers.refuse(STOPPING)
        self.workers.hold(JOBS, True)
        self.readiness.stop()
        self.jobs.wake_all()

    def answer_waiting(self, error: LatentEncoderError) -> None:
        """Answer the requests to /v1/encode that wait for their turn."""
        for waiting in list(self.waiting):
            waiting.answer_if_waits(error)

    def answer_all(self, error: LatentEncoderError) -> None:
        """Answer the requests to /v1/encode that have no answer yet, and stop those that run."""
        for waiting in list(self.waiting):
            waiting.give_up(error)

    def interrupt(self) -> None:
        """Cancel the requests to /v1/encode, those that run, too; each is answered with INTERRUPTED."""
        self.answer_waiting(LatentEncoderError("INTERRUPTED", STOPPING))
        for waiting in list(self.waiting):
            waiting.call.cancel()

    def close(self) -> None:
        """Give everything back but the engine."""
        self.ending.set()
        self.workers.stop()
        self.jobs.close()

    def _keep_house(self) -> None:
        clean_at = time.monotonic()
        while not self.ending.is_set():
            ready = self.readiness.update()
            # A job waits for an engine that is away; a caller of /v1/encode is told at once.
            self.workers.hold(JOBS, not ready or self.ending.is_set())
            self.jobs.save_answers()
            if time.monotonic() >= clean_at:
                self.jobs.forget_old(self.settings.job_ttl_hours * SECONDS_PER_HOUR)
                clean_at = time.monotonic() + CLEAN_EVERY_SECONDS
            self.ending.wait(CHECK_SECONDS)

    def _watch(self) -> None:
        depths = {lane: partial(self.workers.waiting, lane) for lane in (ENCODE, JOBS)}
        self.metrics.watch("latent_encoder_queue_depth", "How many requests wait.", "queue", depths)
        self.metrics.watch_engine(self.engine.name, lambda: self.readiness.error() is None)
        running = {self.engine.name: lambda: float(self.workers.running)}
        self.metrics.watch("latent_encoder_running", "How many requests are being encoded.", "engine", running)
