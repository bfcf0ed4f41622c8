"""The ComfyUI checkouts to test against, and a Python for each.

A checkout is a folder with ComfyUI's ``main.py``. An older one pins other frontend and templates packages than are
installed, and does not start on them: it gets an overlay, a small virtual environment that holds its three pinned
packages and looks everything else up in ours.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".cache"

PINNED = ("comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs")
CACHE_MODES = {"lru": ("--cache-lru", "100"), "classic": ("--cache-classic",), "none": ("--cache-none",)}


class HostUnavailable(Exception):
    """A checkout cannot be run here; the text says why."""


@dataclass(frozen=True)
class Host:
    """One ComfyUI checkout."""

    checkout: Path
    version: str

    def __str__(self) -> str:
        return f"ComfyUI-{self.version}"

    @property
    def release(self) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:3])

    @property
    def reads_vae_width(self) -> bool:
        """Whether a Wan/Qwen VAE of another width than 96 can be loaded; the width is then read from the file."""
        source = (self.checkout / "comfy" / "sd.py").read_text(encoding="utf-8")
        return 'dim = sd["decoder.head.0.gamma"].shape[0]' in source

    @property
    def has_nested_tensors(self) -> bool:
        return (self.checkout / "comfy" / "nested_tensor.py").is_file()

    @property
    def expands_without_cache(self) -> bool:
        """Whether nodes can expand under ``--cache-none``; 0.3.64 fails with a KeyError in its own caching."""
        return self.release > (0, 3, 64)

    @property
    def has_resolution_steps(self) -> bool:
        source = (self.checkout / "comfy_extras" / "nodes_post_processing.py").read_text(encoding="utf-8")
        return "resolution_steps" in source

    @property
    def knows_taef2(self) -> bool:
        return '"taef2"' in (self.checkout / "nodes.py").read_text(encoding="utf-8")

    @property
    def demo_vae(self) -> str:
        """The demo VAE's name in ``models/vae`` that this host can load."""
        return "demo_vae.safetensors" if self.reads_vae_width else "demo_vae_96.safetensors"

    @property
    def cache_modes(self) -> dict[str, tuple[str, ...]]:
        """The cache modes beside the default that this host's command line knows, with their arguments."""
        source = (self.checkout / "comfy" / "cli_args.py").read_text(encoding="utf-8")
        modes = {name: arguments for name, arguments in CACHE_MODES.items() if f'"{arguments[0]}"' in source}
        if '"--cache-ram"' not in source:
            modes.pop("classic", None)  # it is the default there
        return modes


@cache
def find_hosts() -> tuple[Host, ...]:
    """Every checkout of ``COMFYUI_PATH``, ``COMFYUI_TEST_PATHS`` (like PATH) and ``~/comfy/ComfyUI*``; newest first."""
    named = [os.environ.get("COMFYUI_PATH", ""), *os.environ.get("COMFYUI_TEST_PATHS", "").split(os.pathsep)]
    folders = [Path(name).expanduser() for name in named if name] + sorted(Path.home().glob("comfy/ComfyUI*"))
    hosts = {}
    for folder in folders:
        if (folder / "main.py").is_file() and (folder / "comfyui_version.py").is_file():
            real = folder.resolve()
            hosts[real] = Host(real, _version(real))
    return tuple(sorted(hosts.values(), key=lambda host: (host.release, str(host.checkout)), reverse=True))


def python_for(host: Host) -> Path:
    """The Python that runs this checkout: the running one, or an overlay with the checkout's own pinned packages.

    Raises:
        HostUnavailable: the pinned packages could not be installed.
    """
    pins = _pins(host)
    wrong = {name: pin for name, pin in pins.items() if _installed(name) != pin}
    return _overlay(wrong) if wrong else Path(sys.executable)


def _version(checkout: Path) -> str:
    text = (checkout / "comfyui_version.py").read_text(encoding="utf-8")
    match = re.search(r'__version__ = "([^"]+)"', text)
    return match[1] if match else "0"


def _pins(host: Host) -> dict[str, str]:
    lines = (host.checkout / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.strip().split("==") for line in lines if "==" in line]
    return {pair[0]: pair[1] for pair in pairs if pair[0] in PINNED}


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _overlay(pins: dict[str, str]) -> Path:
    site_packages = sysconfig.get_path("purelib")
    key = hashlib.sha256(repr((sorted(pins.items()), site_packages, sys.version)).encode()).hexdigest()[:16]
    folder = CACHE / "hosts" / key
    python = folder / "bin" / "python"
    ready = folder / "ready"
    with made_once():
        if not ready.is_file():
            _make_overlay(folder, pins, site_packages)
            ready.touch()
    return python


def _make_overlay(folder: Path, pins: dict[str, str], site_packages: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, symlinks=True)
    _install(folder / "bin" / "python", [f"{name}=={pin}" for name, pin in sorted(pins.items())])
    # Written last: while pip ran, it must not have seen our own packages as its to replace.
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (own / "main_environment.pth").write_text(site_packages + "\n", encoding="utf-8")


@contextmanager
def made_once() -> Iterator[None]:
    """For what is made in ``CACHE``: of several pytest processes one makes it, the others wait and find it there."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "tests.lock"):
        yield


def _install(python: Path, requirements: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostUnavailable(f"pip could not install {', '.join(requirements)}: {done.stderr.strip()[-300:]}")
