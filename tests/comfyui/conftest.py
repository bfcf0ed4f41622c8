"""Fixtures of the tests in real ComfyUI processes: every test runs once for each checkout that is found."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator

import pytest
from comfyui.hosts import Host, HostUnavailable, find_hosts
from comfyui.servers import Server, Servers


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full_width: a soak test on a host that reads VAEs of full width only")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("full_width") and isinstance(item, pytest.Function):
            host = item.callspec.params["host"]
            if host is not None and not host.reads_vae_width:
                item.add_marker("soak")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "host" in metafunc.fixturenames:
        nothing = pytest.param(
            None, marks=pytest.mark.skip(reason="no ComfyUI checkout is found: set COMFYUI_PATH"), id="none"
        )
        metafunc.parametrize(
            "host", find_hosts() or [nothing], ids=str if find_hosts() else None, indirect=True, scope="session"
        )


@pytest.fixture(scope="session")
def host(request: pytest.FixtureRequest) -> Host:
    return request.param


@pytest.fixture(scope="session")
def servers(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """This host's servers by cache mode; stopped when the last test of this host is done."""
    pool = Servers(host, tmp_path_factory.mktemp(re.sub(r"\W", "_", str(host))))
    try:
        pool.get()
    except HostUnavailable as reason:
        pytest.skip(str(reason))
    yield pool
    pool.stop()
    for folder in ("input", "output"):  # pytest keeps the rest for a while: the logs
        shutil.rmtree(pool.folder / folder)


@pytest.fixture
def server(servers: Servers) -> Server:
    """The server in its default cache mode."""
    return servers.get()


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A folder name of this test's own, for its files in the shared input and output folders."""
    digest = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:8]
    return f"{request.function.__name__.removeprefix('test_')[:30]}_{digest}"
