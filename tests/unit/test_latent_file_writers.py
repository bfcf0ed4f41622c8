"""Latents on disk: many writers at once, and disks that refuse."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from unit.conftest import mount
from unit.latents_on_disk import (
    FORMATS,
    LATENT,
    RECORD,
    SAMPLES,
    names_in,
    refused_save,
)
from unit.odd_latents import assert_same
from unit.savers import Savers

from latent_encoder import records
from latent_encoder.errors import LatentEncoderError
from latent_encoder.latent_file import load_latent, save_latent

# Many writers


def test_many_processes_with_one_name(savers: Savers, tmp_path: Path) -> None:
    pids = [
        savers.start(tmp_path, seed=n, stems=["one"], modes=["number"], sizes=[256], formats=["safetensors"], count=20)
        for n in range(8)
    ]
    assert [savers.wait(pid) for pid in pids] == [0] * 8
    latents = {name for name in names_in(tmp_path) if name.endswith(".safetensors")}
    assert latents == {f"one_{number:05}_.safetensors" for number in range(1, 161)}, "distinct, and without a gap"
    for name in latents:
        check_consistent(tmp_path / name)
    allowed = {name + suffix for name in latents for suffix in ("", ".json", ".webp")}
    assert names_in(tmp_path) <= allowed, "nothing temporary is left"


def test_overwriters_of_one_name(savers: Savers, tmp_path: Path) -> None:
    for _ in range(4):
        pids = [
            savers.start(
                tmp_path, seed=n, stems=["one"], modes=["overwrite"], sizes=[256, 65536], formats=["pt"], count=5
            )
            for n in range(6)
        ]
        assert [savers.wait(pid) for pid in pids] == [0] * 6
        check_consistent(tmp_path / "one.pt")
    assert names_in(tmp_path) <= {"one.pt", "one.pt.json", "one.pt.webp"}


def check_consistent(path: Path) -> None:
    """File, sidecar and preview are those of one save."""
    loaded = load_latent(path)
    value = str(int(loaded.latent["samples"].max()))
    assert loaded.verified and loaded.record["request_id"] == value
    preview = path.with_name(path.name + ".webp")
    assert not preview.exists() or preview.read_text() == value


def test_a_reader_during_overwrites(savers: Savers, tmp_path: Path) -> None:
    """A reader sees one latent or the next, whole; never a damaged one, and never none."""
    save_latent(
        {"samples": torch.zeros(1, 1, 1, 256)}, tmp_path, "one", if_exists="overwrite", record={"request_id": "0"}
    )
    job: dict[str, Any] = {"stems": ["one"], "modes": ["overwrite"], "sizes": [256, 4096], "formats": ["safetensors"]}
    pids = [savers.start(tmp_path, seed=n, **job) for n in range(2)]
    seen: Counter[str] = Counter()
    end = time.monotonic() + 3
    while time.monotonic() < end:
        try:
            loaded = load_latent(tmp_path / "one.safetensors")
        except LatentEncoderError as error:
            seen[f"{error.code}: {error.message}"] += 1
        else:
            seen["verified" if loaded.verified else "unverified"] += 1
            assert loaded.record["request_id"] == str(int(loaded.latent["samples"].max()))
    for pid in pids:
        savers.kill(pid)
    print(f"\na reader during overwrites saw {dict(seen)}")
    assert set(seen) <= {"verified", "unverified"} and seen["verified"]


def test_a_file_replaced_between_reading_it_and_its_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interleaving that the test above meets by chance, forced."""
    path = save_latent(LATENT, tmp_path, "a", if_exists="overwrite").path
    other = {"samples": SAMPLES.flip(3)}
    real, replaced = records.read_regular_file, threading.Event()

    def read_then_replace(*arguments: Any, **options: Any) -> bytes:
        data = real(*arguments, **options)
        if not replaced.is_set():
            replaced.set()
            save_latent(other, tmp_path, "a", if_exists="overwrite")
        return data

    monkeypatch.setattr(records, "read_regular_file", read_then_replace)
    loaded = load_latent(path)
    assert_same(loaded.latent, other if loaded.verified else LATENT)


def test_threads_with_one_name(tmp_path: Path) -> None:
    def save() -> None:
        for _ in range(10):
            saved.append(save_latent(LATENT, tmp_path, "a", preview=b"p").path.name)

    saved: list[str] = []
    threads = [threading.Thread(target=save) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(saved) == [f"a_{number:05}_.safetensors" for number in range(1, 41)]
    assert len(names_in(tmp_path)) == 120


# Disks that refuse


BIG = {"samples": torch.zeros(1, 4, 512, 512)}  # 4 MB


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_full_disk(file_format: str, small_disk: Path) -> None:
    assert refused_save(small_disk, BIG, file_format=file_format) == "DISK_FULL"
    assert refused_save(small_disk, BIG, file_format=file_format, if_exists="overwrite") == "DISK_FULL"
    assert save_latent(LATENT, small_disk, "small", file_format=file_format).path.exists()


def test_a_disk_without_room_for_the_sidecar(small_disk: Path) -> None:
    """What was there before stays as it was."""
    first = save_latent(LATENT, small_disk, "a", if_exists="overwrite", preview=b"p")
    preview = b"p" * (1 << 20)
    assert refused_save(small_disk, if_exists="overwrite", preview=preview) == "DISK_FULL"
    assert refused_save(small_disk, preview=preview) == "DISK_FULL"
    assert load_latent(first.path).verified and load_latent(first.path).record == first.record
    assert (small_disk / "a.safetensors.webp").read_bytes() == b"p"


def test_a_disk_that_fills_up_to_the_last_byte(small_disk: Path) -> None:
    """At whichever write the room ends, nothing half is left."""
    filler = small_disk / "filler"
    codes = set()
    for free in range(0, 40_960, 4096):
        filler.write_bytes(b"")
        room = os.statvfs(small_disk)
        filler.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - free)))
        try:
            saved = save_latent(
                {"samples": torch.zeros(2048)}, small_disk, "a", if_exists="overwrite", preview=b"p" * 5000
            )
        except LatentEncoderError as error:
            codes.add(error.code)
            assert names_in(small_disk) <= {"filler", "a.safetensors", "a.safetensors.json", "a.safetensors.webp"}
        else:
            codes.add("saved")
            assert load_latent(saved.path).verified
    assert codes == {"DISK_FULL", "saved"}


def test_a_read_only_disk(small_disk: Path) -> None:
    first = save_latent(LATENT, small_disk, "a", if_exists="overwrite")
    mount(small_disk, "-o", "remount,ro")
    for if_exists in ("number", "overwrite", "fail"):
        assert refused_save(small_disk, if_exists=if_exists) == "OUTPUT_DIR_NOT_WRITABLE"
    assert refused_save(small_disk / "new") == "OUTPUT_DIR_NOT_WRITABLE"
    assert load_latent(first.path).verified


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert refused_save(tmp_path / "file") == "OUTPUT_DIR_NOT_WRITABLE"
    assert refused_save(tmp_path / "file" / "sub") == "OUTPUT_DIR_NOT_WRITABLE"
    assert (
        refused_save(Path("/proc/latents") if sys.platform == "linux" else tmp_path / "file")
        == "OUTPUT_DIR_NOT_WRITABLE"
    )
    (tmp_path / "a.safetensors").mkdir()
    assert refused_save(tmp_path, if_exists="overwrite") == "OUTPUT_DIR_NOT_WRITABLE"
    assert refused_save(tmp_path, if_exists="fail") == "FILE_EXISTS"


def test_the_fine_print_of_errors_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    """A message goes to clients: it says the folder's name, not where it lies."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LatentEncoderError) as caught:
        save_latent(LATENT, tmp_path / "file" / "sub", "a")
    assert str(tmp_path) not in str(caught.value)


def test_the_plain_python_of_the_specification(tmp_path: Path) -> None:
    """The reader that ``docs/latent-file.md`` prints works as it stands there."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "latent-file.md").read_text()
    program = page.split("```python\n")[1].split("```")[0]
    path = save_latent(LATENT, tmp_path, "a", record=RECORD).path
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert RECORD["vae_name"] in done.stdout and "[1, 4, 6, 8]" in done.stdout


def test_a_file_system_that_cannot_sync_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems answer EINVAL there: the file is placed, so the save has succeeded."""
    real = os.fsync

    def no_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", no_folders)
    assert load_latent(save_latent(LATENT, tmp_path, "a").path).verified
