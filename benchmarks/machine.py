"""The machine and the versions that a result belongs to; no name of the host and no path."""

from __future__ import annotations

import os
import platform
import re
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from latent_encoder.service.engines.devices import pick_device

DEVICE = pick_device()
"""Where everything that is compared computes. What differs between devices asks here, and nowhere else."""

CUDA = DEVICE.type == "cuda"
SUFFIX = "" if DEVICE.type == "cpu" else f"-{DEVICE.type}"
"""Of the names of result files, so that the results of several devices lie side by side."""

COMFYUI_ARGUMENTS = ("--cpu",) if DEVICE.type == "cpu" else ()
"""What ComfyUI is told of the device: mostly nothing, so that it picks the number format, too."""


def describe(comfyui: Path, folder: Path) -> list[str]:
    """Two lines: the device, memory and file system of ``folder``; system, Python, packages and ComfyUI."""
    memory = psutil.virtual_memory().total / 2**30
    gpu = f"{torch.cuda.get_device_name()} with CUDA {torch.version.cuda}, " if CUDA else ""
    arguments = "".join(f" with {word}" for word in COMFYUI_ARGUMENTS)
    return [
        f"{gpu}{_processor()}, {memory:.0f} GB of memory, files on {_file_system(folder)}",
        f"{_system()}, Python {platform.python_version()}, torch {version('torch')}, "
        f"safetensors {version('safetensors')}, ComfyUI {comfyui_version(comfyui)}{arguments}",
    ]


def name() -> str:
    """What computes: the GPU, else the processor."""
    return torch.cuda.get_device_name() if CUDA else _processor()


def today() -> str:
    """The date, UTC."""
    return str(datetime.now(timezone.utc).date())


def comfyui_version(comfyui: Path) -> str:
    """The version that a checkout says it is."""
    found = re.search(r'__version__ = "(.+?)"', (comfyui / "comfyui_version.py").read_text(encoding="utf-8"))
    return found[1] if found else "of unknown version"


def load() -> str:
    """How busy the machine was in the last minute: more than what we run ourselves means noisy results."""
    return f"{psutil.getloadavg()[0]:.1f}"


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    model = found[1] if found else platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} logical cores"


def _system() -> str:
    kernel = f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    except OSError:
        return kernel


def _file_system(folder: Path) -> str:
    mounts = [disk for disk in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(disk.mountpoint)]
    return max(mounts, key=lambda disk: len(disk.mountpoint)).fstype if mounts else "an unknown file system"
