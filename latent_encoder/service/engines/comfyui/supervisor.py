"""The ComfyUI that the service starts: one process, started again whenever it is wanted and not there."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from latent_encoder.atomic_file import sweep
from latent_encoder.checksum import file_sha256
from latent_encoder.errors import LatentEncoderError, from_os_error
from latent_encoder.paths import check_relative

from .launch import our_server
from .server import ComfyUIServer
from .slots import lock_lowest

START_SECONDS = 300.0
STOP_POLL_SECONDS = 0.2
PID_FILE = "comfyui.pid"

logger = logging.getLogger(__name__)


class Supervisor:
    """Starts, ends and restarts one ComfyUI. Its methods may be called from several threads.

    Args:
        comfyui: the checkout to run.
        state_dir: holds the base directories, ``comfyui-<number>``: each service that runs takes one of its own.
        models: more folders of models than the checkout's.
    """

    def __init__(self, comfyui: Path, state_dir: Path, models: Sequence[Path] = ()) -> None:
        self._comfyui, self._state_dir = comfyui, state_dir
        self._models = [path for path in models if path.is_dir()]
        self._server: ComfyUIServer | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._starting = False

    @property
    def running(self) -> bool:
        server = self._server
        return server is not None and server.running

    @property
    def url(self) -> str:
        """Where it answers; another port after each start."""
        server = self._server
        if server is None:
            raise RuntimeError("the server is not started")
        return server.url

    @property
    def log_path(self) -> Path | None:
        server = self._server
        return server.log_path if server else None

    def start(self) -> None:
        """Start the process where it does not run; returns when it answers.

        Raises:
            LatentEncoderError: ENGINE_UNAVAILABLE, with the end of its log; NODES_MISSING; DISK_FULL or
                OUTPUT_DIR_NOT_WRITABLE for the state folder.
        """
        with self._lock:
            self._check_open()
            server = self._server
        if server is None:
            server = self._prepare()  # takes seconds, and `close` does not wait for it
            with self._lock:
                if self._closed:
                    self._base_lock.release()
                self._check_open()
                self._server = server
        if server.running:
            return
        logger.info("Starting ComfyUI (%s); its log is %s", self._comfyui, server.log_path)
        self._starting = True
        try:
            server.start(START_SECONDS)
        finally:
            self._starting = False
        logger.info("ComfyUI answers at %s (process %d)", server.url, server.pid)

    def kill(self) -> None:
        """End it at once; ``start`` starts it again."""
        server = self._server  # another thread may close it meanwhile
        if server is not None:
            server.kill()

    def close(self, thread: threading.Thread) -> None:
        """End it for good, and wait for the thread that may be starting it."""
        with self._lock:
            self._closed = True
            server, self._server = self._server, None
        if server is None:
            return  # a thread that is still preparing it will see that, and start nothing
        while thread.is_alive():
            # One that has not answered yet has nothing to save, and may not listen to anything gentler.
            server.kill() if self._starting else server.stop()
            thread.join(STOP_POLL_SECONDS)
        server.stop()
        (server.base_directory / PID_FILE).unlink(missing_ok=True)
        self._base_lock.release()

    def vae_sha256(self, name: str) -> str | None:
        """The sha256 of the VAE's file; None where there is none in the folders we gave it, or two
        that differ."""
        try:
            check_relative(name, "vae_model_name")
            folders = [self._comfyui / "models", *self._models]
            found = {file_sha256(path) for folder in folders if (path := folder / "vae" / name).is_file()}
        except (LatentEncoderError, OSError):
            return None
        return found.pop() if len(found) == 1 else None

    def _check_open(self) -> None:
        if self._closed:
            raise LatentEncoderError("ENGINE_UNAVAILABLE", "The engine is closed.")

    def _prepare(self) -> ComfyUIServer:
        self._base_lock, number = lock_lowest(self._state_dir, "comfyui-")
        base = self._state_dir / f"comfyui-{number}"
        try:
            end_leftover(base)
            server = our_server(self._comfyui, base, models=self._models)
        except OSError as error:
            self._base_lock.release()
            raise from_os_error(error, base) from error
        except BaseException:
            self._base_lock.release()
            raise
        server.pid_path = base / PID_FILE
        return server


def end_leftover(base: Path) -> None:
    """End the ComfyUI that a service left behind when it was killed; only a process that runs on this very folder."""
    try:
        sweep(base)  # what a kill has left of writing that file
        pid = int((base / PID_FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return
    if str(base.absolute()) in _command_of(pid):
        logger.warning("Ending the ComfyUI (process %d) that an earlier service left behind.", pid)
        with contextlib.suppress(OSError):
            # It leads a session of its own, so the group is it and its children.
            os.kill(pid, signal.SIGTERM) if sys.platform == "win32" else os.killpg(pid, signal.SIGKILL)
    (base / PID_FILE).unlink(missing_ok=True)


def _command_of(pid: int) -> str:
    """A process's command line; empty where there is no such process."""
    if sys.platform == "win32":
        question = f"(Get-CimInstance Win32_Process -Filter 'ProcessId={pid}').CommandLine"
        words = ["powershell", "-NoProfile", "-Command", question]
    else:
        with contextlib.suppress(OSError):  # Linux; slim containers have no ps
            return Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        words = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
