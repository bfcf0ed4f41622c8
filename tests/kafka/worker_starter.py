"""Starts worker processes fast: a process that has imported torch and diffusers forks itself for each of them.

    python worker_starter.py    reads one JSON object a line: {"folder", "log", "environment"}; answers the process id

The child runs ``worker_harness.main`` as a process of its own, which may be killed, frozen and waited for: it is handed
to the nearest subreaper above, which the tests are.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


class Starter:
    """The forking process, from the side of the tests."""

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "LATENT_"))},
        )

    def start(self, folder: Path, log: Path, environment: dict[str, str]) -> int:
        """The process id of a new worker."""
        assert self._process.stdin and self._process.stdout
        told = {"folder": str(folder), "log": str(log), "environment": environment}
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Import what takes long, then fork for each line."""
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

    from latent_encoder.service.engines.vae_families import import_diffusers

    import_diffusers()
    for line in sys.stdin:
        told = json.loads(line)
        receiver, sender = os.pipe()
        middle = os.fork()
        if middle == 0:
            child = os.fork()
            if child:
                os.write(sender, str(child).encode())
                os._exit(0)  # the child is the subreaper's now
            os.close(receiver)
            os.close(sender)
            run(told["folder"], told["log"], told["environment"])
        os.waitpid(middle, 0)
        os.close(sender)
        print(os.read(receiver, 32).decode(), flush=True)
        os.close(receiver)


def run(folder: str, log: str, environment: dict[str, str]) -> None:
    """Be a worker."""
    os.setsid()
    os.chdir(folder)
    out, nothing = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(environment)
    sys.argv = ["main.py", "--mode", "kafka"]
    import worker_harness

    code = 1
    try:
        code = worker_harness.main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
