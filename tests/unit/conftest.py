"""Fixtures of the unit tests; they need neither ComfyUI nor a network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from unit.savers import Savers

# Shared, noisy machines: no example is failed for its time.
settings.register_profile("unit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unit")


@pytest.fixture(scope="session")
def savers() -> Iterator[Savers]:
    """A warm process that forks others which save latents."""
    if sys.platform == "win32":
        pytest.skip("Windows has no fork()")
    with Savers() as process:
        yield process


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, mounted for this test."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    mount(folder, "-t", "tmpfs", "-o", "size=1m", "tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def mount(folder: Path, *arguments: str) -> None:
    """Mount something on ``folder``; skips the test where that is not permitted."""
    if sys.platform != "linux" or not shutil.which("mount"):
        pytest.skip("no mount command here")
    done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
