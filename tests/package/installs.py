"""ComfyUI installations of a test's own, and the ways in which users get the pack into them."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pictures
from comfyui.hosts import Host, python_for
from comfyui.servers import demo_vae
from package.registry import serve
from package.tools import comfy, environment, git, run

from latent_encoder.service.engines.comfyui.server import ComfyUIServer

NAME = "latent-encoder"
REPOSITORY_URL = "https://github.com/latent-encoder/latent-encoder"
TOPIC = "latents"
# A checkout's own folders that an installation gets empty, and what it does without.
OWN_FOLDERS = ("custom_nodes", "input", "models", "output", "user")
LEFT_OUT = {*OWN_FOLDERS, "temp", ".git", "blueprints", "tests", "tests-unit"}
# Manager's cm-cli with another registry, whose address cannot be set. In a ComfyUI older than Manager, as 0.3.64 is, it
# would keep its files beside its own code.
CM_CLI = """
import os, runpy, sys
sys.path.append(os.environ["COMFYUI_PATH"])
import folder_paths
if not hasattr(folder_paths, "get_system_user_directory"):
    user = folder_paths.get_user_directory()
    folder_paths.get_system_user_directory = lambda name: os.path.join(user, f"__{name}")
from comfyui_manager.common import cnr_utils
cnr_utils.base_url = os.environ["TEST_REGISTRY"]
runpy.run_module("cm_cli", run_name="__main__", alter_sys=True)
"""


class Installation:
    """A ComfyUI in a folder of its own, with its own Python, as a user has it.

    Attributes:
        folder: holds ComfyUI's ``main.py``, ``custom_nodes``, ``models`` and so on.
        python: its interpreter; it sees the packages of ours, and what is installed into it stays in it.
        said: what the installing commands have printed.
    """

    def __init__(self, host: Host, folder: Path) -> None:
        self.host, self.folder, self.said = host, folder, ""
        self._home = folder.parent / f"{folder.name}-home"
        _copy_checkout(host.checkout, folder)
        self.python = _make_python(folder / ".venv", python_for(host))
        _write(folder / "input" / "example.png", pictures.png())
        vae = folder / "models" / "vae" / host.demo_vae
        vae.parent.mkdir()
        shutil.copyfile(demo_vae(padded=not host.reads_vae_width), vae)
        # By default Manager takes uv where that is installed, which does not see the packages of ours.
        _write(folder / "user" / "__manager" / "config.ini", b"[default]\nuse_uv = False\nnetwork_mode = offline\n")
        self.server = ComfyUIServer(folder, base_directory=folder, python=self.python, arguments=("--cpu",))

    @property
    def pack(self) -> Path:
        """The pack's folder: the one thing in ``custom_nodes``."""
        (pack,) = (self.folder / "custom_nodes").iterdir()
        return pack

    def environment(self, **added: str) -> dict[str, str]:
        """What its user's commands run in."""
        return environment(self._home, **added)

    def run(self, *words: str | Path, **added: str) -> None:
        """A command of its user's that must succeed; ``added`` to its environment."""
        done = run(list(words), self.folder, env=self.environment(**added), timeout=240)
        self.said += done.stdout
        assert done.returncode == 0, done.stdout

    def clear(self) -> None:
        """Delete what it holds but the log, which pytest keeps for a while."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)

    def allow_publishing(self, bootstrap: str) -> None:
        """Write the administrator's ``client.properties``."""
        lines = f"bootstrap.servers={bootstrap}\nlatent_encoder.topics={TOPIC}\n"
        _write(self.folder / "user" / "__latent_encoder" / "client.properties", lines.encode())


def by_manager(installation: Installation, node_zip: Path, version: str) -> None:
    """As ComfyUI-Manager does from the registry: its own code fetches, unpacks and installs the requirements."""
    with serve(NAME, version, node_zip) as registry:
        env = {"COMFYUI_PATH": str(installation.folder), "TEST_REGISTRY": registry.url}
        words = ("install", f"{NAME}@{version}", "--mode", "local", "--exit-on-fail")
        installation.run(installation.python, "-c", CM_CLI, *words, **env)
        assert {f"/nodes/{NAME}/install", "/node.zip"} <= set(registry.asked)


def by_comfy_cli(installation: Installation, repository: Path) -> None:
    """``comfy node install <git>``; git fetches the pack's address from a repository on this machine."""
    settings = installation.folder / "gitconfig"
    _write(settings, f'[url "{repository.as_uri()}"]\n\tinsteadOf = {REPOSITORY_URL}\n'.encode())
    env = installation.environment(GIT_CONFIG_GLOBAL=str(settings))
    words = ("--workspace", installation.folder, "node", "install", REPOSITORY_URL)
    done = comfy(*words, cwd=installation.folder, env=env, timeout=240)
    installation.said += done.stdout
    assert done.returncode == 0, done.stdout


def by_hand(installation: Installation, repository: Path) -> None:
    """As the README says, and users of ComfyUI portable do: a clone, and pip of ComfyUI's own Python."""
    git(installation.folder / "custom_nodes", "clone", "--quiet", repository.as_uri(), NAME)
    installation.run(installation.python, "-m", "pip", "install", "-r", installation.pack / "requirements.txt")


WAYS: dict[str, Callable[..., None]] = {"manager": by_manager, "comfy-cli": by_comfy_cli, "portable": by_hand}


def _copy_checkout(checkout: Path, folder: Path) -> None:
    """ComfyUI's own files, and its folders of the user's, empty."""

    def left_out(at: str, names: list[str]) -> set[str]:
        return {name for name in names if name == "__pycache__" or (Path(at) == checkout and name in LEFT_OUT)}

    shutil.copytree(checkout, folder, ignore=left_out)
    for name in OWN_FOLDERS:
        (folder / name).mkdir()


def _make_python(folder: Path, base: Path) -> Path:
    """A virtual environment that also sees the packages of ``base``, and those of the Python that runs this."""
    venv.create(folder, symlinks=os.name != "nt")
    seen = dict.fromkeys([*_site_packages(base.parent.parent), *_site_packages(Path(sys.prefix))])
    (own,) = _site_packages(folder)
    _write(Path(own) / "ours.pth", "\n".join(seen).encode())
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _site_packages(prefix: Path) -> list[str]:
    return [sysconfig.get_path("purelib", vars={"base": str(prefix), "platbase": str(prefix)})]


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
