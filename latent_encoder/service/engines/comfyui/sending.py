"""One picture on one server: sent, encoded, fetched, and seen to be the latent of that picture.

Whoever can reach the server can write into its temp folder, so nothing that comes back is taken on trust.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from latent_encoder.errors import LatentEncoderError
from latent_encoder.images import SUFFIXES
from latent_encoder.models import LatentRecord
from latent_encoder.service.engines.base import Call, EncodedLatent, EncodeJob
from latent_encoder.service.engines.vae_files import listed

from .client import PromptRejected
from .connection import CALL_SECONDS, vae_names
from .failures import from_history, from_rejection
from .pool import Lease
from .running import ServerLost, run_prompt, seconds_for, with_caller
from .workflow import Workflow

FOLDER = "latent_encoder"  # in the server's temp folder
SENDS = 3
LONGEST_REASON = 200
UPLOADED, ENCODED = 0.05, 0.95  # how much of an encode is done then
# What a node says of a picture that was checked here before: it is not the picture that we sent.
DOUBTFUL = ("IMAGE_NOT_FOUND", "IMAGE_INVALID", "IMAGE_TOO_LARGE")
ODD = (LookupError, TypeError, ValueError, AttributeError)  # what comes of an answer that has another shape
PLACE_FIELDS = ("path", "filename", "subfolder", "type", "file_bytes", "file_sha256")

logger = logging.getLogger(__name__)


class Changed(Exception):
    """What lies on the server is not what we put there, or not what it made of it. Sending it again may help."""

    def __init__(self, reason: LatentEncoderError) -> None:
        self.reason = reason
        super().__init__(reason.message)


class Sending:
    """One picture on one server.

    Args:
        slot: the name of its files there.
        check_open: raises once the engine is closed.
    """

    def __init__(
        self,
        lease: Lease,
        workflow: Workflow,
        job: EncodeJob,
        slot: str,
        call: Call,
        check_open: Callable[[], None],
    ) -> None:
        self._lease, self._client, self._workflow = lease, lease.connection.client, workflow
        self._job, self._slot, self._call, self._check_open = job, slot, call, check_open
        self._prompt_id: str | None = None  # of the prompt that may be on the server

    def run(self) -> EncodedLatent:
        """Send the picture until the latent that comes back is that of this very picture.

        Raises:
            ServerLost, LatentEncoderError: see ``ComfyUIEngine.encode``.
        """
        self._workflow.check_steps(self._job, self._lease.connection.facts.takes_resolution_steps)
        try:
            return self._send_until_it_is_right()
        except Exception as error:
            overdue = isinstance(error, LatentEncoderError) and error.code == "TIMEOUT"
            if overdue or self._prompt_id:
                self._lease.abandon(self._prompt_id, overdue=overdue)
            if isinstance(error, ODD):
                raise _otherwise(error) from error
            raise

    def _send_until_it_is_right(self) -> EncodedLatent:
        sends = 1
        while True:
            try:
                return self._send()
            except Changed as change:
                if sends == SENDS:
                    raise change.reason from change
                logger.warning("A picture is sent again: %s", change, extra={"request_id": self._job.request_id})
                sends += 1

    def _send(self) -> EncodedLatent:
        uploaded = self._upload()
        self._report(0.0)
        record = self._encode(f"{uploaded['subfolder']}/{uploaded['name']} [{uploaded['type']}]")
        self._check_picture(record, uploaded)
        content = self._fetch(record)
        self._call.report_progress(1.0)
        picture = self._job.picture
        known = {
            "request_id": self._job.request_id,
            "image_name": picture.name,
            "image_sha256": picture.sha256,
            "original_size": [picture.info.width, picture.info.height],
        }
        # A workflow of single nodes does not know them.
        record.update({key: value for key, value in known.items() if key == "image_name" or record.get(key) is None})
        return EncodedLatent(content, record | dict.fromkeys(PLACE_FIELDS))

    def _upload(self) -> dict[str, Any]:
        picture = self._job.picture
        suffix = PurePosixPath(picture.name).suffix.lower()  # ComfyUI may choose its decoder by it
        name = self._slot + (suffix if suffix in SUFFIXES else f".{picture.info.format.lower()}")
        answer: dict[str, Any] = with_caller(
            self._call,
            lambda: self._client.upload_image(
                picture.data, name, subfolder=FOLDER, type="temp", timeout=seconds_for(self._call, CALL_SECONDS)
            ),
        )
        return {"name": name, "subfolder": FOLDER, "type": "temp"} | answer

    def _encode(self, image: str) -> dict[str, Any]:
        """Run the prompt; the LatentRecord of what it saved."""
        prompt = self._workflow.fill(self._job, image, f"{FOLDER}/{self._slot}")
        told = {"request_id": self._job.request_id, "image_name": self._job.picture.name, "keep_graph": False}
        self._prompt_id = str(uuid.uuid4())
        try:
            entry = run_prompt(
                self._lease.connection,
                prompt,
                self._prompt_id,
                extra_data={"extra_pnginfo": {"latent_encoder": told}},
                nodes=self._workflow.size,
                call=self._call,
                on_turn=self._report,
            )
        except PromptRejected as rejected:
            failure = from_rejection(rejected, self._workflow.vae_node)
        else:
            failed = from_history(entry, self._workflow.vae_node)
            if failed is None:
                record = _checked(self._workflow.record_in(entry))
                self._prompt_id = None
                return record
            failure = failed
        self._prompt_id = None
        if failure.code in DOUBTFUL:
            raise Changed(failure)
        if failure.code == "VAE_MODEL_NOT_FOUND":
            raise LatentEncoderError(failure.code, f"{failure.message} {self._vaes()}".strip(), failure.hint)
        raise failure

    def _vaes(self) -> str:
        """A sentence with the VAEs that the server has; empty where it does not say."""
        with suppress(LatentEncoderError, ServerLost):
            names = with_caller(self._call, lambda: vae_names(self._client))
            return listed(names)
        return ""

    def _check_picture(self, record: dict[str, Any], uploaded: dict[str, Any]) -> None:
        """See that it is the latent of this picture, and of no other one under the same name."""
        sha256 = record.get("image_sha256")
        if sha256 is None:  # a saver that does not read the picture itself
            item = {"filename": uploaded["name"], "subfolder": uploaded["subfolder"], "type": uploaded["type"]}
            sha256 = hashlib.sha256(self._view(item)).hexdigest()
        if sha256 != self._job.picture.sha256:
            raise Changed(_mixed_up("picture", self._slot))

    def _fetch(self, record: dict[str, Any]) -> bytes:
        content = self._view({key: str(record[key]) for key in ("filename", "subfolder", "type")})
        if hashlib.sha256(content).hexdigest() != record["file_sha256"]:
            raise Changed(_mixed_up("latent", self._slot))
        return content

    def _view(self, item: dict[str, str]) -> bytes:
        try:
            content: bytes = with_caller(
                self._call, lambda: self._client.view(item, timeout=seconds_for(self._call, CALL_SECONDS))
            )
        except LatentEncoderError as error:
            if error.code == "LATENT_NOT_FOUND":
                raise Changed(error) from error
            raise
        return content

    def _report(self, part: float) -> None:
        self._check_open()
        self._call.report_progress(UPLOADED + part * (ENCODED - UPLOADED))


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    """A LatentRecord that says which file it is of.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    LatentRecord.model_validate(record)
    for field in ("filename", "subfolder", "type", "file_sha256"):
        if not isinstance(record[field], str):
            raise TypeError(f"'{field}' is no text")
    return record


def _otherwise(error: Exception) -> LatentEncoderError:
    said = " ".join(str(error).split())[:LONGEST_REASON]  # pydantic's can fill pages
    return LatentEncoderError(
        "ENCODING_FAILED",
        f"ComfyUI answered otherwise than our nodes do ({type(error).__name__}: {said}).",
        "Update the Latent Encoder nodes there, or this service.",
    )


def _mixed_up(what: str, slot: str) -> LatentEncoderError:
    return LatentEncoderError(
        "ENGINE_UNAVAILABLE",
        f"Somebody else writes the {what} '{FOLDER}/{slot}' in that ComfyUI's temp folder.",
        "Give each worker a LATENT_ENCODER_WORKER_ID of its own.",
    )
