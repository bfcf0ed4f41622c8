"""Fixtures of the service's tests: real ComfyUI processes, started when a test first asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from comfyui.hosts import Host, HostUnavailable, find_hosts, python_for
from comfyui.servers import Server, Servers, install_models

from latent_encoder.service.engines.comfyui.server import ComfyUIServer


def _serve(host: Host, tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Server]:
    pool = Servers(host, tmp_path_factory.mktemp(name))
    try:
        server = pool.get()
    except HostUnavailable as reason:
        pytest.skip(str(reason))
    yield server
    pool.stop()


@pytest.fixture(scope="session")
def newest_host() -> Host:
    """The newest ComfyUI checkout."""
    if not find_hosts():
        pytest.skip("no ComfyUI checkout is found: set COMFYUI_PATH")
    return find_hosts()[0]


@pytest.fixture(scope="session")
def oldest_host() -> Host:
    """The oldest ComfyUI checkout, where there are two."""
    if len(find_hosts()) < 2:
        pytest.skip("there is one ComfyUI checkout only: set COMFYUI_TEST_PATHS to more")
    return find_hosts()[-1]


@pytest.fixture(scope="session")
def comfyui_server(newest_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI of the newest checkout with our nodes, and the demo VAE and a small TAESD in its models."""
    yield from _serve(newest_host, tmp_path_factory, "comfyui")


@pytest.fixture(scope="session")
def old_server(oldest_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same of the oldest checkout."""
    yield from _serve(oldest_host, tmp_path_factory, "old_comfyui")


@pytest.fixture(scope="session")
def bare_server(newest_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUIServer]:
    """A ComfyUI of the newest checkout without our nodes."""
    arguments = ("--cpu", "--disable-all-custom-nodes")
    base = tmp_path_factory.mktemp("bare_comfyui")
    server = ComfyUIServer(
        newest_host.checkout, base_directory=base, python=python_for(newest_host), arguments=arguments
    )
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def models_folder(newest_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the demo VAE and a small TAESD, for a ComfyUI that the service starts, or for `embedded`."""
    models = tmp_path_factory.mktemp("models")
    install_models(models, newest_host)
    return models
