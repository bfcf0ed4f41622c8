"""What the tests of the packages share: a repository of the working tree, the ``comfy`` command, actionlint."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
ACTIONLINT = "v1.7.12"
BINARIES = Path(sys.executable).parent
# A command in a test gets none of these: they say which Python, settings or repository the developer works with.
PERSONAL = ("VIRTUAL_ENV", "CONDA_", "XDG_", "GIT_", "COMFY", "LATENT_ENCODER_", "KAFKA_", "PYTHON")


class Unavailable(Exception):
    """A tool cannot be had here; the text says why."""


def run(
    command: list[str | Path], cwd: Path, *, env: Mapping[str, str] | None = None, timeout: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever that is; stderr is in ``stdout``, in the order it was written."""
    words = [str(word) for word in command]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(words, cwd=cwd, env=env, text=True, check=False, timeout=timeout, **streams)


def git(folder: Path, *words: str | Path) -> str:
    """What a git command says that succeeds."""
    who = ["-c", "user.name=Test", "-c", "user.email=test@localhost", "-c", "protocol.file.allow=always"]
    command = ["git", "-C", str(folder), *who, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def tracked() -> list[str]:
    """The working tree's files that git knows or would add."""
    names = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return sorted(name for name in names if name and (ROOT / name).is_file())


def make_repository(folder: Path) -> Path:
    """A clone of this repository with the working tree as one more commit, on the branch ``main``."""
    git(ROOT, "clone", "--quiet", "--no-hardlinks", ROOT, folder)
    git(folder, "checkout", "--quiet", "-B", "main")
    for name in git(folder, "ls-files", "-z").split("\0"):
        if name:
            (folder / name).unlink()
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "The working tree")
    return folder


def environment(home: Path, **added: str) -> dict[str, str]:
    """A new user's environment with that home folder; this Python's commands come first on its PATH."""
    home.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PERSONAL)}
    path = os.pathsep.join([str(BINARIES), kept.get("PATH", "")])
    own = {"HOME": str(home), "USERPROFILE": str(home), "PATH": path, "DO_NOT_TRACK": "1", "NO_COLOR": "1"}
    return {**kept, **own, **added}


def comfy(
    *words: str | Path, cwd: Path, env: Mapping[str, str], timeout: float = 180.0
) -> subprocess.CompletedProcess[str]:
    """The real ``comfy`` command, which asks nothing."""
    return run([sys.executable, "-m", "comfy_cli", "--skip-prompt", *words], cwd, env=env, timeout=timeout)


def find_actionlint() -> Path:
    """The ``actionlint`` command, built once from its Go module.

    Raises:
        Unavailable: there is no Go, or it could not fetch and build the module.
    """
    folder = CACHE / "tools" / f"actionlint-{ACTIONLINT}"
    binary = folder / ("actionlint.exe" if os.name == "nt" else "actionlint")
    if binary.is_file():
        return binary
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise Unavailable("actionlint is built with Go, which is not installed")
    module = f"github.com/rhysd/actionlint/cmd/actionlint@{ACTIONLINT}"
    done = run([go, "install", module], ROOT, env={**os.environ, "GOBIN": str(folder)}, timeout=240)
    if not binary.is_file():
        raise Unavailable(f"Go could not build actionlint: {done.stdout.strip()[-300:]}")
    return binary
