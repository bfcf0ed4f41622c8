"""What is in node.zip, the archive that ComfyUI-Manager installs: git's files without those of .comfyignore."""

from __future__ import annotations

import io
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from pathspec import GitIgnoreSpec

ROOT = Path(__file__).resolve().parents[2]
LARGEST_ARCHIVE = 500_000
# Single files, then whole folders with what may be in them.
FILES = {"__init__.py", "LICENSE", "README.md", "pyproject.toml", "requirements.txt"}
FOLDERS = {
    "nodes": {".py"},
    "latent_encoder": {".py", ".typed"},
    "web": {".js", ".mjs", ".css", ".md", ".png", ".jpg", ".webp", ".svg"},
    "locales": {".json"},
    "workflows": {".json", ".jpg"},
}
NEEDED = {
    "__init__.py",
    "LICENSE",
    "README.md",
    "latent_encoder/latent_file.py",
    "nodes/encode_to_latent_file.py",
    "nodes/load_latent_from_disk.py",
    "nodes/save_latent_to_disk.py",
    "pyproject.toml",
    "requirements.txt",
    "workflows/example.json",
}


@pytest.fixture(scope="module")
def packed() -> list[str]:
    """The archive's file names, by the rule of `comfy node pack`; what git would add counts as added."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
    ignored = GitIgnoreSpec.from_lines((ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines())
    return sorted(name for name in names if name and (ROOT / name).is_file() and not ignored.match_file(name))


def belongs(name: str) -> bool:
    path = Path(name)
    return name in FILES or path.suffix in FOLDERS.get(path.parts[0], set())


def test_nothing_is_in_it_that_the_nodes_do_not_need(packed: list[str]) -> None:
    assert [name for name in packed if not belongs(name)] == []
    assert [name for name in packed if name.startswith("latent_encoder/service")] == []


def test_what_the_nodes_need_is_in_it(packed: list[str]) -> None:
    assert sorted(NEEDED - set(packed)) == []


def test_it_is_small(packed: list[str]) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name in packed:
            file.write(ROOT / name, name)
    assert archive.tell() < LARGEST_ARCHIVE
