"""An installation of the version before is brought up to date by ``git pull``: its workflows stay valid, and run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from comfyui.hosts import HostUnavailable, find_hosts
from comfyui.prompts import Prompt
from package.installs import NAME, Installation, by_hand
from package.node_ids import node_ids
from package.templates import MODEL_LOADERS, as_prompt, made_small, refusals, run_prompt
from package.tools import git
from package.upgrades import losses

pytestmark = pytest.mark.timeout(600)


@dataclass
class Upgrade:
    """An installation that has been brought up to date, and what it was before.

    Attributes:
        nodes: our nodes, as ``/object_info`` described them.
        workflows: the old workflows as prompts, made by the old version; by name.
        graphs: the files of those that are in the editor's format.
    """

    installation: Installation
    nodes: dict[str, Any]
    workflows: dict[str, Prompt]
    graphs: dict[str, Path]

    def nodes_now(self) -> dict[str, Any]:
        return our_nodes(self.installation)


def our_nodes(installation: Installation) -> dict[str, Any]:
    answer = httpx.get(f"{installation.server.url}/object_info", trust_env=False).raise_for_status()
    ours = f"custom_nodes.{NAME}"
    return {name: node for name, node in answer.json().items() if node["python_module"] == ours}


def version_before(repository: Path) -> str:
    """The last tag below the version at hand where there is one, else the commit before it."""
    commits = git(repository, "rev-list", "--first-parent", "--max-count=3", "HEAD").split()
    # The last commit is the working tree, and where that was clean the same as the one before it.
    clean = git(repository, "diff", "--name-only", "HEAD~1", "HEAD") == ""
    below = commits[2:] if clean else commits[1:]
    if not below:
        pytest.skip("this clone has no commit before the last one: fetch more of its history")
    tags = git(repository, "tag", "--merged", below[0], "--sort=-creatordate").split()
    return tags[0] if tags else below[0]


@pytest.fixture(scope="module")
def upgrade(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgrade]:
    if not find_hosts():
        pytest.skip("no ComfyUI checkout is found: set COMFYUI_PATH")
    folder = tmp_path_factory.mktemp("upgraded")
    before = version_before(repository)
    try:
        installation = Installation(find_hosts()[0], folder / "ComfyUI")
    except HostUnavailable as reason:
        pytest.skip(str(reason))
    by_hand(installation, repository)
    pack = installation.pack
    git(pack, "reset", "--quiet", "--hard", before)
    old_files = folder / "old workflows"
    with installation.server:
        nodes = our_nodes(installation)
        workflows, graphs = {}, {}
        for path in sorted((pack / "workflows").rglob("*.json")):
            kept = old_files / path.relative_to(pack / "workflows")
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(path.read_bytes())
            if path.parent.name == "api":
                workflows[path.stem] = json.loads(path.read_text(encoding="utf-8"))
            else:
                graphs[path.stem] = kept
                workflows[path.stem] = as_prompt(installation, kept)
    git(pack, "pull", "--quiet", "--ff-only")
    with installation.server:
        yield Upgrade(installation, nodes, workflows, graphs)
    installation.clear()


def test_no_node_input_or_choice_is_lost(upgrade: Upgrade) -> None:
    assert upgrade.nodes
    assert losses(upgrade.nodes, upgrade.nodes_now()) == []
    assert set(upgrade.nodes_now()) == set(node_ids().values())


def test_old_graphs_mean_what_they_meant(upgrade: Upgrade) -> None:
    """The editor's format holds widgets by their place alone."""
    assert upgrade.graphs
    for name, path in upgrade.graphs.items():
        now = as_prompt(upgrade.installation, path)
        assert now.keys() == upgrade.workflows[name].keys()
        for number, node in upgrade.workflows[name].items():
            assert now[number]["class_type"] == node["class_type"]
            assert node["inputs"].items() <= now[number]["inputs"].items(), (name, node["class_type"])


def save_a_latent(upgrade: Upgrade) -> None:
    """The file that the workflows load."""
    done = run_prompt(upgrade.installation, made_small(upgrade.installation, upgrade.workflows["encode"]))
    assert done.success, done.text


def test_old_workflows_are_accepted(upgrade: Upgrade) -> None:
    assert {"encode", "decode", "example"} <= set(upgrade.workflows)
    save_a_latent(upgrade)
    for name, prompt in upgrade.workflows.items():
        for kind, error in refusals(upgrade.installation, made_small(upgrade.installation, prompt)):
            assert (kind in MODEL_LOADERS, error) == (True, "value_not_in_list"), name


@pytest.mark.parametrize("name", ["encode", "decode", "example"])
def test_old_workflows_run(upgrade: Upgrade, name: str) -> None:
    save_a_latent(upgrade)
    done = run_prompt(upgrade.installation, made_small(upgrade.installation, upgrade.workflows[name]))
    assert done.success, done.text


OLD = {
    "Save": {
        "input": {
            "required": {"samples": ["LATENT"], "name": ["STRING", {}], "kind": ["COMBO", {"options": ["a", "b"]}]},
            "optional": {"size": ["FLOAT", {"min": 0, "max": 4}], "vae": ["VAE"]},
        },
        "output": ["LATENT", "STRING"],
    }
}


def changed(section: str, name: str, entry: list[Any] | None, *, moved: bool = False) -> dict[str, Any]:
    """``OLD`` with one input replaced, added, moved from the required ones or, for None, taken away."""
    node = json.loads(json.dumps(OLD["Save"]))
    inputs = node["input"][section]
    if moved:
        del node["input"]["required"][name]
    if entry is None:
        del inputs[name]
    else:
        inputs[name] = entry
    return {"Save": node}


@pytest.mark.parametrize(
    ("new", "loss"),
    [
        ({}, "Save is gone"),
        (changed("required", "samples", None), "Save: the input samples is gone"),
        (changed("required", "name", ["INT", {}]), "Save: name: its type was STRING and is INT"),
        (changed("required", "kind", [["a"]]), "Save: kind: the choice b is gone"),
        (changed("required", "mask", ["IMAGE"]), "Save: the new input mask is required"),
        (
            changed("optional", "kind", ["COMBO", {"options": ["a", "b"]}], moved=True),
            "Save: the widgets were name, kind, size and are name, size, kind",
        ),
        (changed("optional", "size", ["FLOAT", {"max": 2}]), "Save: size: its max was 4 and is 2"),
        ({"Save": {**OLD["Save"], "output": ["STRING"]}}, "Save: the outputs were LATENT, STRING and are STRING"),
    ],
)
def test_a_loss_is_seen(new: dict[str, Any], loss: str) -> None:
    assert losses(OLD, new) == [loss]


@pytest.mark.parametrize(
    "new",
    [
        OLD,
        changed("required", "kind", ["COMBO", {"options": ["c", "b", "a"]}]),
        changed("optional", "more", ["INT", {}]),
        changed("optional", "size", ["FLOAT", {"min": -1, "max": 9}]),
        {**OLD, "Other": OLD["Save"]},
    ],
)
def test_what_is_added_is_no_loss(new: dict[str, Any]) -> None:
    assert losses(OLD, new) == []
