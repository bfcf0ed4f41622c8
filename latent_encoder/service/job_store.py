"""Jobs that survive the process: a table in SQLite, in WAL mode, synced before a job is promised.

A job is ``queued``, ``running``, ``done`` (its response says whether it succeeded) or ``cancelled``.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from latent_encoder.errors import LatentEncoderError
from latent_encoder.latent_file import verify_latent
from latent_encoder.models import EncodeRequest, EncodeResponse, RequestId, Time

from .requests import error_response

DATABASE_NAME = "jobs.sqlite3"
MOST_DEATHS = 5
"""How often the process may die under one job before the job is given up."""

Status = Literal["queued", "running", "done", "cancelled"]

_LAYOUT = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of arrival
    job_id      TEXT NOT NULL UNIQUE,
    status      TEXT NOT NULL,
    contents    TEXT NOT NULL,                      -- what a repeated id must ask for again
    request     TEXT NOT NULL,                      -- EncodeRequest
    upload      TEXT,                               -- a file in the folder of uploads
    response    TEXT,                               -- EncodeResponse
    run         INTEGER NOT NULL DEFAULT 0,         -- how often it was started
    deaths      INTEGER NOT NULL DEFAULT 0,         -- how often the process died meanwhile
    created_at  REAL NOT NULL,
    started_at  REAL,
    finished_at REAL
);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, number);
"""
_AGAIN = (
    "status = 'queued', contents = ?, request = ?, upload = ?, response = NULL, deaths = 0, created_at = ?,"
    " started_at = NULL, finished_at = NULL"
)


class Job(BaseModel):
    """A job as its caller sees it; ``response`` is null until it has ended."""

    job_id: RequestId = Field(description="The request_id.")
    status: Status
    created_at: Time
    started_at: Time | None = None
    finished_at: Time | None = None
    response: EncodeResponse | None = None


@dataclass(frozen=True)
class Work:
    """A job that has been started: ``run`` tells this start from others of the same job.

    Attributes:
        upload: the picture's file in the folder of uploads, where it came with the request.
        deaths: how often the process died while the job ran.
    """

    job_id: str
    run: int
    request: EncodeRequest
    upload: str | None
    deaths: int


def contents_of(request: EncodeRequest, image_sha256: str | None) -> str:
    """A digest of what a request asks for, however it is named and whoever waits for it.

    Args:
        image_sha256: of an uploaded picture; None where ``image_path`` says which one it is.
    """
    names = {"vae_model_name", "upscale_method", "megapixels", "resolution_steps", "output_dir", "file_format"}
    picture = image_sha256 or request.image_path
    return hashlib.sha256(f"{picture}\n{request.model_dump_json(include=names)}".encode()).hexdigest()


class JobStore:
    """The table of jobs. Its methods may be called from every thread.

    Args:
        folder: where the database lies; one process at a time.

    Raises:
        sqlite3.DatabaseError: the file there is damaged, no database, or of a newer version.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guard = threading.Lock()
        self._database = sqlite3.connect(folder / DATABASE_NAME, isolation_level=None, check_same_thread=False)
        self._database.row_factory = sqlite3.Row
        try:
            (layout,) = self._database.execute("PRAGMA user_version").fetchone()
            if layout > _LAYOUT:
                raise sqlite3.DatabaseError("it was written by a newer version of Latent Encoder")
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")  # NORMAL may forget the last jobs in a power cut
            self._database.executescript(f"{_SCHEMA} PRAGMA user_version = {_LAYOUT};")
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Queue again what still runs, and close the database."""
        with contextlib.suppress(LatentEncoderError), self._change() as database:
            database.execute("UPDATE jobs SET status = 'queued', started_at = NULL WHERE status = 'running'")
        with self._guard:
            self._database.close()

    def add(self, request: EncodeRequest, contents: str, upload: str | None) -> tuple[Job, bool]:
        """Keep a new job; when this returns, it survives a crash of the program or the machine.

        A job of the same id and contents that waits, runs or has succeeded is the answer; one that failed, was
        cancelled or whose file is gone or damaged is queued again, with these contents.

        Returns:
            the job, and whether this call has queued it.

        Raises:
            LatentEncoderError: REQUEST_ID_CONFLICT for the id of a job with other contents that waits, runs or has
                succeeded and still has its file; DISK_FULL, OUTPUT_DIR_NOT_WRITABLE.
        """
        job_id, values = request.request_id, (contents, request.model_dump_json(), upload, time.time())
        lost = self._lost_answer(job_id)
        with self._change() as database:
            row = _find(database, job_id)
            if row is None:
                database.execute(
                    "INSERT INTO jobs (contents, request, upload, created_at, job_id, status)"
                    " VALUES (?, ?, ?, ?, ?, 'queued')",
                    (*values, job_id),
                )
            elif row["status"] in ("queued", "running") or row["response"] != lost:
                if row["contents"] != contents:
                    reason = f"There is a job '{job_id}' already, which asks for something else."
                    raise LatentEncoderError("REQUEST_ID_CONFLICT", reason)
                return _job(row), False
            else:
                database.execute(f"UPDATE jobs SET {_AGAIN} WHERE job_id = ?", (*values, job_id))
            return _job(_row(database, job_id)), True

    def _lost_answer(self, job_id: str) -> str | None:
        """The answer of a job that may be run again: it has failed, or its file is gone or damaged. Others may change
        jobs meanwhile, for a large file takes a while to read."""
        with self._change() as database:
            row = _find(database, job_id)
        if row is None or row["response"] is None:
            return None
        path = EncodeResponse.model_validate_json(row["response"]).latent_file_path
        with contextlib.suppress(LatentEncoderError):  # the next run will answer with it
            if path is not None and verify_latent(Path(path)):
                return None
        answer: str = row["response"]
        return answer

    def get(self, job_id: str) -> Job:
        """The job as it stands.

        Raises:
            LatentEncoderError: JOB_NOT_FOUND.
        """
        with self._change() as database:
            return _job(_row(database, job_id))

    def start(self, job_id: str) -> Work | None:
        """Mark a queued job as running; None where it is queued no longer."""
        with self._change() as database:
            changed = database.execute(
                "UPDATE jobs SET status = 'running', run = run + 1, started_at = ?"
                " WHERE job_id = ? AND status = 'queued'",
                (time.time(), job_id),
            )
            if not changed.rowcount:
                return None
            row = _row(database, job_id)
        request = EncodeRequest.model_validate_json(row["request"])
        return Work(job_id, row["run"], request, row["upload"], row["deaths"])

    def requeue(self, work: Work) -> bool:
        """Let a job that runs wait again; False where it was cancelled or started anew meanwhile."""
        with self._change() as database:
            changed = database.execute(
                "UPDATE jobs SET status = 'queued', started_at = NULL"
                " WHERE job_id = ? AND status = 'running' AND run = ?",
                (work.job_id, work.run),
            )
            return bool(changed.rowcount)

    def finish(self, work: Work, response: EncodeResponse) -> bool:
        """Keep the answer; False where the job was cancelled or started anew meanwhile."""
        with self._change() as database:
            changed = database.execute(
                "UPDATE jobs SET status = 'done', response = ?, upload = NULL, finished_at = ?"
                " WHERE job_id = ? AND status = 'running' AND run = ?",
                (response.model_dump_json(), time.time(), work.job_id, work.run),
            )
            return bool(changed.rowcount)

    def cancel(self, job_id: str, error: LatentEncoderError) -> tuple[Job, str | None]:
        """Mark a job that has not ended as cancelled, with this error as its answer; one that has stays as it is.

        Returns:
            the job, and its upload where that was still wanted.

        Raises:
            LatentEncoderError: JOB_NOT_FOUND.
        """
        with self._change() as database:
            row = _row(database, job_id)
            if row["status"] in ("queued", "running"):
                _end(database, row, "cancelled", error)
            return _job(_row(database, job_id)), row["upload"]

    def recover(self, error: LatentEncoderError) -> list[tuple[str, int]]:
        """Queue again what ran when the process ended.

        Args:
            error: the answer to a job under which it has died ``MOST_DEATHS`` times.

        Returns:
            the ids of the queued jobs and how often the process died while each of them ran: those that have seen the
            fewest deaths first, then in the order of their arrival. Which one of several killed it is not known, so
            those that have seen any must run one at a time.
        """
        with self._change() as database:
            database.execute("UPDATE jobs SET status = 'queued', deaths = deaths + 1 WHERE status = 'running'")
            rows = database.execute("SELECT * FROM jobs WHERE status = 'queued' ORDER BY deaths, number").fetchall()
            for row in rows:
                if row["deaths"] >= MOST_DEATHS:
                    _end(database, row, "done", error)
        return [(row["job_id"], row["deaths"]) for row in rows if row["deaths"] < MOST_DEATHS]

    def forget(self, seconds: float) -> int:
        """Delete the jobs that ended more than so many seconds ago; returns how many."""
        with self._change() as database:
            deleted = database.execute("DELETE FROM jobs WHERE finished_at < ?", (time.time() - seconds,))
            return deleted.rowcount

    def uploads(self) -> set[str]:
        """The uploads that jobs still want."""
        with self._change() as database:
            rows = database.execute("SELECT upload FROM jobs WHERE upload IS NOT NULL").fetchall()
        return {row["upload"] for row in rows}

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction, and nobody else's meanwhile."""
        with self._guard:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
                self._database.execute("COMMIT")
            except sqlite3.Error as error:
                raise self._unwritable(error) from error
            finally:
                with contextlib.suppress(sqlite3.Error):
                    if self._database.in_transaction:
                        self._database.execute("ROLLBACK")

    def _unwritable(self, error: sqlite3.Error) -> LatentEncoderError:
        full = "full" in str(error)
        code = "DISK_FULL" if full else "OUTPUT_DIR_NOT_WRITABLE"
        return LatentEncoderError(code, f"The jobs in '{self._folder.name}' cannot be written ({error}).")


def _find(database: sqlite3.Connection, job_id: str) -> sqlite3.Row | None:
    row: sqlite3.Row | None = database.execute("SELECT * FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
    return row


def _row(database: sqlite3.Connection, job_id: str) -> sqlite3.Row:
    row = _find(database, job_id)
    if row is None:
        raise LatentEncoderError("JOB_NOT_FOUND", f"There is no job '{job_id}'.")
    return row


def _end(database: sqlite3.Connection, row: sqlite3.Row, status: Status, error: LatentEncoderError) -> None:
    correlation_id = EncodeRequest.model_validate_json(row["request"]).correlation_id
    response = error_response(row["job_id"], correlation_id, error).model_dump_json()
    database.execute(
        "UPDATE jobs SET status = ?, response = ?, upload = NULL, finished_at = ? WHERE job_id = ?",
        (status, response, time.time(), row["job_id"]),
    )


def _job(row: sqlite3.Row) -> Job:
    times = {name: row[name] for name in ("created_at", "started_at", "finished_at")}
    return Job(
        job_id=row["job_id"],
        status=row["status"],
        response=EncodeResponse.model_validate_json(row["response"]) if row["response"] else None,
        **{name: moment and datetime.fromtimestamp(moment, timezone.utc) for name, moment in times.items()},
    )
