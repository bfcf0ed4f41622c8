"""The workflow files that ship with the pack, checked without ComfyUI."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
VAE = "qwen_image_vae.safetensors"

SAVING = {
    "filename_prefix": "latent",
    "file_format": "safetensors",
    "if_exists": "number",
    "folder": "output",
    "preview": True,
}
# Our nodes' widgets in the order of their inputs, with their defaults; and their links.
WIDGETS: dict[str, dict[str, Any]] = {
    "EncodeToLatentFile": {
        "image": "example.png",
        "upscale_method": "lanczos",
        "megapixels": 1.0,
        "resolution_steps": 1,
        **SAVING,
    },
    "SaveLatentToDisk": SAVING,
    "LoadLatentFromDisk": {"latent_file": "latent_00001_.safetensors [output]"},
}
LINKS = {"EncodeToLatentFile": {"vae"}, "SaveLatentToDisk": {"samples"}, "LoadLatentFromDisk": {"vae"}}
OUTPUTS = {
    "EncodeToLatentFile": ["LATENT", "LATENT_RECORD", "STRING"],
    "SaveLatentToDisk": ["LATENT", "LATENT_RECORD", "STRING"],
    "LoadLatentFromDisk": ["LATENT", "LATENT_RECORD"],
}
NOTES = {"Note", "MarkdownNote"}
MUTED = 2
TITLE_HEIGHT = 30


def read(name: str) -> dict[str, Any]:
    """One workflow file."""
    return json.loads((WORKFLOWS / name).read_text(encoding="utf-8"))


@pytest.fixture(params=["encode.json", "decode.json"])
def prompt(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(f"api/{request.param}")


@pytest.fixture(scope="module")
def graph() -> dict[str, Any]:
    return read("example.json")


def test_prompt_names_our_inputs_and_defaults(prompt: dict[str, Any]) -> None:
    ours = [node for node in prompt.values() if node["class_type"] in WIDGETS]
    assert len(ours) == 1
    (node,) = ours
    links = {name for name, value in node["inputs"].items() if isinstance(value, list)}
    widgets = {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}
    assert widgets == WIDGETS[node["class_type"]]
    assert links == LINKS[node["class_type"]]


def test_prompt_links_lead_to_nodes(prompt: dict[str, Any]) -> None:
    for node in prompt.values():
        assert node["_meta"]["title"]
        for value in node["inputs"].values():
            if isinstance(value, list):
                source, slot = value
                assert source in prompt
                assert slot == 0


def test_prompt_classes() -> None:
    def classes(name: str) -> list[str]:
        return [node["class_type"] for node in read(name).values()]

    assert classes("api/encode.json") == ["VAELoader", "EncodeToLatentFile"]
    assert classes("api/decode.json") == ["VAELoader", "LoadLatentFromDisk", "VAEDecode", "SaveImage"]


def test_every_vae_is_the_default_one(graph: dict[str, Any]) -> None:
    prompts = [read(f"api/{path.name}") for path in (WORKFLOWS / "api").glob("*.json")]
    nodes = [node for prompt in prompts for node in prompt.values() if node["class_type"] == "VAELoader"]
    assert [node["inputs"]["vae_name"] for node in nodes] == [VAE] * len(prompts)
    assert [node["widgets_values"] for node in graph["nodes"] if node["type"] == "VAELoader"] == [[VAE]]


def test_graph_ids(graph: dict[str, Any]) -> None:
    ids = [node["id"] for node in graph["nodes"]]
    links = [link[0] for link in graph["links"]]
    assert len(set(ids)) == len(ids)
    assert len(set(links)) == len(links)
    assert graph["last_node_id"] == max(ids)
    assert graph["last_link_id"] == max(links)
    assert sorted(node["order"] for node in graph["nodes"]) == list(range(len(ids)))


def test_graph_links_stand_at_both_ends(graph: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in graph["nodes"]}
    for number, source, source_slot, target, target_slot, kind in graph["links"]:
        output, entry = nodes[source]["outputs"][source_slot], nodes[target]["inputs"][target_slot]
        assert number in output["links"]
        assert entry["link"] == number
        assert output["type"] == kind
        assert entry["type"] in (kind, "*")
        assert nodes[source]["order"] < nodes[target]["order"]
    from_outputs = [link for node in nodes.values() for output in node["outputs"] for link in output["links"]]
    from_inputs = [entry["link"] for node in nodes.values() for entry in node["inputs"]]
    assert sorted(from_outputs) == sorted(from_inputs) == sorted(link[0] for link in graph["links"])


def test_graph_nodes_say_where_they_come_from(graph: dict[str, Any]) -> None:
    for node in graph["nodes"]:
        if node["type"] in NOTES:
            continue
        properties = node["properties"]
        assert properties["Node name for S&R"] == node["type"]
        assert properties["cnr_id"] == ("latent-encoder" if node["type"] in WIDGETS else "comfy-core")
        if node["type"] in WIDGETS:
            assert properties["ver"] == "0.1.0"


def test_graph_has_our_nodes_as_the_prompts_do(graph: dict[str, Any]) -> None:
    ours = {node["type"]: node for node in graph["nodes"] if node["type"] in WIDGETS}
    assert set(ours) == set(WIDGETS)
    for kind, node in ours.items():
        assert {entry["name"] for entry in node["inputs"]} == LINKS[kind]
        assert [output["type"] for output in node["outputs"]] == OUTPUTS[kind]
        expected = list(WIDGETS[kind].values())
        if kind == "EncodeToLatentFile":
            expected.append("image")  # the upload button's own value, after all others
        if kind == "SaveLatentToDisk":
            expected[0] = "latent_by_hand"  # so that the first file of the other group is number 1
        assert node["widgets_values"] == expected


def test_graph_mutes_what_needs_a_file_and_nothing_else(graph: dict[str, Any]) -> None:
    loader = next(node["id"] for node in graph["nodes"] if node["type"] == "LoadLatentFromDisk")
    downstream = {loader}
    for node in sorted(graph["nodes"], key=lambda node: node["order"]):
        if any(link[1] in downstream and link[3] == node["id"] for link in graph["links"]):
            downstream.add(node["id"])
    assert {node["id"] for node in graph["nodes"] if node["mode"] == MUTED} == downstream
    assert {node["mode"] for node in graph["nodes"]} == {0, MUTED}


def test_graph_layout(graph: dict[str, Any]) -> None:
    """No node covers another, each lies in one group or none, and every group holds one of our nodes."""

    def box(node: dict[str, Any]) -> tuple[float, float, float, float]:
        (x, y), (width, height) = node["pos"], node["size"]
        return x, y - TITLE_HEIGHT, x + width, y + height

    for one, other in combinations(graph["nodes"], 2):
        a, b = box(one), box(other)
        apart = a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]
        assert apart, f"{one['type']} covers {other['type']}"
    members: list[set[int]] = []
    for group in graph["groups"]:
        x, y, width, height = group["bounding"]
        inside = set()
        for node in graph["nodes"]:
            left, top, right, bottom = box(node)
            if left >= x and top >= y and right <= x + width and bottom <= y + height:
                inside.add(node["id"])
        assert any(node["type"] in WIDGETS for node in graph["nodes"] if node["id"] in inside)
        members.append(inside)
    for one_group, other_group in combinations(members, 2):
        assert not one_group & other_group


def test_only_the_editors_graphs_are_templates() -> None:
    """ComfyUI offers every file here in its Templates window, where only the editor's own format opens."""
    templates = sorted(WORKFLOWS.glob("*.json"))
    assert templates
    for path in templates:
        assert {"nodes", "links"} <= json.loads(path.read_text(encoding="utf-8")).keys()
