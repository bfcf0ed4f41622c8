"""A ComfyUI server as a subprocess: started, awaited, stopped."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import httpx

from latent_encoder.atomic_file import TemporaryFile
from latent_encoder.errors import LatentEncoderError

from .checkout import is_comfyui

HOST = "127.0.0.1"
PORT_ATTEMPTS = 5
STOP_SECONDS = 5.0
POLL_SECONDS = 0.2
TAIL_LINES = 25
FOLDERS = ("custom_nodes", "input", "output", "models", "user")  # ComfyUI 0.33 does not start without the first
# Given only to a ComfyUI that knows them. The default database is shared by every server of a checkout and locks.
OPTIONAL_ARGUMENTS = (
    ("--database-url", "sqlite:///:memory:"),
    ("--disable-auto-launch",),
    ("--disable-api-nodes",),
)
OUR_SETTINGS = ("LATENT_ENCODER_", "KAFKA_", "COMFYUI_URL")
PORT_TAKEN = ("already in use", "10048")  # every ComfyUI's words, and Windows' number
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class ComfyUIServer:
    """One ComfyUI process on a port of the loopback interface, with a base directory of its own.

    Args:
        checkout: the folder with ComfyUI's ``main.py``.
        base_directory: where its ``custom_nodes``, ``models``, ``input``, ``output``, ``temp`` and ``user`` are; what
            is missing is created.
        python: the interpreter that has ComfyUI's requirements.
        port: None takes a free one.
        arguments: added to ComfyUI's command line as they are, such as ``--cpu``.
        log_path: gets the server's output, written anew at each start; default ``<base_directory>/comfyui.log``.
        pid_path: gets the process's id at each start, for one who must end what a killed program left behind.
    """

    def __init__(
        self,
        checkout: Path,
        *,
        base_directory: Path,
        python: str | Path = sys.executable,
        port: int | None = None,
        arguments: Sequence[str] = (),
        log_path: Path | None = None,
        pid_path: Path | None = None,
    ) -> None:
        self.checkout = Path(checkout).absolute()
        self.base_directory = Path(base_directory).absolute()
        # The process starts in another folder. Not resolved: a virtual environment's Python is a link.
        self.python = str(Path(python).absolute()) if Path(python).is_file() else str(python)
        self.arguments = tuple(arguments)
        self.log_path = Path(log_path) if log_path else self.base_directory / "comfyui.log"
        self.pid_path = pid_path
        self._wanted_port = port
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The port; before ``start`` only where one was asked for."""
        if self._port is None:
            raise RuntimeError("the server has no port before it is started")
        return self._port

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the server is not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        process = self._process  # another thread may end it meanwhile
        return process is not None and process.poll() is None

    def start(self, timeout: float = 180.0) -> None:
        """Start the process and return when it answers.

        Args:
            timeout: seconds in which it must answer.

        Raises:
            LatentEncoderError: ENGINE_UNAVAILABLE, with the end of the log: no ComfyUI there, the process ended, the
                port is taken, or no answer in time.
        """
        if self.running:
            return
        if not is_comfyui(self.checkout):
            raise LatentEncoderError(
                "ENGINE_UNAVAILABLE",
                f"There is no ComfyUI in '{self.checkout}'.",
                "Set COMFYUI_PATH to the folder that holds ComfyUI's main.py, or run setup.sh.",
            )
        for name in FOLDERS:
            (self.base_directory / name).mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + timeout
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self._port = self._wanted_port or _free_port()
            self._spawn()
            try:
                self._tell_pid()
                answers = self._wait_until_it_answers(deadline)
            except BaseException:
                self.kill()  # Ctrl-C while it starts, too: nothing is left behind
                raise
            if answers:
                return
            # Between our look and ComfyUI's bind another process may have taken the port.
            if self._wanted_port or not self._port_was_taken() or attempt == PORT_ATTEMPTS:
                break
        process, self._process = self._process, None
        code = process.returncode if process else None
        raise LatentEncoderError(
            "ENGINE_UNAVAILABLE",
            f"ComfyUI ended while it started (exit code {code}). The end of its log:\n{self.log_tail()}",
            f"The whole log is {self.log_path}.",
        )

    def stop(self) -> None:
        """Ask the process to end, as Ctrl-C does; end it by force where it does not."""
        process = self._process
        if process is None:
            return
        # A program that a shell started in the background ignores SIGINT, and so do its children.
        deaf = sys.platform == "win32" or signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        polite = [signal.SIGTERM] if deaf else [signal.SIGINT, signal.SIGTERM]
        for request in polite:
            if process.poll() is None:
                process.send_signal(request)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the process, and what it started, at once (SIGKILL)."""
        process = self._process
        if process is None:
            return
        if sys.platform == "win32":
            process.kill()
        else:
            # Its session is its own, so this reaches its children and nobody else.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if self._process is process:  # another thread may have started the next one
            self._process = None

    def log_tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines of the log without their colours; empty where there is none."""
        try:
            text = self.log_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(COLOURS.sub("", text).splitlines()[-lines:])

    def __enter__(self) -> ComfyUIServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def command(self) -> list[str]:
        """The command line that ``start`` runs."""
        known = (self.checkout / "comfy" / "cli_args.py").read_text(encoding="utf-8")
        optional = [word for words in OPTIONAL_ARGUMENTS if f'"{words[0]}"' in known for word in words]
        fixed = ["--listen", HOST, "--port", str(self.port), "--base-directory", str(self.base_directory)]
        return [self.python, "main.py", *fixed, *optional, *self.arguments]

    def _spawn(self) -> None:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        log: IO[bytes]
        with self.log_path.open("wb") as log:
            try:
                self._process = subprocess.Popen(
                    self.command(),
                    cwd=self.checkout,
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                reason = f"'{self.python}' cannot be started: {error.strerror}."
                raise LatentEncoderError("ENGINE_UNAVAILABLE", reason, "Run setup.sh.") from error

    def _tell_pid(self) -> None:
        if self.pid_path is not None:
            with TemporaryFile(self.pid_path.parent) as file:  # no reader finds it empty, not even after a kill
                file.write(str(self.pid).encode())
                file.place_over(self.pid_path)

    def _wait_until_it_answers(self, deadline: float) -> bool:
        """True when it answers, False when the process has ended."""
        while self.running:
            if self._answers():
                return True
            if time.monotonic() > deadline:
                raise LatentEncoderError(
                    "ENGINE_UNAVAILABLE",
                    f"ComfyUI did not answer in time. The end of its log:\n{self.log_tail()}",
                    f"The whole log is {self.log_path}.",
                )
            time.sleep(POLL_SECONDS)
        return False

    def _answers(self) -> bool:
        try:
            # No proxy from the environment: it is this machine.
            response = httpx.get(f"{self.url}/system_stats", timeout=5.0, trust_env=False)
            words = response.json()["system"]["argv"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return False
        # Another ComfyUI may have got this port, and answer while ours still loads.
        return str(self.base_directory) in words

    def _port_was_taken(self) -> bool:
        tail = self.log_tail().lower()
        return any(words in tail for words in PORT_TAKEN)


def _environment() -> dict[str, str]:
    """Ours without what may hold a secret and is no business of ComfyUI's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OUR_SETTINGS)}
    return kept | {"PYTHONUNBUFFERED": "1"}  # else a crash takes the log's end with it


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
