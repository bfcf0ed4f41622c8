"""One ComfyUI for each checkout: the pack under the name that ComfyUI-Manager gives it, the demo VAE, empty folders."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser.editor import VUE_NODES, Editor, find_chromium, open_editor
from comfyui.conftest import host, pytest_generate_tests
from comfyui.hosts import Host, HostUnavailable
from comfyui.servers import PACK_NAME, Server, install_models, install_pack
from PIL import Image
from playwright.sync_api import expect
from skimage import data

__all__ = ["host", "pytest_generate_tests"]
expect.set_options(timeout=30_000)

FOLDER_NAME = "latent-encoder"  # what the editor shows beside each of the pack's nodes
# Nodes whose VAE is none: with the first, what fails is one of ComfyUI's own nodes; the second takes its time. And a
# node of somebody else that fails in words like ours.
PROBES = """
import time

import torch

class ProbeBrokenVAE:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES = ("VAE",)
    FUNCTION = "make"
    CATEGORY = "latent encoder probe"

    def make(self):
        return (self,)

    def encode(self, pixels):
        raise RuntimeError("the probe's VAE encodes nothing")

class ProbeSlowVAE(ProbeBrokenVAE):
    def encode(self, pixels):
        time.sleep(3)
        return torch.zeros(1, 4, pixels.shape[1] // 8, pixels.shape[2] // 8)

class ProbeFailure(ProbeBrokenVAE):
    OUTPUT_NODE = True

    def make(self):
        raise RuntimeError("[ERROR] another pack's words")

NODE_CLASS_MAPPINGS = {each.__name__: each for each in (ProbeBrokenVAE, ProbeSlowVAE, ProbeFailure)}
"""
OLDEST_VUE = (0, 33)  # 0.3.64 has the new node rendering as an experiment only


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that asks for both node renderings runs once on a host that has one."""
    absent = [item for item in items if isinstance(item, pytest.Function) and _lacks_rendering(item)]
    if absent:
        config.hook.pytest_deselected(items=absent)
        items[:] = [item for item in items if item not in absent]


def _lacks_rendering(item: pytest.Function) -> bool:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return params.get("rendering") == "vue" and params["host"] is not None and params["host"].release < OLDEST_VUE


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path."""
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium is found: install the package 'chromium'")
    return path


@pytest.fixture(scope="session")
def server(host: Host, chromium: str) -> Iterator[Server]:
    """A running server; its input and output folders are its own."""
    with tempfile.TemporaryDirectory(prefix="latent-encoder-", ignore_cleanup_errors=True) as folder:
        base = Path(folder) / "ComfyUI" / "base"
        server = Server(host, "default", base)
        for path in (server.input, server.output, base / "custom_nodes"):
            path.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(server.input / "example.png")  # every ComfyUI has a picture of this name
        install_pack(base / "custom_nodes")
        (base / "custom_nodes" / PACK_NAME).rename(base / "custom_nodes" / FOLDER_NAME)
        (base / "custom_nodes" / "probes.py").write_text(PROBES, encoding="utf-8")
        install_models(base / "models", host)
        try:
            server.start()
        except HostUnavailable as reason:
            pytest.skip(str(reason))
        yield server
        server.process.stop()


@pytest.fixture
def photo(server: Server) -> Path:
    """A photograph in ComfyUI's input folder."""
    path = server.input / "cat.png"
    Image.fromarray(data.chelsea()).save(path)
    return path


@pytest.fixture
def rendering(request: pytest.FixtureRequest) -> str:
    """How the editor draws nodes: on a canvas, or, where a test asks for it by parameter, as elements ("vue")."""
    return getattr(request, "param", "classic")


@pytest.fixture
def settings(rendering: str) -> dict[str, Any]:
    """The editor's settings by name; a test may override this."""
    return {VUE_NODES: rendering == "vue"}


@pytest.fixture
def editor(server: Server, chromium: str, tmp_path: Path, settings: dict[str, Any]) -> Iterator[Editor]:
    """That server's editor in a browser that nobody has used before."""
    with open_editor(server.process.url, tmp_path / "profile", chromium, settings) as opened:
        yield opened
