"""Runs ``python main.py --mode rest`` as a user does, on the embedded engine and the demo VAE."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from pictures import png

from latent_encoder.latent_file import encode_latent
from latent_encoder.latent_format import FILE_FORMATS
from latent_encoder.service.config import NAMES

ROOT = Path(__file__).parents[3]
MAIN = ROOT / "main.py"
HELD = Path(__file__).with_name("held_service.py")
VAE = "demo_vae.safetensors"
START_SECONDS = 60.0
RECIPE = {"vae_model_name": VAE, "megapixels": 0.02}
PICTURE = png(64, 64)


@cache
def prepared() -> dict[str, bytes]:
    """The files that ``HELD`` answers with: a latent of a 64 x 64 picture in each format, and its record."""
    import torch

    files = {}
    for file_format in FILE_FORMATS:
        latent = {"samples": torch.zeros(1, 16, 1, 8, 8)}
        content, record = encode_latent(latent, file_format=file_format, record={"engine": "embedded"})
        files |= {f"prepared.{file_format}": content, f"prepared.{file_format}.json": json.dumps(record).encode()}
    return files


class RestService:
    """A service process, its folders and a client.

    Args:
        here: its working directory; ``pictures/a.png`` is made in it.
        script: ``MAIN``, or ``HELD`` for an engine that the test holds back and takes away.
    """

    def __init__(self, here: Path, *words: str, script: Path = MAIN, **environment: str) -> None:
        self.here, self.words, self.script = here, words, script
        (here / "models" / "vae").mkdir(parents=True, exist_ok=True)
        (here / "pictures").mkdir(exist_ok=True)
        shutil.copy(ROOT / "assets" / VAE, here / "models" / "vae")
        (here / "pictures" / "a.png").write_bytes(PICTURE)
        if script == HELD:
            for name, content in prepared().items():
                (here / name).write_bytes(content)
        defaults = {
            "LATENT_ENCODER_ENGINE": "embedded",
            "LATENT_ENCODER_LOG_FORMAT": "json",
            "VAE_MODEL_NAME": VAE,
            "MEGAPIXELS": "0.02",
            "REST_PORT": "0",
            "OMP_NUM_THREADS": "1",
        }
        mine = {name: value for name, value in os.environ.items() if name not in NAMES.values()}
        self.environment = mine | defaults | environment
        self.starts = 0

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process and wait for nothing."""
        self.starts += 1
        self.log_path = self.here / f"log-{self.starts}.jsonl"
        with self.log_path.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, str(self.script), "--mode", "rest", *self.words],
                cwd=self.here,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start(self, *, ready: bool = True) -> RestService:
        """Start the process; returns when it is ready, or listens."""
        self.process = self.spawn()
        wait_for(lambda: self._find_url() or self.process.poll() is not None, START_SECONDS)
        assert self.process.poll() is None, self.log_path.read_text()
        self.url = self._find_url()
        token = self.environment.get("LATENT_ENCODER_API_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=60.0)
        if ready:
            wait_for(self.is_ready, START_SECONDS)
        return self

    def is_ready(self) -> bool:
        return self.client.get("/health/ready").status_code == 200

    def _find_url(self) -> str:
        found = re.search(r"Listening on (http://[^\"\s]+)", self.log_path.read_text())
        return found[1] if found else ""

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.url)
        return url.host, url.port or 0

    def log(self) -> list[dict[str, Any]]:
        """The lines of the log so far; other libraries' plain ones are left out."""
        return [json.loads(line) for line in self.log_path.read_text().splitlines() if line.startswith("{")]

    def encode(self, **fields: Any) -> httpx.Response:
        """POST /v1/encode with JSON; the picture is ``pictures/a.png`` unless another one is named."""
        return self.client.post("/v1/encode", json={"image_path": "pictures/a.png"} | fields)

    def upload(
        self, data: bytes = PICTURE, name: str = "up.png", path: str = "/v1/encode", **form: Any
    ) -> httpx.Response:
        """POST a form with a picture."""
        return self.client.post(path, files={"image": (name, data)}, data=form)

    def submit(self, **fields: Any) -> httpx.Response:
        """POST /v1/jobs with JSON."""
        return self.client.post("/v1/jobs", json={"image_path": "pictures/a.png"} | fields)

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as it stands."""
        return self.client.get(f"/v1/jobs/{job_id}").raise_for_status().json()

    def ended(self, job_id: str, seconds: float = 60.0) -> dict[str, Any]:
        """The job, once it has ended."""
        wait_for(lambda: self.job(job_id)["status"] in ("done", "cancelled"), seconds)
        return self.job(job_id)

    def metric(self, name: str) -> float:
        """One number of /metrics, by its name with labels."""
        lines = self.client.get("/metrics").text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.rpartition(" ")[0] == name), 0.0)

    def uploads(self) -> list[Path]:
        """The uploads that lie on the disk."""
        return list((self.here / ".latent_encoder" / "uploads").iterdir())

    def flag(self, name: str, there: bool = True) -> None:
        """Lay down or take away a file that tells the engine what to do (``HELD``)."""
        path = self.here / name
        if there:
            path.touch()
        else:
            path.unlink(missing_ok=True)

    def hold(self, held: bool = True) -> None:
        """Let every encode wait, or go on (``HELD``)."""
        self.flag("hold", held)

    def away(self, away: bool = True) -> None:
        """Take the engine away, or give it back (``HELD``)."""
        self.flag("away", away)

    def encodes(self) -> list[str]:
        """The request ids that the engine was asked for, in order (``HELD``)."""
        path = self.here / "encodes"
        return path.read_text().split() if path.exists() else []

    def stop(self, seconds: float = 60.0) -> int:
        """SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.client.close()
        return self.process.wait(seconds)

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()
        self.process.wait()
        self.client.close()


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until ``condition()`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def error_of(response: httpx.Response) -> tuple[int, str]:
    """The status and the error code of an answer, whose body must be an EncodeResponse."""
    body = response.json()
    assert body["status"] == "error" and body["error_message"] and body["error_hint"], body
    return response.status_code, body["error_code"]
