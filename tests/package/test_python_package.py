"""The service as a Python package: installed by pip, built as wheel and sdist."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from package.tools import environment, run

import latent_encoder

VERSION = latent_encoder.__version__


@pytest.fixture(scope="module")
def source(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which pip and build may leave what they like."""
    folder = tmp_path_factory.mktemp("source") / "latent-encoder"
    shutil.copytree(repository, folder, ignore=shutil.ignore_patterns(".git"))
    return folder


@pytest.fixture(scope="module")
def command(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``latent-encoder`` after ``python -m pip install .[service]`` in a fresh environment.

    It sees the packages of the Python that runs this, so that pip finds the requirements there.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (own / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    words = ["-m", "pip", "install", "--quiet", "--no-build-isolation", ".[service]"]
    done = run([folder / "bin" / "python", *words], source, env=environment(folder / "home"), timeout=240)
    assert done.returncode == 0, done.stdout
    assert (own / "latent_encoder" / "service").is_dir()
    return folder / "bin" / "latent-encoder"


@pytest.fixture(scope="module")
def built(source: Path) -> Path:
    """The folder with the wheel and the sdist, as ``python -m build`` makes them."""
    done = run([sys.executable, "-m", "build", "--no-isolation"], source, timeout=240)
    assert done.returncode == 0, done.stdout
    return source / "dist"


def said(words: list[str | Path], folder: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that knows no settings but its own."""
    command = [str(word) for word in words]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["--show-settings"], 0),
        (["--show-settings", "--megapixels", "0.5"], 0),
        (["--show-settings", "--megapixels", "99"], 2),
        (["--mode", "carrier-pigeon"], 2),
        (["--no-such-flag"], 2),
        (["send", "--help"], 0),
        (["topics", "--help"], 0),
        (["dlq", "list", "--no-such-flag"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_the_command_is_main_py(command: Path, source: Path, tmp_path: Path, words: list[str], code: int) -> None:
    by_command = said([command, *words], tmp_path)
    by_file = said([command.with_name("python"), source / "main.py", *words], tmp_path)
    assert by_command == by_file
    assert by_command[0] == code, by_command
    assert by_command[1] + by_command[2]


def test_both_answer(command: Path, source: Path, tmp_path: Path) -> None:
    words = ["--mode", "standalone", "--engine", "embedded", "--image-path", "absent.png"]
    for program in ([command], [command.with_name("python"), source / "main.py"]):
        code, answer, _ = said([*program, *words], tmp_path)
        assert (code, json.loads(answer)["error_code"]) == (1, "IMAGE_NOT_FOUND")


def test_the_wheel_holds_the_package_and_nothing_else(built: Path, source: Path) -> None:
    with zipfile.ZipFile(built / f"latent_encoder-{VERSION}-py3-none-any.whl") as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = source / "latent_encoder"
    wanted = {path for path in package.rglob("*") if path.suffix == ".py" or path.name == "py.typed"}
    assert names == {path.relative_to(source).as_posix() for path in wanted}


def test_the_sdist_holds_what_builds_the_wheel(built: Path) -> None:
    with tarfile.open(built / f"latent_encoder-{VERSION}.tar.gz") as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "latent_encoder/service/__main__.py"} <= names
    top = {name.partition("/")[0] for name in names if "/" in name}
    assert top == {"latent_encoder", "latent_encoder.egg-info"}


def test_twine_finds_them_in_order(built: Path, tmp_path: Path) -> None:
    files = sorted(built.iterdir())
    assert len(files) == 2
    done = run([sys.executable, "-m", "twine", "check", "--strict", *files], tmp_path)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2
