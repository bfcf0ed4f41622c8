"""Runs one of the scripts in ``inside/`` as a process in which ComfyUI's own modules are loaded.

The process has ComfyUI's folder for its working directory and on its path, never this repository: its ``nodes`` would
hide ComfyUI's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks import machine

INSIDE = Path(__file__).resolve().parent / "inside"


class HostedProcess:
    """A script that answers one JSON object with one, line by line, and waits idle in between.

    Args:
        script: its name in ``inside/``.
        comfyui: the folder with ComfyUI's ``main.py``.
        base_directory: ComfyUI's ``--base-directory``, which has a ``custom_nodes``; several processes may share it.
    """

    def __init__(self, script: str, comfyui: Path, base_directory: Path) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  closed in __exit__
        self._process = subprocess.Popen(
            [sys.executable, str(INSIDE / script), *_arguments(base_directory)],
            cwd=comfyui,
            env={name: value for name, value in os.environ.items() if name not in _UNWANTED},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def call(self, **request: Any) -> Any:
        """Send a request, return the answer.

        Raises:
            RuntimeError: the process has ended, with the last lines of its log.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()
            self._log.seek(0)
            tail = "\n".join(self._log.read().splitlines()[-20:])
            raise RuntimeError(f"{self._process.args!r} ended:\n{tail}")
        return json.loads(answer)

    def __enter__(self) -> HostedProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()  # closes its stdin, at which it ends
        self._log.close()


_UNWANTED = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}


def _arguments(base_directory: Path) -> list[str]:
    return [
        *machine.COMFYUI_ARGUMENTS,
        "--base-directory",
        str(base_directory),
        "--database-url",
        "sqlite:///:memory:",
        "--disable-api-nodes",
    ]
