"""Find the ComfyUI on this machine. Standard library only: ``setup.sh`` runs this file before anything is installed.

``python -m latent_encoder.service.engines.comfyui.checkout`` prints the folder, or exits with 1 when there is none.
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from latent_encoder.errors import LatentEncoderError

COMFY_CLI_CONFIG = {
    "darwin": "Library/Application Support/comfy-cli/config.ini",
    "win32": "AppData/Local/comfy-cli/config.ini",
}
PLAIN_FOLDERS = ("comfy/ComfyUI", "Documents/comfy/ComfyUI", "ComfyUI")


def is_comfyui(folder: Path) -> bool:
    """Whether ``folder`` holds ComfyUI's source, which we may read."""
    return all(os.access(folder / name, os.R_OK) for name in ("main.py", "comfy/cli_args.py"))


def find_comfyui() -> Path | None:
    """The folder of the ComfyUI to use, or None.

    Looked for in this order: ``COMFYUI_PATH``, the ComfyUI in whose ``custom_nodes`` this pack lies, comfy-cli's
    default workspace, ``~/comfy/ComfyUI``, ``~/Documents/comfy/ComfyUI`` (comfy-cli's places), ``~/ComfyUI``.

    Raises:
        LatentEncoderError: ENGINE_UNAVAILABLE, ``COMFYUI_PATH`` is set and names no ComfyUI: another one is never
            taken in its place.
    """
    configured = os.environ.get("COMFYUI_PATH")
    if configured:
        folder = Path(configured).expanduser().absolute()
        if not is_comfyui(folder):
            raise LatentEncoderError(
                "ENGINE_UNAVAILABLE",
                f"COMFYUI_PATH is '{configured}', and there is no ComfyUI that can be read.",
                "Set COMFYUI_PATH to the folder that holds ComfyUI's main.py, or unset it.",
            )
        return folder
    return next((folder for folder in _usual_places() if is_comfyui(folder)), None)


def _usual_places() -> Iterator[Path]:
    # The shell's own idea of where it is, too: a pack that is linked into custom_nodes belongs to that ComfyUI.
    here = Path(os.environ.get("PWD", ""))
    for parent in (*Path(__file__).absolute().parents, *here.parents):
        if parent.name == "custom_nodes":
            yield parent.parent
    workspace = _comfy_cli_workspace()
    if workspace:
        yield Path(workspace).expanduser()
    for name in PLAIN_FOLDERS:
        yield Path.home() / name


def _comfy_cli_workspace() -> str | None:
    config = configparser.ConfigParser(interpolation=None)
    name = COMFY_CLI_CONFIG.get(sys.platform, ".config/comfy-cli/config.ini")
    try:
        config.read(Path.home() / name, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return None  # a broken file of another program is no reason to stop
    return config.defaults().get("default_workspace")


def main() -> int:
    """Print the folder; 0 when there is one, 1 when not, 2 when ``COMFYUI_PATH`` is wrong."""
    try:
        folder = find_comfyui()
    except LatentEncoderError as error:
        print(error, file=sys.stderr)
        return 2
    if folder is None:
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
