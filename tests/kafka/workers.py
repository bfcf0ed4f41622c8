"""Real worker processes: ``python main.py --mode kafka`` with the embedded engine and ``pixel_space``.

Their pictures lie in ``<folder>/pictures``, their latent files go to ``<folder>/latents``; both are shared by the
workers of one folder, as by those of one group.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from kafka.topics import Topics
from kafka.worker_starter import Starter
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
HARNESS = Path(__file__).with_name("worker_harness.py")
START_TIMEOUT = 90.0


class WorkerProcess:
    """One worker. ``start`` begins it, ``wait_ready`` waits until it has joined its group.

    Args:
        folder: shared by the workers of a group.
        name: WORKER_ID.
        harness: what ``worker_harness.py`` is told, by its variables' names in lower case.
        starter: forks the process, which saves the imports; else ``main.py`` is run, as users do.
        settings: by their environment names, over those of ``base_settings``.
    """

    def __init__(
        self,
        bootstrap: str,
        topics: Topics,
        folder: Path,
        *,
        name: str = "worker",
        harness: dict[str, Any] | None = None,
        starter: Starter | None = None,
        **settings: str,
    ) -> None:
        self.name, self.folder, self._harness, self._starter = name, folder, harness, starter
        self.log_path = folder / f"{name}.log"
        self._settings = base_settings(bootstrap, topics, folder) | {"LATENT_ENCODER_WORKER_ID": name} | settings
        self.pid = 0
        self.exit_code: int | None = None
        self._log_from = 0

    def start(self) -> WorkerProcess:
        """Begin a process, also after an earlier one has ended."""
        for name in ("pictures", "latents"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        environment = {"OMP_NUM_THREADS": "1"} | {name: value for name, value in self._settings.items() if value}
        environment |= {f"HARNESS_{name.upper()}": str(value) for name, value in (self._harness or {}).items()}
        self._log_from = self.log_path.stat().st_size if self.log_path.exists() else 0
        self.exit_code = None
        if self._starter:
            self.pid = self._starter.start(self.folder, self.log_path, environment)
            return self
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "LATENT_"))}
        program = ROOT / "main.py" if self._harness is None else HARNESS
        with self.log_path.open("ab") as log:
            self.pid = subprocess.Popen(
                [sys.executable, str(program), "--mode", "kafka"],
                cwd=self.folder,
                env=inherited | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            ).pid
        return self

    def wait_ready(self, timeout: float = START_TIMEOUT) -> WorkerProcess:
        """Wait until its health endpoint says that it is ready."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not self.is_running:
                raise RuntimeError(f"the worker has ended: {self.log()[-3000:]}")
            if self.is_ready:
                return self
            time.sleep(0.1)
        raise TimeoutError(f"the worker is not ready after {timeout:g} s: {self.log()[-3000:]}")

    @property
    def is_ready(self) -> bool:
        try:
            return self.health("/health/ready").status_code == 200
        except (httpx.HTTPError, LookupError):
            return False

    def health(self, path: str) -> httpx.Response:
        """One of its endpoints; LookupError before it listens."""
        found = re.findall(r"Health and metrics on (http://\S+)", self.log(this_run=True))
        if not found:
            raise LookupError("it does not listen yet")
        return httpx.get(found[-1] + path, timeout=10)

    def metric(self, name: str) -> float:
        """The sum of a metric's values, over its labels."""
        values = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", self.health("/metrics").text, re.MULTILINE)
        return sum(map(float, values))

    def log(self, *, this_run: bool = False) -> str:
        """What it has logged, over all its lives or in this one."""
        if not self.log_path.exists():
            return ""
        return self.log_path.read_bytes()[self._log_from if this_run else 0 :].decode("utf-8", "replace")

    def wait_log(self, text: str, timeout: float = 30.0) -> None:
        """Wait until this life's log holds a text."""
        deadline = time.monotonic() + timeout
        while text not in self.log(this_run=True):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {text!r} in the log: {self.log()[-3000:]}")
            time.sleep(0.05)

    def wait_running(self, timeout: float = 30.0) -> None:
        """Wait until it has something to encode."""
        deadline = time.monotonic() + timeout
        while not self.metric("latent_encoder_kafka_in_flight"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing runs: {self.log()[-3000:]}")
            time.sleep(0.1)

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to encode; False where it cannot be asked."""
        try:
            return self.metric("latent_encoder_kafka_in_flight") == 0
        except (httpx.HTTPError, LookupError):
            return False

    @property
    def is_running(self) -> bool:
        if self.pid and self.exit_code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.exit_code = os.waitstatus_to_exitcode(status) if ended else None
        return bool(self.pid) and self.exit_code is None

    @property
    def is_frozen(self) -> bool:
        """Whether SIGSTOP has stopped it."""
        return self.is_running and "State:\tT" in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")

    def catches(self, number: signal.Signals) -> bool:
        """Whether it handles that signal by now."""
        caught = re.search(r"^SigCgt:\t(\w+)", Path(f"/proc/{self.pid}/status").read_text(encoding="ascii"), re.M)
        return bool(caught) and bool(int(caught[1], 16) & 1 << number - 1)

    def signal(self, number: signal.Signals) -> None:
        if self.is_running:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """``kill -9``, also of one that is frozen or has ended."""
        self.signal(signal.SIGKILL)
        self.wait()

    def terminate(self, timeout: float = 60.0) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = 60.0) -> int:
        """Wait for its end; the exit code, -9 for one that was killed."""
        deadline = time.monotonic() + timeout
        while self.is_running:
            if time.monotonic() > deadline:
                self.signal(signal.SIGUSR1)
                time.sleep(0.5)
                raise TimeoutError(f"the worker does not end: {self.log()[-6000:]}")
            time.sleep(0.02)
        return self.exit_code if self.exit_code is not None else 0

    def __enter__(self) -> WorkerProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def base_settings(bootstrap: str, topics: Topics, folder: Path) -> dict[str, str]:
    """The settings of a worker of the tests: small pictures, short sessions, a state folder of this group's."""
    config = folder / "client.properties"
    if not config.exists():
        folder.mkdir(parents=True, exist_ok=True)
        config.write_text("session.timeout.ms=3000\nreconnect.backoff.max.ms=500\n", encoding="utf-8")
    return {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
        "KAFKA_REQUEST_TOPIC": topics.request,
        "KAFKA_RESPONSE_TOPIC": topics.response,
        "KAFKA_DLQ_TOPIC": topics.dlq,
        "KAFKA_CONSUMER_GROUP": f"{topics.request}-group",
        "KAFKA_CONFIG_FILE": str(config),
        "LATENT_ENCODER_ENGINE": "embedded",
        "LATENT_ENCODER_INPUT_ROOTS": str(folder / "pictures"),
        "LATENT_ENCODER_STATE_DIR": str(folder / "state"),
        "OUTPUT_DIR": str(folder / "latents"),
        "VAE_MODEL_NAME": "pixel_space",
        "MEGAPIXELS": "0.01",
        "REST_PORT": "0",
    }


def make_picture(folder: Path, name: str, color: tuple[int, int, int] = (200, 80, 20)) -> str:
    """A small PNG in ``<folder>/pictures``; its absolute path."""
    path = folder / "pictures" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), color).save(path)
    return str(path)
