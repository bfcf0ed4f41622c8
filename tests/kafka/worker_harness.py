"""``main.py`` with something done to it from outside, for the tests: a wait in place of the encode, a process that
kills, freezes or blocks itself at a named point, a picture that kills whoever encodes it.

HARNESS_WAIT=0.1        each encode also waits so many seconds, one at a time; its torch is not even imported
HARNESS_POISON=poison   a picture with this in its name kills the process (SIGKILL)
HARNESS_RAISE=trap      a picture with this in its name raises what no engine should
HARNESS_AT=before-begin something happens before or after one of: place, begin, produce, flush, send_offsets, commit
HARNESS_DO=kill         that is: kill (SIGKILL), freeze (SIGSTOP), or a number: the thread sleeps for so many seconds
HARNESS_COUNT=3         at the so many-th time
HARNESS_ONCE=file       only where this file is not there; it is made first
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def die() -> None:
    """As ``kill -9`` would."""
    os.kill(os.getpid(), signal.SIGKILL)


def do(what: str) -> None:
    """What HARNESS_DO names."""
    if what == "kill":
        die()
    elif what == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        time.sleep(float(what))


def do_at(point: str, what: str, count: int, once: Path | None) -> None:
    """Wrap the function that the point is named after."""
    import confluent_kafka

    from latent_encoder.service import encoder

    when, _, name = point.partition("-")
    seen = 0

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            due = seen == count and not (once and once.exists())
            if due and once:
                once.touch()
            if due and when == "before":
                do(what)
            result = function(*args, **options)
            if due and when == "after":
                do(what)
            return result

        return call

    if name == "place":
        encoder.place_latent = wrapped(encoder.place_latent)
        return
    methods = {
        "begin": "begin_transaction",
        "produce": "produce",
        "flush": "flush",
        "send_offsets": "send_offsets_to_transaction",
        "commit": "commit_transaction",
    }

    class Producer(confluent_kafka.Producer):
        pass

    setattr(Producer, methods[name], wrapped(getattr(confluent_kafka.Producer, methods[name])))
    confluent_kafka.Producer = Producer


def trap(name: str, spring: Callable[[], None]) -> None:
    """Let a picture with this in its name do that to whoever encodes it."""
    from latent_encoder.service.engines.embedded import EmbeddedEngine

    encode = EmbeddedEngine.encode

    def encode_or_spring(self: EmbeddedEngine, job: Any, call: Any) -> Any:
        if name in job.picture.name:
            spring()
        return encode(self, job, call)

    EmbeddedEngine.encode = encode_or_spring


def die_soon() -> None:
    time.sleep(0.05)
    die()


def fail() -> None:
    raise ZeroDivisionError("a fault of the engine's own")


def wait_in_place_of(seconds: float) -> None:
    """Put in place of the engine one that takes so long, one picture at a time, whatever the machine."""
    import hashlib

    import numpy
    from safetensors.numpy import save

    from latent_encoder.service import engines
    from latent_encoder.service.engines.base import Call, EncodedLatent, EncodeJob

    one = threading.Lock()
    tensors = {"latent_tensor": numpy.zeros((1, 4, 8, 8), numpy.float32)}
    known = {"schema_version": 1, "latent_shape": [1, 4, 8, 8], "latent_dtype": "float32", "engine": "embedded"}

    class WaitEngine:
        name, slots, takes_image = "wait", 3, False

        def start(self) -> None:
            pass

        close = check = wait_to_prepare = start

        def version(self) -> str:
            return "1"

        def vaes(self) -> list[str]:
            return ["pixel_space"]

        def vae_sha256(self, name: str) -> None:
            return None

        def encode(self, job: EncodeJob, call: Call) -> EncodedLatent:
            with one:
                if call.wait(seconds):
                    call.check()
            content = save(tensors, {"request_id": job.request_id or ""})  # so that no two files are the same
            record = known | {"request_id": job.request_id, "file_format": job.file_format}
            record |= {"file_sha256": hashlib.sha256(content).hexdigest(), "file_bytes": len(content)}
            return EncodedLatent(content, record)

    engines.make_engine = lambda settings: WaitEngine()


def main() -> int:
    faulthandler.register(signal.SIGUSR1)  # where each thread is, for a test that waits in vain
    names = ("WAIT", "POISON", "RAISE", "AT", "DO", "COUNT", "ONCE")
    told = {name: os.environ.get(f"HARNESS_{name}", "") for name in names}
    if told["WAIT"]:
        wait_in_place_of(float(told["WAIT"]))
    if told["POISON"]:
        trap(told["POISON"], die_soon)
    if told["RAISE"]:
        trap(told["RAISE"], fail)
    if told["AT"]:
        do_at(told["AT"], told["DO"] or "kill", int(told["COUNT"] or 1), Path(told["ONCE"]) if told["ONCE"] else None)
    from latent_encoder.service.__main__ import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
