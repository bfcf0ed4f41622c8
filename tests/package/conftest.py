"""Fixtures of the tests of the packages: a repository of the working tree, node.zip, and a broker."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka.broker import Broker, ExistingBroker, session_broker
from package.tools import ROOT, comfy, environment, make_repository


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the working tree as its last commit; it stays as it is."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    return make_repository(tmp_path_factory.mktemp("repository") / "latent-encoder")


@pytest.fixture(scope="session")
def node_zip(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive for the registry, packed by ``comfy node pack``."""
    folder = tmp_path_factory.mktemp("packing")
    clone = folder / "latent-encoder"
    shutil.copytree(repository, clone)
    packed = comfy("node", "pack", cwd=clone, env=environment(folder / "home"))
    assert packed.returncode == 0, packed.stdout
    assert (clone / "node.zip").is_file(), packed.stdout
    return clone / "node.zip"


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker | ExistingBroker]:
    """A real Apache Kafka."""
    with session_broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker
