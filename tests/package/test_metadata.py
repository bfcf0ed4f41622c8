"""What installers read: pyproject.toml, requirements.txt, the licence, the changelog."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from package.node_ids import node_ids
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


@pytest.mark.parametrize(("field", "largest", "ratio"), [("Icon", (400, 400), 1.0), ("Banner", (2100, 900), 21 / 9)])
def test_the_registry_gets_a_picture(
    pyproject: dict[str, Any], field: str, largest: tuple[int, int], ratio: float
) -> None:
    address = pyproject["tool"]["comfy"][field]
    raw = pyproject["project"]["urls"]["Repository"] + "/raw/main/"
    assert address.startswith(raw)
    path = ROOT / address.removeprefix(raw)
    assert path.stat().st_size < 20_000
    drawing = ElementTree.parse(path).getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    width, height = int(drawing.attrib["width"]), int(drawing.attrib["height"])
    assert drawing.attrib["viewBox"] == f"0 0 {width} {height}"
    assert width <= largest[0]
    assert height <= largest[1]
    assert width / height == pytest.approx(ratio)
    # Shown by other sites: it may load nothing and run nothing.
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"<script|<image|<foreignObject|\bon\w+=|href=|@import|url\((?!#)", text)


def our_nodes(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    return [node for graph in graphs for node in graph["nodes"] if node["type"] in set(node_ids().values())]


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_a_template_says_which_pack_and_version_its_nodes_are_of(pyproject: dict[str, Any], path: Path) -> None:
    """By this the editor names the pack to somebody who lacks it."""
    nodes = our_nodes(json.loads(path.read_text(encoding="utf-8")))
    assert nodes
    project = pyproject["project"]
    for node in nodes:
        wanted = {"cnr_id": project["name"], "ver": project["version"], "Node name for S&R": node["type"]}
        assert wanted.items() <= node["properties"].items(), node["id"]
