"""The process: what must be free before it starts, how the engine and the HTTP server come up, and how both go down."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.engines import make_engine
from latent_encoder.service.exit_codes import DONE, FAILED, WRONG_USE
from latent_encoder.service.listener import BACKLOG, CannotListen, http_server, listen, url_of
from latent_encoder.service.readiness import STOPPING, unavailable
from latent_encoder.service.signals import Signals, handled_signals
from latent_encoder.service.state_lock import StateDirInUse, hold_state_dir
from latent_encoder.service.workers import ENCODE

from .app import create_app
from .protocol import Protocol
from .service import Service

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings

DRAIN_SECONDS = 20.0
"""How long requests that wait are still encoded after SIGTERM; those that run are always finished."""

CLOSE_SECONDS = 5
MAX_CONNECTIONS = 16_384
MOST_FILES = 65_536
KEEP_ALIVE_SECONDS = 30

SPINS = "20000"
"""How often a helper thread of torch's on a CPU looks for more work before it sleeps: for 0.6 ms. GNU's OpenMP has
300,000, and so keeps every core busy for 8 ms after a picture, while its file is to be written and its caller answered.
Runs of many pictures have the next one to encode by then, so the other doors leave it."""

logger = logging.getLogger(__name__)


class CannotStart(Exception):
    """Why the service cannot start, in words."""


def serve(settings: Settings) -> int:
    """Serve until a signal comes, the engine cannot be started, or the HTTP server ends by itself; returns the exit
    code (see ``run``)."""
    _allow_many_files()
    try:
        with hold_state_dir(settings.state_dir), listen(settings) as listener:
            engine = make_engine(settings)
            if engine.name == "embedded" and "OMP_WAIT_POLICY" not in os.environ:
                os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read once, when the engine's start imports torch
            try:
                service = Service(engine, settings)
            except (OSError, sqlite3.Error, LatentEncoderError) as error:
                raise CannotStart(f"What lies in '{settings.state_dir}' cannot be used: {error}.") from error
            return _serve(service, listener)
    except (CannotStart, CannotListen, StateDirInUse, LatentEncoderError) as error:
        logger.error("%s", error)
        return WRONG_USE
    except OSError as error:
        logger.error("STATE_DIR '%s' cannot be used: %s", settings.state_dir, error.strerror or error)
        return WRONG_USE


def _serve(service: Service, listener: socket.socket) -> int:
    """Serve on the socket while the engine starts, works and, after a signal, finishes."""
    server = http_server(
        create_app(service),
        http=Protocol,
        proxy_headers=False,
        backlog=BACKLOG,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )
    # Not in the main thread: there uvicorn would take the signals, and close the door before the work is done.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http")
    with handled_signals() as signals:
        thread.start()
        logger.info("Listening on %s", url_of(listener))
        try:
            if _start_engine(service, signals):
                service.start()
                while thread.is_alive() and not signals.came.wait(1.0):
                    pass
                _drain(service, signals)
        finally:
            service.refuse()
            service.answer_all(unavailable(STOPPING if signals.count else "The engine could not be started."))
            server.should_exit = True
            thread.join()
            service.close()
            service.engine.close()
    code = DONE if signals.count else FAILED
    logger.info("Stopped")
    if not service.workers.wait_idle(CLOSE_SECONDS):
        logging.shutdown()
        os._exit(code)  # a thread that is still in torch would abort the interpreter's own end
    return code


def _start_engine(service: Service, signals: Signals) -> bool:
    """Start the engine; False where it cannot be, or a signal came first.

    A ComfyUI server that COMFYUI_URL names may come later than we do: the engine tries it again, and ``/health/ready``
    says when it is there.
    """
    engine = service.engine
    started: list[bool] = []

    def start() -> None:
        try:
            engine.start()
            started.append(True)
            logger.info("The engine '%s' has started", engine.name)
        except LatentEncoderError as error:
            if signals.count:
                return  # what was asked for
            if service.settings.comfyui_url and engine.name == "comfyui":
                started.append(True)
                logger.warning("No ComfyUI server is there yet: %s", error.message)
            else:
                logger.error("The engine cannot be started: %s", error)
        except Exception:
            logger.exception("The engine cannot be started")

    thread = threading.Thread(target=start, name="engine-start", daemon=True)
    thread.start()
    while thread.is_alive() and not signals.count:
        thread.join(0.2)
    return bool(started)


def _drain(service: Service, signals: Signals) -> None:
    """Finish what runs, encode or answer what waits, and leave the jobs for the next start; a second signal hurries."""
    logger.info("Stopping: %d run, %d wait", service.workers.running, service.workers.waiting(ENCODE))
    service.refuse()
    waiting_ends = time.monotonic() + DRAIN_SECONDS
    while not service.workers.wait_idle(0.2, ENCODE):
        if signals.count > 1:
            service.interrupt()
            service.jobs.abandon()
            service.workers.wait_idle(CLOSE_SECONDS, ENCODE)
            return
        if time.monotonic() > waiting_ends:
            service.answer_waiting(LatentEncoderError("INTERRUPTED", STOPPING))


def _allow_many_files() -> None:
    """Each connection is a file to the system, which allows few of them by default."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
