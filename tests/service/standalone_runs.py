"""Runs ``python main.py --mode standalone`` as a user does, on the embedded engine and the demo VAE."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latent_encoder.service.config import NAMES

ROOT = Path(__file__).parents[2]
MAIN = ROOT / "main.py"
VAE = "demo_vae.safetensors"
SECONDS = 120

Answer = dict[str, Any]


@dataclass(frozen=True)
class Done:
    """A run that ended: its exit code, the answers on stdout, and what it said on stderr."""

    code: int
    answers: list[Answer]
    said: str

    @property
    def names(self) -> list[str]:
        """The answers' pictures."""
        return [answer["metadata"]["image_name"] for answer in self.answers]


@dataclass
class CommandLine:
    """A working directory from which runs are started, with the demo VAE in ``models``; latents go to ``output``.

    ``environment`` is what they are given besides this process's, from which every setting is taken out.
    """

    here: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        models = self.here / "models" / "vae"
        models.mkdir(parents=True)
        shutil.copy(ROOT / "assets" / VAE, models)
        self.environment = {
            "LATENT_ENCODER_ENGINE": "embedded",
            "MODEL_DIR": str(self.here / "models"),
            "OUTPUT_DIR": str(self.here / "output"),
            "VAE_MODEL_NAME": VAE,
            "MEGAPIXELS": "0.02",
            "OMP_NUM_THREADS": "1",
        } | self.environment

    def start(self, *words: str, inside: str = ".", **environment: str) -> subprocess.Popen[bytes]:
        """Begin a run, from the subfolder ``inside``."""
        mine = {name: value for name, value in os.environ.items() if name not in NAMES.values()}
        return subprocess.Popen(
            [sys.executable, str(MAIN), "--mode", "standalone", *words],
            cwd=self.here / inside,
            env=mine | self.environment | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # else `communicate` would miss what a buffer holds
            start_new_session=True,
        )

    def run(self, *words: str, stdin: bytes = b"", inside: str = ".", **environment: str) -> Done:
        """A run from start to end."""
        return finish(self.start(*words, inside=inside, **environment), stdin)


def finish(process: subprocess.Popen[bytes], stdin: bytes | None = None, *, before: bytes = b"") -> Done:
    """Wait for the end. Every line of stdout must be an answer; ``before`` are those that were read already."""
    try:
        out, err = process.communicate(stdin, timeout=SECONDS)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return Done(process.returncode, [json.loads(line) for line in (before + out).splitlines()], err.decode())


def first_answers(process: subprocess.Popen[bytes], count: int) -> bytes:
    """Wait for so many answers; returns their lines."""
    assert process.stdout
    return b"".join(process.stdout.readline() for _ in range(count))


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C, as a terminal sends it."""
    os.killpg(process.pid, signal.SIGINT)
