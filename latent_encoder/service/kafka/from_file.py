"""A request that is encoded no more, for its worker may die of it, is still answered where its file is there.

A file says that the encode went well: what ended the workers came afterwards, such as brokers that were away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.encoder import Encoder
from latent_encoder.service.engines.base import Engine

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings


class FromFile(Encoder):
    """Answers from the file that is there and verifies, as ``Encoder`` does; it encodes nothing.

    Args:
        otherwise: what is answered where there is no such file.
    """

    def __init__(self, engine: Engine, settings: Settings, otherwise: LatentEncoderError) -> None:
        super().__init__(engine, settings)
        self._otherwise = otherwise

    def _make(self, *_: Any) -> tuple[dict[str, Any], bool]:
        raise self._otherwise  # before the picture is opened: that may be what kills


def killed_its_workers(deaths: int) -> LatentEncoderError:
    """What is answered where there is no file."""
    return LatentEncoderError(
        "INTERNAL",
        f"{deaths} workers have died, or were lost, while they encoded this picture.",
        "Look into the workers' logs of that time, and whether their machines ran out of memory.",
    )
