"""What turns a picture into a latent: a ComfyUI server, driven over its public API, or diffusers in this process."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .base import Engine

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings

logger = logging.getLogger(__name__)


def make_engine(settings: Settings) -> Engine:
    """The engine that the settings name, not yet started.

    Where they name none and there is no ComfyUI on this machine, it is ``embedded``, and one line of the log says so.
    """
    from .comfyui.checkout import find_comfyui

    if settings.engine is None and not (settings.comfyui_url or settings.comfyui_path or settings.workflow):
        from .comfyui.engine import local_server

        if find_comfyui() is None and local_server() is None:
            logger.warning("No ComfyUI is configured or found here: the embedded engine (diffusers) encodes.")
            return _embedded(settings)
    if settings.engine == "embedded":
        return _embedded(settings)
    from .comfyui.engine import ComfyUIEngine

    return ComfyUIEngine.from_settings(settings)


def _embedded(settings: Settings) -> Engine:
    from .embedded import EmbeddedEngine

    return EmbeddedEngine(settings.models_folder, optimize=settings.optimize == "auto")
