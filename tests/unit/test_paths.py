"""Names from strangers: what is refused as text, what after symbolic links are followed, and what is never opened."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_encoder.errors import LatentEncoderError
from latent_encoder.paths import check_relative, read_regular_file, resolve_inside, split_annotated

CODES = {"not_found": "IMAGE_NOT_FOUND", "invalid": "IMAGE_INVALID", "too_large": "IMAGE_TOO_LARGE"}

ALLOWED = [
    "a.png",
    "sub/deep/a.png",
    "größe 猫 #1 100%.png",
    "a..b.png",
    "...",
    "..a/b..",
    "a b",
    "x" * 255,
    "/".join(["x" * 255] * 3),
    "-rf",
    "~/a.png",
    "$HOME/a.png",
    "%2e%2e/a.png",
    "CON",
]
REFUSED = [
    "/etc/passwd",
    "//server/share/a.png",
    "/",
    "..",
    "../a.png",
    "sub/../a.png",
    "sub/..",
    "a/../../b",
    "C:/a.png",
    "c:a.png",
    "a\\b.png",
    "..\\a.png",
    "\\\\server\\share",
    "a\0.png",
    "a.png\0",
    "a\nb.png",
    "a\x7fb",
    "\x1b[31m.png",
    "\ud800.png",
    "a\udcff.png",
    "x" * 256,
    "猫" * 86,
    "x" * 300 + "/a.png",
    "sub/" + "x" * 300,
]


@pytest.mark.parametrize("name", ALLOWED)
def test_plain_names(name: str, tmp_path: Path) -> None:
    assert check_relative(name, "image") == name
    assert resolve_inside(tmp_path, name, "image") == tmp_path.resolve() / name


@pytest.mark.parametrize("name", REFUSED)
def test_names_that_are_refused(name: str, tmp_path: Path) -> None:
    for check in (lambda: check_relative(name, "image"), lambda: resolve_inside(tmp_path, name, "image")):
        with pytest.raises(LatentEncoderError) as caught:
            check()
        assert caught.value.code == "PATH_NOT_ALLOWED" and "'image'" in caught.value.message
        assert str(caught.value).encode() and len(caught.value.message) < 500, "it can be shown and sent"
        assert "\0" not in str(caught.value)


@pytest.mark.parametrize("name", ["", " ", "\t", None, 3, b"a.png", ["a.png"]])
def test_no_name(name: str) -> None:
    with pytest.raises(LatentEncoderError) as caught:
        check_relative(name, "image")
    assert caught.value.code == "INVALID_REQUEST"


@given(st.text(st.characters(), max_size=40) | st.text("./\\ ab:~\0\ud800é", max_size=12))
def test_nothing_leaves_its_folder(name: str) -> None:
    root = Path("/srv/pictures")
    try:
        path = resolve_inside(root, name, "image")
    except LatentEncoderError as error:
        assert error.code in {"PATH_NOT_ALLOWED", "INVALID_REQUEST"}
        str(error).encode()
    else:
        assert path.is_relative_to(os.path.realpath(root)) and ".." not in name.split("/")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    (root / "inside").symlink_to("sub")
    (root / "out").symlink_to(outside)
    (root / "out.png").symlink_to("../outside/a.png")
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    (root / "near").symlink_to(tmp_path / "root2")
    assert resolve_inside(root, "inside/a.png", "image") == root / "sub" / "a.png"
    for name in ("out", "out/a.png", "out.png", "up", "up/a.png", "near/a.png"):
        with pytest.raises(LatentEncoderError) as caught:
            resolve_inside(root, name, "image")
        assert caught.value.code == "PATH_NOT_ALLOWED" and str(outside) not in str(caught.value), name
    (tmp_path / "alias").symlink_to(root)
    assert resolve_inside(tmp_path / "alias", "a.png", "image") == root / "a.png", "the folder itself may be a link"
    try:
        path = resolve_inside(root, "loop", "image")
    except LatentEncoderError as error:
        assert error.code == "PATH_NOT_ALLOWED"
    else:
        assert refused(path) == "IMAGE_INVALID"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.png", ("a.png", "input")),
        ("sub/a.png [output]", ("sub/a.png", "output")),
        ("a.png[temp]", ("a.png", "temp")),
        ("a [draft].png [input]", ("a [draft].png", "input")),
        ("a [output] [temp]", ("a [output]", "temp")),
        ("a.png [elsewhere]", ("a.png [elsewhere]", "input")),
        ("a.png [output] ", ("a.png [output] ", "input")),
        ("[output]", ("", "output")),
        ("a\nb [temp]", ("a\nb", "temp")),
    ],
)
def test_annotated_names(text: str, expected: tuple[str, str]) -> None:
    assert split_annotated(text) == expected
    assert split_annotated("a.png", "temp") == ("a.png", "temp")


def refused(path: Path, limit: int = 1000) -> str:
    with pytest.raises(LatentEncoderError) as caught:
        read_regular_file(path, limit=limit, **CODES)
    assert str(path.parent) not in str(caught.value), "a message says no folder of the machine"
    return caught.value.code


def test_regular_files(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for size in (0, 1, 999, 1000):
        path.write_bytes(os.urandom(size))
        assert read_regular_file(path, limit=1000, **CODES) == path.read_bytes()
    path.write_bytes(bytes(1001))
    assert refused(path) == "IMAGE_TOO_LARGE"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_what_is_no_regular_file_is_never_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "loop").symlink_to("loop")
    answers: list[str] = []
    reader = threading.Thread(target=lambda: answers.append(refused(pipe)), daemon=True)
    reader.start()
    reader.join(10)
    assert answers == ["IMAGE_INVALID"], "it waits for no writer"
    open_files = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    for path in (tmp_path, Path("/dev/null"), Path("/dev/zero"), tmp_path / "loop"):
        assert refused(path) == "IMAGE_INVALID", path
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == open_files, "no handle is left"
    assert refused(tmp_path / "absent") == "IMAGE_NOT_FOUND"
    (tmp_path / "file").write_bytes(b"")
    assert refused(tmp_path / "file" / "below") == "IMAGE_NOT_FOUND"


def test_reading_takes_memory_by_the_file(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.bin"
    path.write_bytes(bytes(1000))
    tracemalloc.start()
    read_regular_file(path, limit=1 << 34, **CODES)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
