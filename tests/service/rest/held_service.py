"""``main.py`` with an engine that does what the test says, and less patience with slow callers than usual.

Files in its working directory say what that is: the engine does not come up while ``starting`` is there, and then
fails if ``broken`` is; an encode waits while ``hold`` is there, and fails while the engine is ``away``; the list of
VAEs fails unforeseen while ``odd`` is there. Each request's id is written into ``encodes``. The latents are made
beforehand, so that no process has to import torch.
"""

from __future__ import annotations

import json
import sys
import time
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
        while Path("starting").exists():
            time.sleep(0.01)
        if Path("broken").exists():
            raise LatentEncoderError("ENGINE_UNAVAILABLE", "The test has broken the engine.")
        self._away = None

    def check(self) -> None:
        super().check()
        if Path("away").exists():
            raise LatentEncoderError("ENGINE_UNAVAILABLE", "The test has taken the engine away.")

    def vaes(self) -> list[str]:
        if Path("odd").exists():
            raise RuntimeError("The test did not foresee it.")
        return super().vaes()

    def encode(self, job: EncodeJob, call: Call) -> EncodedLatent:
        with Path("encodes").open("a") as file:
            file.write(f"{job.request_id}\n")
        part = 0.25
        call.report_progress(part)
        self.check()
        while Path("hold").exists():
            call.check()
            self.check()
            call.wait(0.01)
            part += (1 - part) / 100
            call.report_progress(part)
        call.check()
        record = json.loads(Path(f"prepared.{job.file_format}.json").read_text())
        return EncodedLatent(Path(f"prepared.{job.file_format}").read_bytes(), record)


protocol.HEAD_SECONDS, bodies.PATIENCE_SECONDS = 2.0, 2.5
server.make_engine = lambda settings: HeldEngine(settings.models_folder)
sys.exit(main())
