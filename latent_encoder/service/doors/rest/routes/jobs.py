"""``/v1/jobs``: promised now, encoded later, across restarts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Path, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from latent_encoder.provenance import REQUEST_ID
from latent_encoder.service.job_store import Job
from latent_encoder.service.workers import JOBS

from ..bodies import read_encode_request
from ..document import ENCODE_BODY, EVENTS, JOB_ACCEPTED, JOB_CODES, error_answers
from ..failures import as_json
from ..guard import only_query
from ..service import Service
from .encode import IdempotencyKey

JobId = Annotated[str, Path(pattern=REQUEST_ID.pattern, description="The request_id.")]
LOOK_CODES = ("INVALID_REQUEST", "UNAUTHORIZED", "JOB_NOT_FOUND", "DISK_FULL", "OUTPUT_DIR_NOT_WRITABLE")
ENDED = ("done", "cancelled")

router = APIRouter(prefix="/jobs", dependencies=[only_query()])


@router.post(
    "",
    summary="Leave a picture to be encoded",
    status_code=202,
    response_model=Job,
    responses=JOB_ACCEPTED | error_answers(*JOB_CODES, slow_body=True),
    openapi_extra=ENCODE_BODY,
)
async def submit(http: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Answers as soon as the job, and the picture that came with it, are on the disk. Takes the bodies of `/v1/encode`.

    A repeated `request_id` is answered with its job; one that failed or was cancelled, or whose file is
    gone or damaged, is queued again.
    """
    service: Service = http.app.state.service
    service.workers.check_room(JOBS)
    incoming = await read_encode_request(http, service, idempotency_key)
    job = await run_sync(service.jobs.submit, incoming.request, incoming.upload)
    return as_json(job, 202, {"Location": f"/v1/jobs/{job.job_id}"})


@router.get(
    "/{job_id}",
    summary="Look at a job",
    response_model=Job,
    responses=error_answers(*LOOK_CODES),
)
async def look(http: Request, job_id: JobId) -> Response:
    """`response` is there once `status` is `done` (it says whether the job succeeded) or `cancelled`."""
    return as_json(await run_sync(_service(http).jobs.get, job_id))


@router.delete(
    "/{job_id}",
    summary="Cancel a job",
    response_model=Job,
    responses=error_answers(*LOOK_CODES),
)
async def cancel(http: Request, job_id: JobId) -> Response:
    """A job that waits or runs is cancelled; one that has ended stays as it is."""
    return as_json(await run_sync(_service(http).jobs.cancel, job_id))


@router.get(
    "/{job_id}/events",
    summary="Follow a job",
    response_class=EventSourceResponse,
    responses=EVENTS | error_answers(*LOOK_CODES),
)
async def follow(http: Request, job_id: JobId) -> Response:
    """Server-sent events: `job` with the job whenever its status changes, `progress` with the part that is done, from 0
    to 1. The stream ends with the job."""
    service = _service(http)
    await run_sync(service.jobs.get, job_id)
    return EventSourceResponse(_events(service, job_id), sep="\n")


async def _events(service: Service, job_id: str) -> AsyncIterator[ServerSentEvent]:
    """Only the latest state is ever told: a slow reader misses steps, and nothing piles up for it."""
    changed, loop = asyncio.Event(), asyncio.get_running_loop()
    status, part = None, None
    with service.jobs.listen(job_id, lambda: loop.call_soon_threadsafe(changed.set)):
        while True:
            job = await run_sync(service.jobs.get, job_id)
            if job.status != status:
                status, part = job.status, None
                yield ServerSentEvent(job.model_dump_json(), event="job")
            done = service.jobs.part_done(job_id)
            if status == "running" and done is not None and done != part:
                part = done
                yield ServerSentEvent(json.dumps({"job_id": job_id, "progress": round(done, 4)}), event="progress")
            if status in ENDED or service.ending.is_set():
                return
            await changed.wait()
            changed.clear()


def _service(http: Request) -> Service:
    service: Service = http.app.state.service
    return service
