"""Runs the jobs of the store, tells who listens, and clears up behind them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from latent_encoder.errors import LatentEncoderError
from latent_encoder.models import EncodeRequest, EncodeResponse
from latent_encoder.service.encoder import Encoder
from latent_encoder.service.engines.base import Call
from latent_encoder.service.job_store import MOST_DEATHS, Job, JobStore, Work, contents_of
from latent_encoder.service.metrics import Metrics
from latent_encoder.service.workers import JOBS, Task, Workers

from .uploads import Upload, Uploads

RETRY_SECONDS = 1.0
ENGINE_AWAY = ("ENGINE_UNAVAILABLE", "NODES_MISSING")

logger = logging.getLogger(__name__)


class JobRunner:
    """The jobs of one service. Its methods may be called from every thread; those that reach the disk block.

    Args:
        is_ready: asks the engine whether it can take work. A job waits for one that cannot.
    """

    def __init__(
        self,
        store: JobStore,
        encoder: Encoder,
        workers: Workers,
        uploads: Uploads,
        metrics: Metrics,
        is_ready: Callable[[], bool],
    ) -> None:
        self._store, self._encoder, self._workers = store, encoder, workers
        self._uploads, self._metrics, self._is_ready = uploads, metrics, is_ready
        self._order = threading.Lock()  # held while a job changes, together with the task or the call that goes with it
        self._guard = threading.Lock()  # of what follows; never held while the disk is waited for
        self._tasks: dict[str, Task] = {}  # of the jobs that wait
        self._calls: dict[str, Call] = {}  # of the jobs that run
        self._parts: dict[str, float] = {}  # how much of each of them is done, from 0 to 1
        self._listeners: dict[str, list[Callable[[], object]]] = {}
        self._unsaved: list[tuple[Work, EncodeResponse | None]] = []
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
            self._workers.reserve(JOBS)
            reserved = True
            if upload:
                upload.keep()
            contents = contents_of(request, upload.sha256 if upload else None)
            with self._order:
                job, queued = self._store.add(request, contents, upload.path.name if upload else None)
                if queued:
                    self._workers.put(JOBS, self._task(request.request_id))
        finally:
            if not queued:
                if reserved:
                    self._workers.release(JOBS)
                if upload:
                    upload.discard()
        return job

    def recover(self) -> None:
        """Queue again what an earlier process has left; called once, before the first ``submit`` or upload."""
        error = LatentEncoderError(
            "ENCODING_FAILED",
            f"The service has died {MOST_DEATHS} times while it encoded this picture.",
            "Look into the service's own log of that time, and whether its machine ran out of memory.",
        )
        left = self._store.recover(error)
        self._uploads.sweep(self._store.uploads())
        for job_id, deaths in left:
            self._workers.put_back(JOBS, self._task(job_id, alone=deaths > 0))
        if left:
            logger.info("%d jobs of an earlier process are queued again", len(left))

    def get(self, job_id: str) -> Job:
        """The job as it stands; raises JOB_NOT_FOUND."""
        return self._store.get(job_id)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job that has not ended; raises JOB_NOT_FOUND."""
        with self._order:
            job, upload = self._store.cancel(job_id, LatentEncoderError("INTERRUPTED", "The job was cancelled."))
            with self._guard:
                task, call = self._tasks.get(job_id), self._calls.get(job_id)
            if call:
                call.cancel()
            if task and self._workers.remove(JOBS, task):
                with self._guard:
                    del self._tasks[job_id]
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

    def forget_old(self, seconds: float) -> None:
        """Forget the jobs that ended so many seconds ago; their latent files stay."""
        try:
            count = self._store.forget(seconds)
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

    def _task(self, job_id: str, *, alone: bool = False) -> Task:
        task = Task(partial(self._run, job_id, alone, time.monotonic()), job_id, alone)
        with self._guard:
            self._tasks[job_id] = task
        return task

    def _run(self, job_id: str, alone: bool, queued_at: float) -> None:
        call = Call(on_progress=partial(self._progress, job_id))
        try:
            with self._order:
                work = self._store.start(job_id)
                with self._guard:
                    self._tasks.pop(job_id, None)
                    if work:
                        self._calls[job_id] = call
            if work:
                self._tell(job_id)
                self._encode(work, call, queued_at)
        except LatentEncoderError as error:
            logger.error("A job cannot be started yet: %s", error.message, extra={"request_id": job_id})
            time.sleep(RETRY_SECONDS)
            self._workers.put_back(JOBS, self._task(job_id, alone=alone))
        finally:
            with self._guard:
                if self._calls.get(job_id) is call:
                    del self._calls[job_id]
                    self._parts.pop(job_id, None)
            self._tell(job_id)

    def _encode(self, work: Work, call: Call, queued_at: float) -> None:
        upload = self._uploads.folder / work.upload if work.upload else None
        response = self._encoder.encode_image_to_latent(work.request, call=call, upload=upload, queued_at=queued_at)
        if response.error_code in ENGINE_AWAY and not self._is_ready():
            self._workers.hold(JOBS, True)
            self._keep(work, None)
            return
        self._metrics.count(response)
        self._keep(work, response)

    def _keep(self, work: Work, response: EncodeResponse | None) -> None:
        """Keep a job's answer; one that has none waits for the engine."""
        if self._abandoned:
            return
        ids = {"request_id": work.job_id, "correlation_id": work.request.correlation_id}
        try:
            with self._order:
                kept = self._store.finish(work, response) if response else self._store.requeue(work)
                if kept and not response:
                    self._workers.put_back(JOBS, self._task(work.job_id, alone=work.deaths > 0))
        except LatentEncoderError as error:
            logger.error("A job's answer cannot be kept yet: %s", error.message, extra=ids)
            with self._guard:
                self._unsaved.append((work, response))
            return
        if not kept:
            logger.info("Job cancelled", extra=ids)
        elif response:
            logger.info("Job done", extra=ids | {"code": response.error_code or "success"})
        if work.upload and (response or not kept):
            self._discard(work.upload)

    def _discard(self, upload: str) -> None:
        with suppress(OSError):  # on Windows it may still be open: the next start sweeps it
            (self._uploads.folder / upload).unlink()

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
            with suppress(RuntimeError):  # at the end of the service: its loop is closed
                tell()
