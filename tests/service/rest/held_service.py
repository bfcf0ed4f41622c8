"""``main.py`` with an engine that can be held back: the embedded one, which waits while the file ``hold`` lies in the
working directory, is away while ``away`` does, and writes each request's id into ``encodes``. It also has less patience
with slow callers than the real one.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.__main__ import main
from latent_encoder.service.doors.rest import bodies, protocol, server
from latent_encoder.service.engines.base import Call, EncodedLatent, EncodeJob
from latent_encoder.service.engines.embedded import EmbeddedEngine


class HeldEngine(EmbeddedEngine):
    """See the module."""

    def start(self) -> None:
        if Path("broken").exists():
            raise LatentEncoderError("ENGINE_UNAVAILABLE", "The test has broken the engine.")
        # Torch is imported by the first encode, which not every test comes to.

    def check(self) -> None:
        super().check()
        if Path("away").exists():
            raise LatentEncoderError("ENGINE_UNAVAILABLE", "The test has taken the engine away.")

    def encode(self, job: EncodeJob, call: Call) -> EncodedLatent:
        with Path("encodes").open("a") as file:
            file.write(f"{job.request_id}\n")
        call.report_progress(0.25)
        while Path("hold").exists():
            call.check()
            call.wait(0.01)
        return super().encode(job, call)


protocol.HEAD_SECONDS, bodies.PATIENCE_SECONDS = 3.0, 4.0
server.make_engine = lambda settings: HeldEngine(settings.models_folder)
sys.exit(main())
