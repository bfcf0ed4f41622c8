"""Runs this repository's ``main.py``: a command that answers for each picture, and a service."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx


@dataclass(frozen=True)
class Answers:
    """When the answers of a command came.

    Attributes:
        moments: of each answer, in seconds from the command's start.
        end: of the command.
    """

    moments: list[float]
    end: float

    @property
    def intervals(self) -> list[float]:
        """The seconds from each answer to the next."""
        return [later - earlier for earlier, later in pairwise(self.moments)]

    @property
    def folder_seconds(self) -> float:
        """What all the pictures take at the pace from the first answer to the last: starting is no part of it."""
        return (self.moments[-1] - self.moments[0]) * len(self.moments) / (len(self.moments) - 1)


def run(repository: Path, folder: Path, *words: str, settings: Mapping[str, str]) -> Answers:
    """Run ``main.py`` with these words, in ``folder``, to its end.

    Raises:
        RuntimeError: an answer is none of success, or there is none.
    """
    with (folder / "command.log").open("w+", encoding="utf-8") as log:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, str(repository / "main.py"), *words],
            cwd=folder,
            env={**os.environ, "LATENT_ENCODER_STATE_DIR": str(folder / "state"), **settings},
            stdout=subprocess.PIPE,
            stderr=log,
        )
        assert process.stdout
        came = [(line, time.perf_counter() - begin) for line in process.stdout]
        process.wait()
        end = time.perf_counter() - begin
        log.seek(0)
        if not came or any(json.loads(line)["status"] != "success" for line, _ in came):
            raise RuntimeError(f"{words} answered {[line for line, _ in came]}:\n{log.read()[-3000:]}")
    return Answers([moment for _, moment in came], end)


@contextmanager
def rest(
    repository: Path, folder: Path, settings: Mapping[str, str], program: Sequence[str] | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A service process with the HTTP door, in ``folder``: its address, and the process.

    Args:
        program: Python's arguments that start it in place of ``main.py``; its stdin and stdout are pipes then.
    """
    own = {"REST_PORT": "0", "OUTPUT_DIR": str(folder / "rest"), "LATENT_ENCODER_STATE_DIR": str(folder / "rest-state")}
    log = folder / "rest.log"
    pipe = subprocess.PIPE if program else None
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *(program or (str(repository / "main.py"), "--mode", "rest"))],
            cwd=folder,
            env={**os.environ, **settings, **own},
            stdin=pipe,
            stdout=pipe or file,
            stderr=file,
        )
    try:
        while not (found := re.search(r"Listening on (http://\S+)", log.read_text(encoding="utf-8"))):
            if process.poll() is not None:
                raise RuntimeError(f"the service ended:\n{log.read_text(encoding='utf-8')}")
            time.sleep(0.1)
        while httpx.get(f"{found[1]}/health/ready").status_code != httpx.codes.OK:
            time.sleep(0.1)
        yield found[1], process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
