"""The table at the end of `make test`, and its exit code."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

MIXED = """
import pytest

def test_good(): pass

@pytest.mark.skip(reason="no such thing here")
def test_skipped(): pass

@pytest.mark.skip(reason="no such thing here")
def test_skipped_too(): pass
"""


def lay_out(root: Path, **tests: str) -> None:
    """The real script on a small repository of its own: suite name to the source of its one test file."""
    (root / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "run_suites.py", root / "tools")
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["soak"]\n', encoding="utf-8")
    for suite, source in tests.items():
        (root / "tests" / suite).mkdir(parents=True)
        (root / "tests" / suite / f"test_{suite}.py").write_text(source, encoding="utf-8")


def run_suites(root: Path, *suites: str, **tests: str) -> subprocess.CompletedProcess[str]:
    """What the script says to such a repository."""
    lay_out(root, **tests)
    command = [sys.executable, str(root / "tools" / "run_suites.py"), *suites]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_counts_and_gives_reasons(tmp_path: Path) -> None:
    done = run_suites(tmp_path, "unit", "package", unit=MIXED, package="def test_good(): pass\n")
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert lines[-1] == "2 passed, 0 failed, 2 skipped"
    assert lines[-2] == "skipped in unit, 2: no such thing here"
    assert lines[-3].split()[:4] == ["package", "1", "0", "0"]
    assert lines[-4].split()[:4] == ["unit", "1", "0", "2"]


def test_a_failure_fails(tmp_path: Path) -> None:
    done = run_suites(tmp_path, "unit", unit=MIXED + "\ndef test_bad(): assert 0\n")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "1 passed, 1 failed, 2 skipped"


def test_a_suite_that_cannot_be_read_fails(tmp_path: Path) -> None:
    done = run_suites(tmp_path, "unit", unit="import no_such_module\n")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "0 passed, 1 failed, 0 skipped"


def test_a_crash_fails(tmp_path: Path) -> None:
    done = run_suites(tmp_path, "unit", unit="import os\ndef test_crash(): os._exit(3)\n")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "0 passed, 1 failed, 0 skipped"


def test_an_unknown_suite_is_refused(tmp_path: Path) -> None:
    done = run_suites(tmp_path, "nothing", unit=MIXED)
    assert done.returncode == 2
    assert "no suite nothing" in done.stderr


SLOW = """
import pathlib, time, pytest

@pytest.fixture
def server():
    yield
    time.sleep(1)  # longer than Python's own subprocess.run would wait
    pathlib.Path("stopped").touch()

def test_long(server):
    pathlib.Path("started").touch()
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_stops_its_servers(tmp_path: Path, number: int) -> None:
    lay_out(tmp_path, unit=SLOW)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "tools" / "run_suites.py"), "unit"], stdout=subprocess.PIPE, text=True
    )
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert (tmp_path / "stopped").exists()
    assert process.returncode == 130
    assert output.splitlines()[-1] == "stopped in the suite 'unit'"
