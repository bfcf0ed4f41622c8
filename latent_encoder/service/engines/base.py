"""What an engine is: it turns one checked picture into one latent file's bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from latent_encoder.errors import LatentEncoderError
from latent_encoder.images import PictureInfo

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Picture:
    """A picture that was read once and checked (``images.decode_image``).

    Attributes:
        data: the file's bytes.
        name: as the caller named it.
        sha256: of ``data``, in hex.
        info: its format, and its size as it is shown.
        image: as ``images.decode_image`` gives it, for an engine to take and close; None for one that takes only
            ``data``.
    """

    data: bytes = field(repr=False)
    name: str
    sha256: str
    info: PictureInfo
    image: Image.Image | None = field(default=None, repr=False)


@dataclass(frozen=True)
class EncodeJob:
    """One picture and how to encode it; every value is checked. ``request_id`` goes into the record."""

    picture: Picture
    request_id: str | None
    vae_name: str
    upscale_method: str
    megapixels: float
    resolution_steps: int
    file_format: str


@dataclass(frozen=True)
class EncodedLatent:
    """A latent file that has no place yet.

    Attributes:
        content: the file's bytes, in the job's format.
        record: its LatentRecord as JSON values; what belongs to the place (``path``, ``filename``, ...) is null.
    """

    content: bytes = field(repr=False)
    record: dict[str, Any]


class Call:
    """How long a caller waits, and whether it still does. Shared by the caller's thread and the engine's.

    Args:
        timeout: seconds from now; None waits for ever. Measured on the monotonic clock, so that setting the machine's
            clock changes nothing.
        on_progress: told the part that is done, from 0 to 1, from any thread.
    """

    def __init__(self, timeout: float | None = None, on_progress: Callable[[float], None] | None = None) -> None:
        self._deadline: float | None = None
        self._timeout = 0.0
        self._for_good = False
        if timeout is not None:
            self.limit(timeout)
        self._cancelled = threading.Event()
        self.report_progress = on_progress or (lambda part: None)

    def cancel(self) -> None:
        """The caller has gone away, or wants it no longer."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def limit(self, seconds: float, *, for_good: bool = False) -> None:
        """Let the deadline be no later than so many seconds from now.

        Args:
            for_good: a moment of the caller's own: after it the same request is never in time again.
        """
        deadline = time.monotonic() + seconds
        if self._deadline is None or deadline < self._deadline:
            self._deadline, self._timeout, self._for_good = deadline, seconds, for_good

    def remaining(self) -> float | None:
        """Seconds until the deadline, not below 0; None where there is none."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def wait(self, seconds: float) -> bool:
        """Sleep that long, or until the call is cancelled; True where it was."""
        return self._cancelled.wait(seconds)

    def check(self) -> None:
        """Go on only for a caller who still waits.

        Raises:
            LatentEncoderError: INTERRUPTED once it is cancelled; TIMEOUT past the deadline.
        """
        if self.cancelled:
            raise LatentEncoderError("INTERRUPTED", "The request was cancelled.")
        if self.remaining() == 0.0:
            reason = (
                "The deadline had passed." if self._timeout <= 0 else f"It was not done within {self._timeout:g} s."
            )
            raise self.too_late(reason)

    def too_late(self, reason: str) -> LatentEncoderError:
        """TIMEOUT for a call past its deadline."""
        if self._for_good:
            return LatentEncoderError("TIMEOUT", reason, "Send it with a later deadline, or none.", retryable=False)
        return LatentEncoderError("TIMEOUT", reason)


class Engine(Protocol):
    """Turns pictures into latents. Every method may be called from several threads at once.

    Attributes:
        name: ``comfyui`` or ``embedded``.
        slots: how many ``encode`` calls are worth having at once: one that encodes, and those that read, send or write
            meanwhile. More are safe; they wait.
        takes_image: whether it takes ``Picture.image``; else the memory is free before it begins.
    """

    name: str
    slots: int
    takes_image: bool

    def start(self) -> None:
        """Make it ready for ``encode``; returns when it is.

        Raises:
            LatentEncoderError: ENGINE_UNAVAILABLE, NODES_MISSING.
        """

    def close(self) -> None:
        """Give everything back: processes, locks, memory. Running calls fail with ENGINE_UNAVAILABLE or INTERRUPTED."""

    def check(self) -> None:
        """Return at once where it can take work.

        Raises:
            LatentEncoderError: ENGINE_UNAVAILABLE, NODES_MISSING: why it cannot, just now.
        """

    def version(self) -> str | None:
        """The version of what encodes, as it stands in a record; None while it is not known."""

    def vaes(self) -> list[str]:
        """The names that ``EncodeJob.vae_name`` may have."""

    def vae_sha256(self, name: str) -> str | None:
        """The sha256 of that VAE's one file; None where it has none, or the engine cannot see it."""

    def wait_to_prepare(self) -> None:
        """Return when the next picture may be decoded without holding up the one that is encoded; soon in any case."""

    def encode(self, job: EncodeJob, call: Call) -> EncodedLatent:
        """Encode one picture; blocks until it is done. Calls ``call.check`` while it waits and obeys it.

        Raises:
            LatentEncoderError: SCALING_FAILED, VAE_MODEL_NOT_FOUND, VAE_MODEL_INVALID, ENCODING_FAILED, OUT_OF_MEMORY,
                INVALID_REQUEST, FORMAT_UNSUPPORTED, ENGINE_UNAVAILABLE, NODES_MISSING, TIMEOUT, INTERRUPTED, or a code
                that ComfyUI's node gave.
        """
