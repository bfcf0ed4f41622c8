"""``.github/workflows``: valid by actionlint, and no more than they need to be."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from package.tools import ROOT, Unavailable, find_actionlint, run

FOLDER = ROOT / ".github" / "workflows"
NAMES = ["publish", "tests", "weekly"]
REPOSITORY = "latent-encoder/latent-encoder"


def text_of(name: str) -> str:
    return (FOLDER / f"{name}.yml").read_text(encoding="utf-8")


def read(name: str) -> dict[str, Any]:
    """A workflow; its triggers are under ``on``, which YAML 1.1 takes for a boolean."""
    workflow = yaml.safe_load(text_of(name))
    workflow["on"] = workflow.pop(True)
    return workflow


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", [])]


def commands(workflow: dict[str, Any]) -> str:
    return "\n".join(step.get("run", "") for step in steps(workflow))


def test_there_are_these() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == NAMES


def test_actionlint_finds_nothing() -> None:
    try:
        actionlint = find_actionlint()
    except Unavailable as reason:
        pytest.skip(str(reason))
    files: list[str | Path] = [*sorted(FOLDER.glob("*.yml"))]
    # Its own checks alone: shellcheck and pyflakes are on some machines and not on others.
    done = run([actionlint, "-no-color", "-shellcheck=", "-pyflakes=", *files], ROOT)
    assert (done.returncode, done.stdout) == (0, "")


def test_actionlint_finds_something(tmp_path: Path) -> None:
    try:
        actionlint = find_actionlint()
    except Unavailable as reason:
        pytest.skip(str(reason))
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("on: push\njobs:\n  one:\n    runs-on: ubuntu-24.04\n    steps:\n      - runs: make\n")
    assert run([actionlint, "-no-color", wrong], tmp_path).returncode == 1


@pytest.mark.parametrize("name", NAMES)
def test_it_may_read_and_nothing_more(name: str) -> None:
    workflow = read(name)
    assert workflow["permissions"] == {"contents": "read"}
    assert [job for job in workflow["jobs"].values() if "permissions" in job] == []
    assert "pull_request_target" not in workflow["on"]
    checkouts = [step for step in steps(workflow) if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    assert {step["with"]["persist-credentials"] for step in checkouts} == {False}


@pytest.mark.parametrize("name", NAMES)
def test_its_actions_are_pinned(name: str) -> None:
    """To a commit, which nobody can move, with the version in words beside it."""
    used = re.findall(r"uses: (.*)", text_of(name))
    assert used
    pinned = r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+"
    assert [action for action in used if not re.fullmatch(pinned, action) and not action.startswith("./")] == []


@pytest.mark.parametrize("name", NAMES)
def test_it_ends_and_does_not_pile_up(name: str) -> None:
    workflow = read(name)
    assert workflow["concurrency"]["group"]
    runs = [job for job in workflow["jobs"].values() if "uses" not in job]
    assert [job for job in runs if "timeout-minutes" not in job] == []


@pytest.mark.parametrize("name", NAMES)
def test_pip_is_cached(name: str) -> None:
    pythons = [step for step in steps(read(name)) if "setup-python@" in step.get("uses", "")]
    assert pythons
    assert {step["with"]["cache"] for step in pythons} == {"pip"}


def test_changes_are_tested_on_three_systems() -> None:
    workflow = read("tests")
    assert {"push", "pull_request"} <= set(workflow["on"])
    assert workflow["jobs"]["linux"]["env"]["KAFKA_REQUIRED"] == "1"
    assert "make test" in [step.get("run") for step in workflow["jobs"]["linux"]["steps"]]
    systems = workflow["jobs"]["systems"]
    assert [name.partition("-")[0] for name in systems["strategy"]["matrix"]["system"]] == ["windows", "macos"]
    assert "pytest tests/unit" in commands(workflow)
    for file in re.findall(r"pytest (\S+)", commands(workflow)):
        assert (ROOT / file).exists()
    # What it reads from there is there.
    set_up = (ROOT / "setup.sh").read_text(encoding="utf-8")
    for name in re.findall(r"s/\^(\w+)=", commands(workflow)):
        assert re.search(rf'^{name}=".*"$', set_up, re.MULTILINE)


def test_a_version_tag_is_published_in_the_registry_alone() -> None:
    workflow = read("publish")
    assert workflow["on"] == {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}}
    assert {job["if"] for job in workflow["jobs"].values()} == {f"github.repository == '{REPOSITORY}'"}
    assert workflow["jobs"]["registry"]["needs"] == "tests"
    assert "comfy --skip-prompt node publish" in commands(workflow)
    assert not re.search("pypi|twine", text_of("publish"), re.IGNORECASE)
    secrets = {name: re.findall(r"secrets\.(\w+)", text_of(name)) for name in NAMES}
    assert secrets == {"publish": ["REGISTRY_ACCESS_TOKEN"], "tests": [], "weekly": []}


def test_the_repository_is_the_projects_own() -> None:
    assert f'Repository = "https://github.com/{REPOSITORY}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_changes_of_this_version_are_found(tmp_path: Path) -> None:
    """As the publishing workflow cuts them out of the changelog."""
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version
    (script,) = [line for line in commands(read("publish")).splitlines() if line.startswith("awk")]
    (tmp_path / "CHANGELOG.md").write_bytes((ROOT / "CHANGELOG.md").read_bytes())
    done = run(["bash", "-c", f'version="{version[1]}"\n{script}'], tmp_path)
    assert done.returncode == 0, done.stdout
    changes = (tmp_path / "changes.md").read_text(encoding="utf-8")
    assert changes.strip()
    assert "\n## " not in changes


@pytest.mark.parametrize(
    ("changelog", "is_published"),
    [
        ("## [1.2.3] - 2026-01-01\n\n- A node.\n\n## [1.2.2] - 2025-01-01\n\n- Another.\n", True),
        ("## [1.2.3] - unreleased\n\n- A node.\n", False),
        ("## [1.2.3] - 2026-01-01\n \n\n## [1.2.2] - 2025-01-01\n\n- Another.\n", False),
        ("## [1.2.2] - 2025-01-01\n\n- Another.\n", False),
    ],
)
def test_a_version_without_date_or_changes_is_not_published(tmp_path: Path, changelog: str, is_published: bool) -> None:
    steps = read("publish")["jobs"]["registry"]["steps"]
    (script,) = [step["run"] for step in steps if step.get("name") == "The tag is the version"]
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n', encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text(changelog, encoding="utf-8")
    script = script.replace("python -c", f"'{sys.executable}' -c")
    done = run(["bash", "-eo", "pipefail", "-c", f"GITHUB_REF_NAME=v1.2.3\n{script}"], tmp_path)
    assert (done.returncode == 0) == is_published, done.stdout


def test_each_week_comfyuis_master_is_tried() -> None:
    workflow = read("weekly")
    assert set(workflow["on"]) == {"schedule", "workflow_dispatch"}
    assert "--branch master" in commands(workflow)
    for suite in ("comfyui", "service", "browser", "package"):
        assert f"make test-{suite}" in commands(workflow)
