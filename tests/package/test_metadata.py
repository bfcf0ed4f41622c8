"""What installers read: pyproject.toml, requirements.txt, the licence, the changelog."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import latent_encoder

tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirement_lines() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_requirements_are_those_of_pyproject(pyproject: dict[str, Any]) -> None:
    assert requirement_lines() == pyproject["project"]["dependencies"]


@pytest.mark.parametrize("line", requirement_lines())
def test_a_requirement_leaves_room_for_other_packs(line: str) -> None:
    # ComfyUI-Manager installs one line at a time into an environment that all packs share.
    requirement = Requirement(line)
    assert not requirement.url
    assert not requirement.extras
    assert {part.operator for part in requirement.specifier} <= {">="}
    assert requirement.name not in {"torch", "torchvision", "torchaudio", "transformers"}


def test_the_pack_knows_its_version(pyproject: dict[str, Any]) -> None:
    version = pyproject["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert latent_encoder.__version__ == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_registry_accepts_the_metadata(pyproject: dict[str, Any]) -> None:
    project, comfy = pyproject["project"], pyproject["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,98}", project["name"])
    assert "comfyui" not in project["name"]
    assert 0 < len(project["description"]) < 1000
    assert project["license"] == "MIT"
    assert project["license-files"] == ["LICENSE"]
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert project["urls"]["Repository"].startswith("https://")
    assert comfy["PublisherId"]
    assert comfy["DisplayName"]
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    # ComfyUI would serve the web folder a second time, and load every script twice.
    assert "web" not in comfy
