"""One ComfyUI for each checkout: the pack under the name that ComfyUI-Manager gives it, the demo VAE, empty folders."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser.editor import Editor, find_chromium, open_editor
from comfyui.conftest import host, pytest_generate_tests
from comfyui.hosts import Host, HostUnavailable
from comfyui.servers import PACK_NAME, Server, install_models, install_pack
from PIL import Image

__all__ = ["host", "pytest_generate_tests"]

FOLDER_NAME = "latent-encoder"  # what the editor shows beside each of the pack's nodes


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
        install_models(base / "models", host)
        try:
            server.start()
        except HostUnavailable as reason:
            pytest.skip(str(reason))
        yield server
        server.process.stop()


@pytest.fixture
def editor(server: Server, chromium: str, tmp_path: Path) -> Iterator[Editor]:
    """That server's editor in a browser that nobody has used before."""
    with open_editor(server.process.url, tmp_path / "profile", chromium) as opened:
        yield opened
