"""What is in node.zip, the archive that ComfyUI-Manager installs, as ``comfy node pack`` makes it."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
from package.tools import comfy, environment, git, run, tracked

LARGEST_ARCHIVE = 500_000
LARGEST_FILE = 100_000
# Single files, then whole folders with what may be in them.
FILES = {"__init__.py", "LICENSE", "README.md", "pyproject.toml", "requirements.txt"}
FOLDERS = {
    "nodes": {".py"},
    "latent_encoder": {".py", ".typed"},
    "web": {".js", ".mjs", ".css", ".md", ".png", ".jpg", ".webp", ".svg"},
    "locales": {".json"},
    "workflows": {".json", ".jpg"},
}
SERVICE = "latent_encoder/service/"


@pytest.fixture(scope="module")
def packed(node_zip: Path) -> dict[str, int]:
    """The archive's files, with their sizes in bytes."""
    with zipfile.ZipFile(node_zip) as archive:
        assert archive.testzip() is None
        return {entry.filename: entry.file_size for entry in archive.infolist()}


def belongs(name: str) -> bool:
    """Whether a file of the repository is one that the nodes need."""
    return name in FILES or (Path(name).parts[0] in FOLDERS and not name.startswith(SERVICE))


def test_it_holds_exactly_what_the_nodes_need(packed: dict[str, int]) -> None:
    assert sorted(packed) == [name for name in tracked() if belongs(name)]
    assert set(packed) >= FILES


def test_nothing_of_another_kind_is_in_its_folders(packed: dict[str, int]) -> None:
    kinds = {name: Path(name).suffix for name in packed if name not in FILES}
    assert [name for name, kind in kinds.items() if kind not in FOLDERS[Path(name).parts[0]]] == []


def test_it_is_small(node_zip: Path, packed: dict[str, int]) -> None:
    assert node_zip.stat().st_size < LARGEST_ARCHIVE
    assert [name for name, size in packed.items() if size > LARGEST_FILE] == []


def test_packing_leaves_the_repository_clean(node_zip: Path) -> None:
    assert git(node_zip.parent, "status", "--porcelain") == ""


def test_comfy_validates_it_without_a_warning(repository: Path, tmp_path: Path) -> None:
    said = comfy("node", "validate", cwd=repository, env=environment(tmp_path))
    assert said.returncode == 0, said.stdout
    assert "All validation checks passed" in said.stdout
    assert "warning" not in said.stdout.lower(), said.stdout


def test_ruff_finds_nothing_that_the_registry_forbids(repository: Path) -> None:
    # ``comfy node validate`` runs this and passes whatever it finds; our own exceptions do not count there.
    rules = ["--select", "S102,S307,E702", "--isolated", "--ignore-noqa", "--no-cache"]
    found = run([sys.executable, "-m", "ruff", "check", ".", *rules], repository)
    assert found.returncode == 0, found.stdout
