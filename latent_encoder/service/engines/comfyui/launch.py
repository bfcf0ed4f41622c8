"""A ComfyUI of our own: its base directory with our nodes in it, the way to the models, the device.

The service and ``tools/demo.py`` both start ComfyUI this way. Nothing is written into the ComfyUI that was found.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from latent_encoder.errors import LatentEncoderError

from .server import ComfyUIServer

PACK_NAME = "latent-encoder"
PACK_PARTS = ("__init__.py", "nodes", "latent_encoder", "web", "locales", "workflows", "pyproject.toml")
PACK_MARK = Path("nodes", "encode_to_latent_file.py")
MODEL_PATHS = "model_paths.yaml"
MODEL_FOLDERS = {"vae", "vae_approx"}  # named even where they are not there yet
PYTHONS = (".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "../python_embeded/python.exe")
DEVICE_QUESTION = """
import torch
names = ("cuda", "xpu", "mps", "npu", "mlu")
found = [getattr(torch, n, None) or getattr(torch.backends, n, None) for n in names]
print(any(module is not None and module.is_available() for module in found))
"""
DEVICE_SECONDS = 120


def our_server(
    comfyui: Path,
    base: Path,
    *,
    models: Sequence[Path] = (),
    python: str | Path | None = None,
    pack: Path | None = None,
) -> ComfyUIServer:
    """A server of the ComfyUI in ``comfyui``, not yet started, with our nodes and that ComfyUI's models.

    Args:
        base: its base directory; made, and brought up to date.
        models: more folders of models, laid out as ComfyUI's ``models``.
        python: what runs it; default: ``python_of``.
        pack: the folder of our nodes; default: ``find_pack``.

    Raises:
        LatentEncoderError: NODES_MISSING where our nodes are not on this machine.
    """
    pack = pack or find_pack(comfyui)
    if pack is None:
        raise LatentEncoderError(
            "NODES_MISSING",
            f"The Latent Encoder nodes are not on this machine: neither beside this service nor in '{comfyui}'.",
            "Install them into that ComfyUI's custom_nodes, or set COMFYUI_URL to a ComfyUI that has them.",
        )
    install_pack(pack, base / "custom_nodes" / PACK_NAME)
    write_model_paths(base / MODEL_PATHS, (comfyui / "models", *models))
    python = str(python or python_of(comfyui))
    arguments = ["--extra-model-paths-config", str((base / MODEL_PATHS).absolute()), *device_arguments(python)]
    return ComfyUIServer(comfyui, base_directory=base, python=python, arguments=arguments)


def find_pack(comfyui: Path) -> Path | None:
    """The folder of our nodes: where this code comes from, else in that ComfyUI's custom_nodes."""
    beside = Path(__file__).absolute().parents[4]
    installed = sorted(path.parents[1] for path in comfyui.glob(f"custom_nodes/*/{PACK_MARK.as_posix()}"))
    return next((folder for folder in (beside, *installed) if _is_pack(folder)), None)


def install_pack(pack: Path, target: Path) -> None:
    """Link the pack's folder to ``target``; copy what the nodes need where links are not allowed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    try:
        target.symlink_to(pack, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        target.mkdir()
        for source in (pack / name for name in PACK_PARTS):
            if source.is_dir():
                shutil.copytree(source, target / source.name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.is_file():
                shutil.copy2(source, target)


def write_model_paths(file: Path, folders: Sequence[Path]) -> None:
    """Write ComfyUI's extra-model-paths file: each subfolder of each folder under its own name."""
    paths = {}
    for number, folder in enumerate(dict.fromkeys(path.absolute() for path in folders)):
        names = MODEL_FOLDERS | (
            {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
        )
        names.discard("custom_nodes")  # would be loaded, not looked for models
        paths[f"models_{number}"] = {"base_path": str(folder), **{name: name for name in sorted(names)}}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(paths), encoding="utf-8")  # JSON is YAML, and quotes any path


def python_of(comfyui: Path) -> str:
    """The Python that has ComfyUI's requirements: the one of its own environment, else this one, as set-up makes it."""
    found = (comfyui / name for name in PYTHONS)
    return next((str(path.absolute()) for path in found if os.access(path, os.X_OK)), sys.executable)


@cache
def device_arguments(python: str) -> tuple[str, ...]:
    """``--cpu`` where that Python's torch finds nothing faster; ComfyUI does not start without being told."""
    # Asked in a process of its own: torch costs some hundred megabytes that the service does not need.
    try:
        answer = subprocess.run(
            [python, "-c", DEVICE_QUESTION], capture_output=True, text=True, timeout=DEVICE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()  # ComfyUI itself will say what is wrong
    return ("--cpu",) if answer.stdout.strip() == "False" else ()


def _is_pack(folder: Path) -> bool:
    return (folder / "__init__.py").is_file() and (folder / PACK_MARK).is_file()
