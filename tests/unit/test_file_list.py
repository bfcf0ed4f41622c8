"""Listing a folder of latents: order, what is left out, and how soon a change is seen."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from latent_encoder.file_list import list_files

SUFFIXES = (".safetensors", ".latent", ".pt", ".npy")


def names(root: Path, skip: tuple[str, ...] = ()) -> list[str]:
    return [file.name for file in list_files(root, SUFFIXES, skip)]


def make(root: Path, name: str, age: float = 0.0) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_newest_first_with_subfolders(tmp_path: Path) -> None:
    make(tmp_path, "b.safetensors", 30)
    make(tmp_path, "sub/deep/c.pt", 10)
    make(tmp_path, "a.latent", 20)
    make(tmp_path, "sub/größe 猫.NPY", 40)
    found = list_files(tmp_path, SUFFIXES)
    assert [file.name for file in found] == ["sub/deep/c.pt", "a.latent", "b.safetensors", "sub/größe 猫.NPY"]
    assert found[0].mtime_ns == (tmp_path / "sub/deep/c.pt").stat().st_mtime_ns
    assert list_files(str(tmp_path), SUFFIXES) == found


def test_files_of_one_moment_stand_by_name(tmp_path: Path) -> None:
    moment = time.time() - 10
    for name in ("c.pt", "a.pt", "b.pt"):
        os.utime(make(tmp_path, name), (moment, moment))
    assert names(tmp_path) == ["a.pt", "b.pt", "c.pt"]


def test_what_is_left_out(tmp_path: Path) -> None:
    make(tmp_path, "a.pt")
    for name in (".hidden.pt", ".hidden/a.pt", "a.pt.json", "a.pt.webp", "a.png", "pt", ".latent-encoder-0.tmp"):
        make(tmp_path, name)
    (tmp_path / "folder.pt").mkdir()
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe.pt")
        (tmp_path / "link.pt").symlink_to("a.pt")
        (tmp_path / "dangling.pt").symlink_to("nowhere")
        (tmp_path / "up").symlink_to("..")
        (tmp_path / "self").symlink_to(".")
    assert names(tmp_path) == ["a.pt"]


def test_folders_to_skip(tmp_path: Path) -> None:
    for name in ("a.pt", "models/vae/b.pt", "models/c.pt", "modelsx/d.pt"):
        make(tmp_path, name)
    assert set(names(tmp_path, (str(tmp_path / "models"),))) == {"a.pt", "modelsx/d.pt"}
    assert set(names(tmp_path, (str(tmp_path / "models" / "vae") + os.sep,))) == {"a.pt", "models/c.pt", "modelsx/d.pt"}
    assert len(names(tmp_path)) == 4


def test_no_folder_has_no_files(tmp_path: Path) -> None:
    assert list_files(tmp_path / "absent", SUFFIXES) == []
    make(tmp_path, "file")
    assert list_files(tmp_path / "file", SUFFIXES) == []
    make(tmp_path, "absent/a.pt")
    assert names(tmp_path / "absent") == ["a.pt"]


def test_changes_are_seen_at_once(tmp_path: Path) -> None:
    """However quickly they follow one another: a file system's clock has coarse ticks."""
    wanted: set[str] = set()
    for number in range(200):
        name = f"{'sub/' if number % 3 else ''}{number}.pt"
        make(tmp_path, name)
        wanted.add(name)
        assert set(names(tmp_path)) == wanted
        if number % 5 == 0:
            (tmp_path / name).unlink()
            wanted.remove(name)
            assert set(names(tmp_path)) == wanted


def test_changes_to_a_folder_long_unchanged(tmp_path: Path) -> None:
    make(tmp_path, "a.pt", 100)
    make(tmp_path, "sub/b.pt", 200)
    for folder in (tmp_path / "sub", tmp_path):
        os.utime(folder, (time.time() - 60,) * 2)
    assert names(tmp_path) == ["a.pt", "sub/b.pt"] == names(tmp_path), "the second time from memory"
    make(tmp_path, "sub/c.pt")
    assert names(tmp_path) == ["sub/c.pt", "a.pt", "sub/b.pt"]
    (tmp_path / "sub" / "b.pt").rename(tmp_path / "b.pt")
    assert names(tmp_path) == ["sub/c.pt", "a.pt", "b.pt"]


def test_a_file_that_replaces_another_moves_up(tmp_path: Path) -> None:
    make(tmp_path, "a.pt", 100)
    make(tmp_path, "b.pt", 50)
    os.utime(tmp_path, (time.time() - 60,) * 2)
    assert names(tmp_path) == ["b.pt", "a.pt"]
    os.replace(make(tmp_path, ".new"), tmp_path / "a.pt")
    assert names(tmp_path) == ["a.pt", "b.pt"]


def test_files_that_vanish_meanwhile_take_no_others_with_them(tmp_path: Path) -> None:
    """A latent that is deleted or renamed while the folder is read must not empty the list."""
    for number in range(300):
        make(tmp_path, f"stays-{number:03}.pt")
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for other in range(30):
                (tmp_path / f"goes-{other}-{number}.pt").touch()
            for other in range(30):
                (tmp_path / f"goes-{other}-{number}.pt").unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        counts = {sum(name.startswith("stays") for name in names(tmp_path)) for _ in range(150)}
    finally:
        stop.set()
        thread.join()
    assert counts == {300}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_no_text_do_no_harm(tmp_path: Path) -> None:
    make(tmp_path, "a.pt")
    (tmp_path / os.fsdecode(b"\xff.pt")).write_bytes(b"x")
    assert "a.pt" in names(tmp_path)


def test_ten_thousand_files(tmp_path: Path) -> None:
    for folder in range(10):
        (tmp_path / str(folder)).mkdir()
        for number in range(1000):
            (tmp_path / str(folder) / f"latent_{number:05}_.safetensors").touch()
    for path in (*tmp_path.iterdir(), tmp_path):
        os.utime(path, (time.time() - 60,) * 2)
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        assert len(names(tmp_path)) == 10_000
        taken.append((time.perf_counter() - start) * 1000)
    print(f"\nlisting 10,000 files: {taken[0]:.0f} ms, again {taken[1]:.0f} ms")
