"""The engine that needs no ComfyUI: Hugging Face diffusers' VAE classes, in this process."""

from __future__ import annotations

import importlib.metadata
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from latent_encoder.checksum import file_sha256
from latent_encoder.errors import LatentEncoderError
from latent_encoder.images import decode_image, scaled_size
from latent_encoder.latent_file import encode_latent
from latent_encoder.provenance import measure

from .base import Call, EncodedLatent, EncodeJob
from .devices import free_unused, is_out_of_memory, keep_freed_memory, pick_device
from .pixels import SCALED_BY_PILLOW, scale, to_pixels
from .vae_families import Vae, import_diffusers, load_vae
from .vae_files import VaeFiles, find_vae, list_vaes

if TYPE_CHECKING:
    import torch
    from PIL import Image

KEPT_VAES = 2
POLL_SECONDS = 0.1
SHORT_SECONDS = 0.05
"""The longest wait for an encode to end, about what decoding takes. Beside a longer one the picture is decoded."""


@dataclass(frozen=True)
class _Loaded:
    vae: Vae
    sha256: str | None
    state: object


class EmbeddedEngine:
    """Encodes with diffusers on this machine's CUDA device, MPS device or CPU.

    One picture is encoded at a time; others are read, and latents laid out, meanwhile, and beside a long encode or on a
    GPU others are decoded and scaled, too. A VAE stays in memory until its file changes or two others have been used
    since. The picture of a job is closed once its pixels are taken.

    Args:
        model_dir: a ComfyUI ``models`` folder; VAEs are looked for in its ``vae`` and ``vae_approx``.
        optimize: encode the faster way, where a VAE has one (``fast_encoder``).
    """

    name = "embedded"
    slots = 3
    takes_image = True

    def __init__(self, model_dir: Path, *, optimize: bool = True) -> None:
        self._optimize = optimize
        self._models = Path(model_dir)
        self._loaded: dict[str, _Loaded] = {}  # the least recently used first
        self._loading = threading.Lock()
        self._encoding = threading.Lock()
        # On a CPU, all that torch computes it computes here, even the copy of a latent: every thread that does so has
        # OpenMP's helpers of its own, for good, and where they all are more than the cores, they sleep between the
        # parts of a layer, which doubles the time of a small picture.
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="computing")
        self._away: str | None = "The engine is not started."

    def start(self) -> None:
        """Import torch and diffusers, which takes seconds, so that no request waits for it."""
        try:
            import_diffusers()
            self.version()
        except ImportError as error:
            raise LatentEncoderError(
                "ENGINE_UNAVAILABLE",
                f"The engine 'embedded' needs diffusers and torch ({error}).",
                "Install them with: pip install 'latent-encoder[embedded]'",
            ) from error
        if pick_device().type == "cpu":
            keep_freed_memory()
        self._away = None

    def close(self) -> None:
        """Let go of the VAEs. A call that runs ends before its next layer."""
        self._away = "The engine is closed."
        with self._loading:
            self._loaded.clear()

    def check(self) -> None:
        """Return at once while the engine is started and not closed; else ENGINE_UNAVAILABLE is raised."""
        if self._away:
            raise LatentEncoderError("ENGINE_UNAVAILABLE", self._away, "Start the service again.")

    def version(self) -> str:
        """diffusers' version."""
        return _diffusers_version()

    def vaes(self) -> list[str]:
        """What VAELoader would list for this ``models`` folder, without the tiny ones that only ComfyUI knows."""
        return list_vaes(self._models)

    def vae_sha256(self, name: str) -> str | None:
        """The sha256 of the VAE's one file; None for none or several files."""
        try:
            return _sha256_of(find_vae(self._models, name))
        except (LatentEncoderError, OSError):
            return None

    def wait_to_prepare(self) -> None:
        """On a CPU, wait for a short encode that runs to end: where its cores decode meanwhile, its threads wait for
        one another, and both take longer than one after the other. Another encode may begin while this one decodes."""
        if self._encoding.locked() and pick_device().type == "cpu" and self._encoding.acquire(timeout=SHORT_SECONDS):
            self._encoding.release()

    def encode(self, job: EncodeJob, call: Call) -> EncodedLatent:
        """Encode one picture: ``samples`` is float32, of the shape that ComfyUI's VAEEncode gives.

        Raises:
            LatentEncoderError: SCALING_FAILED, before the VAE is loaded; PATH_NOT_ALLOWED, VAE_MODEL_NOT_FOUND,
                VAE_MODEL_INVALID; OUT_OF_MEMORY, ENCODING_FAILED; TIMEOUT, INTERRUPTED; ENGINE_UNAVAILABLE once the
                engine is closed; FORMAT_UNSUPPORTED.
        """
        self._go_on(call)
        picture = job.picture
        size = scaled_size(picture.info.width, picture.info.height, job.megapixels, job.resolution_steps)
        with self._failures():
            loaded = self._vae(job.vae_name, call)
            pixels = self._scaled(picture.image or decode_image(picture.data)[1], size, job.upscale_method, call)
            self._go_on(call)
            samples, optimized = self._encode(loaded.vae, pixels, call)
            self._go_on(call)
            record = {
                "request_id": job.request_id,
                "vae_name": job.vae_name,
                "vae_sha256": loaded.sha256,
                "image_name": picture.name,
                "image_sha256": picture.sha256,
                "original_size": (picture.info.width, picture.info.height),
                "upscale_method": job.upscale_method,
                "megapixels": job.megapixels,
                "resolution_steps": job.resolution_steps,
                "engine": self.name,
                "engine_version": self.version(),
                "optimized": optimized,
                **measure((1, *pixels.shape[2:], 3), samples.shape),
            }
            return EncodedLatent(*encode_latent({"samples": samples}, file_format=job.file_format, record=record))

    def _scaled(self, image: Image.Image, size: tuple[int, int], method: str, call: Call) -> torch.Tensor:
        """The scaled pixels; where torch makes them on the CPU that encodes, in a turn of their own."""
        pixels = to_pixels(image)
        image.close()  # while it waits and is encoded, a large one would take 0.5 GB more
        if method in SCALED_BY_PILLOW or pick_device().type != "cpu":
            return scale(pixels, size, method)
        with self._turn(self._encoding, call):
            return self._computing.submit(scale, pixels, size, method).result()

    def _encode(self, vae: Vae, pixels: torch.Tensor, call: Call) -> tuple[torch.Tensor, bool | None]:
        def on_layer(part: float) -> None:
            self._go_on(call)
            call.report_progress(part)

        with self._turn(self._encoding, call):
            return self._computing.submit(vae.encode, pixels, on_layer).result(), vae.optimized

    def _vae(self, name: str, call: Call) -> _Loaded:
        """The VAE, from memory where its files are still the same."""
        with self._turn(self._loading, call):
            files = find_vae(self._models, name)
            loaded = self._loaded.pop(name, None)
            while loaded is None or loaded.state != files.state():
                loaded = None  # before the new one, so that there is memory for it
                for unused in list(self._loaded)[: 1 - KEPT_VAES]:
                    del self._loaded[unused]
                state = files.state()
                vae = self._computing.submit(load_vae, files, pick_device(), optimize=self._optimize).result()
                loaded = _Loaded(vae, _sha256_of(files), state)
            self._loaded[name] = loaded
            return loaded

    def _go_on(self, call: Call) -> None:
        self.check()
        call.check()

    @contextmanager
    def _turn(self, lock: threading.Lock, call: Call) -> Iterator[None]:
        """Hold the lock, for a caller who still waits by then."""
        while not lock.acquire(timeout=POLL_SECONDS):
            self._go_on(call)
        try:
            self._go_on(call)
            yield
        finally:
            lock.release()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """What went wrong, in the catalogue's terms."""
        try:
            yield
        except LatentEncoderError:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise LatentEncoderError(
                    "ENCODING_FAILED",
                    f"diffusers could not encode the picture ({type(error).__name__}: {str(error)[:200]}).",
                    "Try the engine 'comfyui', and report it with the log.",
                ) from error
            traceback.clear_frames(error.__traceback__)  # they hold on to what was computed
            free_unused(pick_device())
            raise LatentEncoderError("OUT_OF_MEMORY", "There is not enough memory to encode the picture.") from error


@cache
def _diffusers_version() -> str:
    return importlib.metadata.version("diffusers")


def _sha256_of(files: VaeFiles) -> str | None:
    return file_sha256(files.paths[0]) if len(files.paths) == 1 else None
