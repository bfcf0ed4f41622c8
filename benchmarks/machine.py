"""The machine and the versions that a result belongs to; no name of the host and no path."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

import psutil


def describe(comfyui: Path, folder: Path) -> list[str]:
    """One line each: processor, memory, the file system of ``folder``, system, Python and packages, ComfyUI."""
    memory = psutil.virtual_memory().total / 2**30
    return [
        f"{_processor()}, {os.cpu_count()} logical cores, {memory:.0f} GB of memory, files on {_file_system(folder)}",
        f"{_system()}, Python {platform.python_version()}, torch {version('torch')}, "
        f"safetensors {version('safetensors')}, ComfyUI {comfyui_version(comfyui)} with --cpu",
    ]


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
    return found[1] if found else platform.processor() or platform.machine()


def _system() -> str:
    kernel = f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    except OSError:
        return kernel


def _file_system(folder: Path) -> str:
    mounts = [disk for disk in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(disk.mountpoint)]
    return max(mounts, key=lambda disk: len(disk.mountpoint)).fstype if mounts else "an unknown file system"
