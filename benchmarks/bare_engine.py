"""The embedded engine called directly: in a process that does nothing else, or in a service's while it does nothing.

As a module it is either process: it reads the paths of pictures, a line each, and answers with the seconds of the call.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from latent_encoder.images import check_image
from latent_encoder.service.engines.base import Call, EncodeJob, Engine, Picture
from latent_encoder.service.engines.embedded import EmbeddedEngine

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings


@contextmanager
def bare_engine(repository: Path, models: Path, vae: str, megapixels: float) -> Iterator[Callable[[Path], float]]:
    """What encodes a picture, by its absolute path, and tells the seconds of the call alone; no file is written.

    Args:
        models: a ComfyUI ``models`` folder.
    """
    command = [sys.executable, "-m", "benchmarks.bare_engine", vae, str(megapixels), str(models)]
    with subprocess.Popen(command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield calls_in(process)


def in_service(vae: str, megapixels: float) -> list[str]:
    """Python's arguments that start a service with the HTTP door, and whose engine ``calls_in`` reaches, too."""
    return ["-m", "benchmarks.bare_engine", vae, str(megapixels)]


def calls_in(process: subprocess.Popen[bytes]) -> Callable[[Path], float]:
    """What encodes a picture with the engine in that process, and tells the seconds of the call."""
    asked, answers = process.stdin, process.stdout
    assert asked is not None and answers is not None

    def encode(picture: Path) -> float:
        asked.write(f"{picture}\n".encode())
        asked.flush()
        answer = answers.readline()
        try:
            return float(answer)
        except ValueError:
            raise RuntimeError(f"the bare engine answered {answer!r}") from None

    return encode


def _alone(vae: str, megapixels: float, models: Path) -> None:
    with closing(EmbeddedEngine(models)) as engine:
        engine.start()
        _answer(engine, vae, megapixels)


def _serve(vae: str, megapixels: float) -> int:
    from latent_encoder.service.__main__ import main
    from latent_encoder.service.doors.rest import server

    make_engine = server.make_engine

    def make_and_answer(settings: Settings) -> Engine:
        engine = make_engine(settings)
        threading.Thread(target=_answer, args=(engine, vae, megapixels), daemon=True).start()
        return engine

    server.make_engine = make_and_answer
    return main(["--mode", "rest"])


def _answer(engine: Engine, vae: str, megapixels: float) -> None:
    for line in sys.stdin:
        try:
            answer = str(_seconds(engine, vae, megapixels, Path(line.removesuffix("\n"))))
        except Exception as error:  # who asked waits for a line
            answer = repr(error)
        print(answer, flush=True)


def _seconds(engine: Engine, vae: str, megapixels: float, picture_file: Path) -> float:
    data = picture_file.read_bytes()
    picture = Picture(data, "a.png", "0" * 64, check_image(data))
    job = EncodeJob(picture, None, vae, "lanczos", megapixels, 1, "safetensors")
    begin = time.perf_counter()
    engine.encode(job, Call())
    return time.perf_counter() - begin


if __name__ == "__main__":
    vae, megapixels, *models = sys.argv[1:]
    sys.exit(_alone(vae, float(megapixels), Path(models[0])) if models else _serve(vae, float(megapixels)))
