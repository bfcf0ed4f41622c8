"""A message that its workers seem to die of is answered from its file, where that is there, and never encoded."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from kafka.workers import make_picture

from latent_encoder.errors import LatentEncoderError
from latent_encoder.models import EncodeRequest
from latent_encoder.service import encoder as encoder_module
from latent_encoder.service.config import Settings
from latent_encoder.service.encoder import Encoder
from latent_encoder.service.engines.base import EncodedLatent
from latent_encoder.service.kafka.from_file import FromFile

CONTENT = b"a latent, as far as the engine is concerned"


class Engine:
    """Makes the same latent of every picture."""

    takes_image = False

    def wait_to_prepare(self) -> None:
        pass

    def encode(self, job: Any, call: Any) -> EncodedLatent:
        record = {"schema_version": 1, "file_format": "npy", "request_id": job.request_id, "engine": "embedded",
                  "latent_shape": [1, 4, 8, 8], "latent_dtype": "float32", "file_bytes": len(CONTENT),
                  "file_sha256": hashlib.sha256(CONTENT).hexdigest()}  # fmt: skip
        return EncodedLatent(CONTENT, record)


class Untouched:
    """An engine that nobody may use."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


def test_only_the_file_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = make_picture(tmp_path, "picture.png")
    settings = Settings(output_dir=tmp_path / "latents", input_roots=[tmp_path], state_dir=tmp_path / "state")
    asked = EncodeRequest(
        request_id="asked", image_path=picture, file_format="npy", vae_model_name="x", upscale_method="lanczos",
        megapixels=0.01,
    )  # fmt: skip
    engine: Any = Untouched()
    from_file = FromFile(engine, settings, LatentEncoderError("INTERNAL", "It kills."))
    monkeypatch.setattr(encoder_module, "decode_image", engine)  # a picture may kill whoever opens it
    answer = from_file.encode_image_to_latent(asked)
    assert (answer.error_code, answer.error_message) == ("INTERNAL", "It kills.")

    monkeypatch.undo()
    engine = Engine()
    made = Encoder(engine, settings).encode_image_to_latent(asked)
    assert made.status == "success", made
    answer = from_file.encode_image_to_latent(asked)
    assert (answer.status, answer.latent_file_path) == ("success", made.latent_file_path)
    assert answer.metadata["reused"]
    Path(made.latent_file_path or "").write_bytes(b"damaged")
    assert from_file.encode_image_to_latent(asked).error_code == "INTERNAL"
