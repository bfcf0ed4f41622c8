"""The Dockerfile, read as text: what is copied exists, is sent to the build, and is the pack that node.zip holds."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from pathspec import GitIgnoreSpec

from latent_encoder.service.config import NAMES

tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")

ROOT = Path(__file__).resolve().parents[2]
PACK = "custom_nodes/latent-encoder/"


class Instruction(NamedTuple):
    """One line of a stage: ``COPY``, and what stands behind it."""

    name: str
    value: str


def stages() -> dict[str, list[Instruction]]:
    """Each stage's instructions, those of the stage it begins from first."""
    parser = DockerfileParser(fileobj=io.BytesIO((ROOT / "Dockerfile").read_bytes()))
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in parser.structure:
        if line["instruction"] == "FROM":
            image, _, name = line["value"].split()
            current = found[name] = [*found.get(image, [])]
        current.append(Instruction(line["instruction"], line["value"]))
    return found


def values(stage: str, name: str) -> list[str]:
    return [line.value for line in stages()[stage] if line.name == name]


def copies(stage: str) -> list[tuple[list[str], str]]:
    """The sources and the target of each COPY out of the build's context."""
    words = [value.split() for value in values(stage, "COPY") if not value.startswith("--from")]
    return [(line[:-1], line[-1]) for line in words]


def sent() -> list[str]:
    """What .dockerignore lets through to the build. Its patterns mean the same to git and to Docker."""
    ignored = GitIgnoreSpec.from_lines((ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines())
    return [name for name in checked_in() if not ignored.match_file(name)]


def checked_in() -> list[str]:
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted(name for name in names if name and (ROOT / name).is_file())


def matching(source: str, names: list[str]) -> list[str]:
    """The files that a COPY of this file, folder or pattern takes; a ``*`` stands for no slash."""
    pattern = re.compile(re.escape(source).replace(r"\*", "[^/]*") + "(/.*)?")
    return [name for name in names if pattern.fullmatch(name)]


@pytest.mark.parametrize("stage", ["wheel", "worker", "comfyui"])
def test_what_is_copied_is_there_and_is_sent(stage: str) -> None:
    names = sent()
    for sources, _ in copies(stage):
        assert [source for source in sources if not matching(source, names)] == []


def test_nothing_else_is_sent() -> None:
    wanted = [source for stage in ("wheel", "worker", "comfyui") for sources, _ in copies(stage) for source in sources]
    taken = {name for source in wanted for name in matching(source, sent())}
    assert [name for name in sent() if name not in taken] == []


def test_comfyui_gets_the_pack_that_node_zip_holds() -> None:
    ignored = GitIgnoreSpec.from_lines((ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines())
    packed = [name for name in checked_in() if not ignored.match_file(name)]
    copied = []
    for sources, target in copies("comfyui"):
        for source in sources:
            for name in matching(source, sent()):
                inside = name.removeprefix(f"{source}/") if (ROOT / source).is_dir() else Path(name).name
                copied.append((name, f"{target.rstrip('/')}/{inside}"))
    assert sorted(set(copied)) == [(name, PACK + name) for name in packed]


def test_the_versions_are_those_of_set_up() -> None:
    given = dict(shlex.split(value)[0].split("=", 1) for value in values("comfyui", "ARG"))
    set_up = dict(re.findall(r'^(\w+)="(.*)"$', (ROOT / "setup.sh").read_text(encoding="utf-8"), re.MULTILINE))
    assert given["COMFYUI_TAG"] == set_up["COMFYUI_TAG"]
    assert given["TORCH_PACKAGES"] == set_up["TORCH_PACKAGES"]
    assert values("comfyui", "ADD") == [f"{set_up['COMFYUI_REPOSITORY']}.git#${{COMFYUI_TAG}} ./"]


def test_the_worker_installs_extras_that_are_there_and_no_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.findall(r'\.whl\)\[([a-z,]+)\]"', "\n".join(values("worker", "RUN")))[0].split(",")
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    names = {Requirement(line).name for line in lines}
    assert {"confluent-kafka", "pydantic-settings"} <= names
    assert names & {"torch", "diffusers"} == set()


def test_comfyui_has_the_library_of_the_node_that_publishes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (library,) = project["optional-dependencies"]["kafka"]
    assert f'"{library}"' in "\n".join(values("comfyui", "RUN"))


@pytest.mark.parametrize("stage", ["worker", "comfyui"])
def test_signals_reach_a_process_that_is_not_root(stage: str) -> None:
    # The exec form: a shell in between would keep SIGTERM to itself.
    assert json.loads(values(stage, "ENTRYPOINT")[-1])[:4] == ["tini", "--", "python", "main.py"]
    assert all(isinstance(word, str) for word in json.loads(values(stage, "CMD")[-1]))
    # A number: Kubernetes cannot tell whether a name is root's.
    user = values(stage, "USER")[-1]
    assert re.fullmatch("[1-9][0-9]*", user)
    assert any(f"useradd --uid {user} " in value for value in values(stage, "RUN"))


@pytest.mark.parametrize(("stage", "path"), [("worker", "/health/ready"), ("comfyui", "/system_stats")])
def test_the_health_check_is_python_that_asks(stage: str, path: str) -> None:
    command = values(stage, "HEALTHCHECK")[-1].partition(" CMD ")[2]
    python, option, code = json.loads(command)
    assert (python, option) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")
    assert path in code


def test_the_workers_variables_are_settings() -> None:
    base = " ".join(values("base", "ENV"))
    given = " ".join(values("worker", "ENV")).removeprefix(base)
    names = re.findall(r"(\w+)=", given)
    assert "LATENT_ENCODER_STATE_DIR" in names
    assert set(names) <= set(NAMES.values())
