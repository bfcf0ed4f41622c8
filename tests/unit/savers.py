"""Processes that save latents through the core, forked from one warm process that has torch imported.

The tests cannot fork themselves (torch's threads do not survive that), and a fresh process costs seconds. Run as a
script, this file is the warm process: one JSON command a line on its standard input, one JSON answer on its output.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Savers:
    """The tests' end: starts saving processes, kills them, waits for them."""

    def __enter__(self) -> Savers:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__]
        self._warm = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        assert self._answer() == "ready"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._warm.stdin and self._warm.stdout
        self._warm.stdin.close()
        self._warm.wait(timeout=60)
        self._warm.stdout.close()

    def start(self, folder: Path, **job: Any) -> int:
        """Fork a process that saves into ``folder``; ``job`` are the arguments of ``save_many``.

        Returns:
            its process id.
        """
        return int(self._ask({"folder": str(folder)} | job))

    def kill(self, pid: int) -> None:
        """SIGKILL, and wait until it is gone."""
        os.kill(pid, signal.SIGKILL)
        self.wait(pid)

    def wait(self, pid: int) -> int:
        """Its exit code; minus the signal's number where one has ended it."""
        return int(self._ask({"wait": pid}))

    def _ask(self, command: dict[str, Any]) -> Any:
        assert self._warm.stdin
        self._warm.stdin.write(json.dumps(command) + "\n")
        self._warm.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._warm.stdout
        return json.loads(self._warm.stdout.readline())


def save_many(
    folder: str, seed: int, stems: list[str], modes: list[str], sizes: list[int], formats: list[str], count: int = 0
) -> None:
    """Save latents with random choices of the lists, ``count`` of them or for ever; each is filled with one number,
    which its record names as ``request_id``.

    Args:
        sizes: numbers of float32 values.
    """
    import torch

    from latent_encoder.latent_file import save_latent

    chance = random.Random(seed)
    done = 0
    while not count or done < count:
        done += 1
        value = chance.randrange(1 << 20)
        samples = torch.full((1, 1, 1, chance.choice(sizes)), float(value))
        save_latent(
            {"samples": samples},
            Path(folder),
            chance.choice(stems),
            file_format=chance.choice(formats),
            if_exists=chance.choice(modes),
            record={"request_id": str(value)},
            preview=str(value).encode() if chance.random() < 0.5 else None,
        )


def _serve() -> None:
    import pydantic
    import torch

    from latent_encoder import latent_file, models

    assert pydantic and latent_file and models  # imported once, here
    torch.set_num_threads(1)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        if "wait" in command:
            _, status = os.waitpid(command["wait"], 0)
            print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
        elif pid := os.fork():
            print(json.dumps(pid), flush=True)
        else:
            _child(command)


def _child(job: dict[str, Any]) -> None:
    code = 1
    try:
        save_many(**job)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
