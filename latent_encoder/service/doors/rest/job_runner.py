"""Runs the jobs of the store, tells who listens, and clears up behind them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from latent_encoder.errors import LatentEncoderError
from latent_encoder.models import EncodeRequest, EncodeResponse
from latent_encoder.service.engines.base import Call
from latent_encoder.service.jobs import MOST_DEATHS, Job, JobStore, Work, contents_of
from latent_encoder.service.workers import Task

from .uploads import Upload

if TYPE_CHECKING:
    from .service import Service

LANE = "jobs"
SECONDS_PER_HOUR = 3600
RETRY_SECONDS = 1.0

logger = logging.getLogger(__name__)


class JobRunner:
    """The jobs of one service. Its methods may be called from every thread; those that reach the disk block."""

    def __init__(self, store: JobStore, service: Service) -> None:
        self._store, self._service = store, service
        self._guard = threading.Lock()
        self._tasks: dict[str, Task] = {}  # of the jobs that wait
        self._calls: dict[str, Call] = {}  # of the jobs that run
        self._parts: dict[str, float] = {}  # how much of each of them is done, from 0 to 1
        self._listeners: dict[str, list[Callable[[], object]]] = {}
        self._unsaved: list[tuple[Work, EncodeResponse]] = []
        self._abandoned = False

    def submit(self, request: EncodeRequest, upload: Upload | None) -> Job:
        """Keep a job and queue it; when this returns, the job survives the process.

        Args:
            upload: becomes ours.

        Raises:
            LatentEncoderError: QUEUE_FULL, ENGINE_UNAVAILABLE, REQUEST_ID_CONFLICT, DISK_FULL, OUTPUT_DIR_NOT_WRITABLE.
        """
        queued = reserved = False
        try:
            self._service.workers.reserve(LANE)
            reserved = True
            if upload:
                upload.keep()
            contents = contents_of(request, upload.sha256 if upload else None)
            job, queued = self._store.add(request, contents, upload.path.name if upload else None)
        finally:
            if not queued:
                if reserved:
                    self._service.workers.release(LANE)
                if upload:
                    upload.discard()
        if queued:
            self._service.workers.put(LANE, self._task(request.request_id))
        return job

    def recover(self) -> None:
        """Queue again what an earlier process has left; called once, before the first ``submit`` or upload."""
        error = LatentEncoderError(
            "ENCODING_FAILED", f"The service has died {MOST_DEATHS} times while it encoded this picture."
        )
        job_ids = self._store.recover(error)
        self._service.uploads.sweep(self._store.uploads())
        for job_id in job_ids:
            self._service.workers.put_back(LANE, self._task(job_id))
        if job_ids:
            logger.info("%d jobs of an earlier process are queued again", len(job_ids))

    def get(self, job_id: str) -> Job:
        """The job as it stands; raises JOB_NOT_FOUND."""
        return self._store.get(job_id)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job that has not ended; raises JOB_NOT_FOUND."""
        job, upload = self._store.cancel(job_id, LatentEncoderError("INTERRUPTED", "The job was cancelled."))
        with self._guard:
            task, call = self._tasks.get(job_id), self._calls.get(job_id)
        if call:
            call.cancel()
        elif task and self._service.workers.remove(LANE, task):
            with self._guard:
                self._tasks.pop(job_id, None)
        if upload:
            self._discard(upload)
        self._tell(job_id)
        return job

    def part_done(self, job_id: str) -> float | None:
        """How much of a running job is done, from 0 to 1."""
        return self._parts.get(job_id)

    @contextmanager
    def listen(self, job_id: str, tell: Callable[[], object]) -> Iterator[None]:
        """Have ``tell`` called, from any thread, whenever something about the job has changed."""
        with self._guard:
            self._listeners.setdefault(job_id, []).append(tell)
        try:
            yield
        finally:
            with self._guard:
                self._listeners[job_id].remove(tell)
                if not self._listeners[job_id]:
                    del self._listeners[job_id]

    def wake_all(self) -> None:
        """Call every listener."""
        for job_id in list(self._listeners):
            self._tell(job_id)

    def forget_old(self) -> None:
        """Forget the jobs that ended ``JOB_TTL_HOURS`` ago; their latent files stay."""
        try:
            count = self._store.forget(self._service.settings.job_ttl_hours * SECONDS_PER_HOUR)
        except LatentEncoderError as error:
            logger.warning("Old jobs could not be forgotten: %s", error.message)
        else:
            if count:
                logger.info("%d old jobs were forgotten", count)

    def save_answers(self) -> None:
        """Keep the answers that could not be kept when they came."""
        with self._guard:
            unsaved, self._unsaved = self._unsaved, []
        for work, response in unsaved:
            self._keep(work, response)

    def abandon(self) -> None:
        """Cancel what runs, and drop its answers: the next process runs it again."""
        with self._guard:
            self._abandoned = True
            calls = list(self._calls.values())
        for call in calls:
            call.cancel()

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _task(self, job_id: str) -> Task:
        task = partial(self._run, job_id, time.monotonic())
        with self._guard:
            self._tasks[job_id] = task
        return task

    def _run(self, job_id: str, queued_at: float) -> None:
        call = Call(on_progress=partial(self._progress, job_id))
        with self._guard:
            self._tasks.pop(job_id, None)
            self._calls[job_id] = call
        try:
            work = self._store.start(job_id)
            if work:
                self._tell(job_id)
                self._encode(work, call, queued_at)
        except LatentEncoderError as error:
            logger.error("A job cannot be started yet: %s", error.message, extra={"request_id": job_id})
            self._service.ending.wait(RETRY_SECONDS)
            self._service.workers.put_back(LANE, self._task(job_id))
        finally:
            with self._guard:
                if self._calls.get(job_id) is call:
                    del self._calls[job_id]
                    self._parts.pop(job_id, None)
            self._tell(job_id)

    def _encode(self, work: Work, call: Call, queued_at: float) -> None:
        upload = self._service.uploads.folder / work.upload if work.upload else None
        response = self._service.encoder.encode_image_to_latent(
            work.request, call=call, upload=upload, queued_at=queued_at
        )
        self._service.metrics.count(response)
        self._keep(work, response)

    def _keep(self, work: Work, response: EncodeResponse) -> None:
        if self._abandoned:
            return
        ids = {"request_id": work.job_id, "correlation_id": work.request.correlation_id}
        try:
            kept = self._store.finish(work, response)
        except LatentEncoderError as error:
            logger.error("A job's answer cannot be kept yet: %s", error.message, extra=ids)
            with self._guard:
                self._unsaved.append((work, response))
            return
        if work.upload:
            self._discard(work.upload)
        outcome = response.error_code or "success"
        logger.info("Job done" if kept else "Job cancelled", extra=ids | {"code": outcome})

    def _discard(self, upload: str) -> None:
        with suppress(OSError):  # on Windows it may still be open: the next start sweeps it
            (self._service.uploads.folder / upload).unlink()

    def _progress(self, job_id: str, part: float) -> None:
        with self._guard:
            if job_id not in self._calls:
                return
            self._parts[job_id] = part
        self._tell(job_id)

    def _tell(self, job_id: str) -> None:
        with self._guard:
            listeners = list(self._listeners.get(job_id, ()))
        for tell in listeners:
            tell()
