"""Test servers: real ComfyUI processes with the pack installed as a user would have it.

All servers of one host share an ``input`` and an ``output`` folder; each has its own base directory, temp folder, port
and in-memory database. A server is started when a test first asks for it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import httpx
from comfyui import small_vae
from comfyui.hosts import CACHE, REPOSITORY, Host, made_once, python_for

from latent_encoder.service.engines.comfyui.client import ComfyUIClient
from latent_encoder.service.engines.comfyui.server import ComfyUIServer

PACK_NAME = "My latent-encoder pack"
NOT_INSTALLED = {".git", ".venv", ".cache", "tests", "assets", "benchmarks", "deploy"}
SHARED_MODELS = REPOSITORY.parent / "shared" / "models"


def extra_models() -> Path:
    """A folder with more model files than the repository has; it need not exist."""
    return Path(os.environ.get("LATENT_ENCODER_TEST_MODELS") or SHARED_MODELS)


def install_pack(custom_nodes: Path) -> None:
    """Copy what git knows or would add into ``custom_nodes`` under a user's own name, and the probe nodes beside it."""
    listed = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        source = REPOSITORY / name
        if Path(name).parts[0] not in NOT_INSTALLED and source.is_file():
            target = custom_nodes / PACK_NAME / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(__file__).parent / "probe_nodes", custom_nodes / "latent_encoder_probe", ignore=ignored)


@cache
def demo_vae(padded: bool) -> Path:
    """The demo VAE's file; ``padded``: its copy at width 96, made once."""
    found = [path for path in (REPOSITORY / "assets", extra_models()) if (path / "demo_vae.safetensors").is_file()]
    source = found[0] / "demo_vae.safetensors"
    if not padded:
        return source
    target = CACHE / "vae" / f"demo_vae_96_{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}.safetensors"
    with made_once():
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = target.with_suffix(".unfinished")
            tool = REPOSITORY / "tools" / "pad_demo_vae.py"
            subprocess.run([sys.executable, str(tool), str(source), str(unfinished)], check=True, capture_output=True)
            unfinished.rename(target)
    return target


def install_models(models: Path, host: Host) -> None:
    """Lay the VAEs that the tests name into a server's ``models`` folder, as links to one copy."""
    (models / "vae").mkdir(parents=True)
    (models / "vae_approx").mkdir()
    vae = demo_vae(padded=not host.reads_vae_width)
    for name in (host.demo_vae, "spare_vae.safetensors"):  # the second one is loaded by no prompt that succeeds
        (models / "vae" / name).symlink_to(vae)
    small_vae.write(models / "vae_approx")
    for path in (extra_models() / "vae_approx").glob("taef2_*.pth"):
        (models / "vae_approx" / path.name).symlink_to(path.resolve())


class Server:
    """One ComfyUI process, its client, and its folders."""

    def __init__(self, host: Host, mode: str, folder: Path) -> None:
        self.host, self.mode, self.folder = host, mode, folder
        self.input, self.output, self.temp = folder.parent / "input", folder.parent / "output", folder / "temp"
        modes = {"default": (), **host.cache_modes}
        folders = ("--input-directory", str(self.input), "--output-directory", str(self.output))
        self.process = ComfyUIServer(
            host.checkout,
            base_directory=folder,
            python=python_for(host),
            arguments=("--cpu", *modes[mode], *folders),
        )

    def start(self) -> Server:
        """Make the folders where they are missing, start the process and wait for its first answer."""
        if not self.folder.is_dir():
            for folder in (self.input, self.output, self.folder / "custom_nodes"):
                folder.mkdir(parents=True, exist_ok=True)
            install_pack(self.folder / "custom_nodes")
            install_models(self.folder / "models", self.host)
        self.process.start()
        self.client = ComfyUIClient(self.process.url)
        return self

    def state(self) -> dict:
        """What the process has used: ``vae_loads`` (names), ``rss`` (bytes), ``handles``, ``threads``."""
        return httpx.get(f"{self.process.url}/probe/state").raise_for_status().json()

    def log(self) -> str:
        """What the process has printed."""
        return self.process.log_path.read_text(encoding="utf-8", errors="replace")


class Servers:
    """The running servers of one host, by cache mode."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host, self.folder = host, folder
        self.running: dict[str, Server] = {}

    def get(self, mode: str = "default") -> Server:
        """The server with that cache mode, started where it does not run."""
        if mode not in self.running:
            self.running[mode] = Server(self.host, mode, self.folder / mode).start()
        return self.running[mode]

    def kill(self, mode: str) -> None:
        """``kill -9`` that server; the next ``get`` starts it again on the same folders."""
        server = self.running.pop(mode)
        server.client.close()
        server.process.kill()

    def stop(self) -> None:
        """End all of them; killed, because nothing that they still hold is wanted."""
        for mode in list(self.running):
            self.kill(mode)
