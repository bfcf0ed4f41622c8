"""The embedded engine called directly, in a process that does nothing else.

As a module it is that process: it reads the paths of pictures, a line each, and answers with the seconds of the call.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from latent_encoder.images import check_image
from latent_encoder.service.engines.base import Call, EncodeJob, Picture
from latent_encoder.service.engines.embedded import EmbeddedEngine


@contextmanager
def bare_engine(repository: Path, models: Path, vae: str, megapixels: float) -> Iterator[Callable[[Path], float]]:
    """What encodes a picture, by its absolute path, and tells the seconds of the call alone; no file is written.

    Args:
        models: a ComfyUI ``models`` folder.
    """
    command = [sys.executable, "-m", "benchmarks.bare_engine", str(models), vae, str(megapixels)]
    with subprocess.Popen(command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def encode(picture: Path) -> float:
            with suppress(BrokenPipeError):
                print(picture, file=asked, flush=True)
            answer = answers.readline()
            if not answer:
                raise RuntimeError("the bare engine's process ended")
            return float(answer)

        yield encode


def _answer(models: str, vae: str, megapixels: str) -> None:
    with closing(EmbeddedEngine(Path(models))) as engine:
        engine.start()
        for line in sys.stdin:
            data = Path(line.removesuffix("\n")).read_bytes()
            picture = Picture(data, "a.png", "0" * 64, check_image(data))
            job = EncodeJob(picture, None, vae, "lanczos", float(megapixels), 1, "safetensors")
            begin = time.perf_counter()
            engine.encode(job, Call())
            print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    _answer(*sys.argv[1:])
