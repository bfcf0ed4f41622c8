"""Times four ways to put a latent on the disk, and where the time of ours goes.

ComfyUI's process is the place to measure: our code runs there, beside ComfyUI's own SaveLatent.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import host

answers = host.start()

import folder_paths  # noqa: E402  ComfyUI's
import torch  # noqa: E402

import nodes  # noqa: E402

state: dict[str, Any] = {}


def prepare(pack: str, folder: str, shape: list[int], prompt: dict[str, Any]) -> dict[str, Any]:
    """Make the latent, and the bytes of our file of it, which the bare ways write."""
    if "save_latent" not in state:
        host.load_pack(pack)
        state["save_latent"] = importlib.import_module(
            host.module_name(pack) + ".latent_encoder.latent_file"
        ).save_latent
    folder_paths.set_output_directory(folder)
    state.update(folder=Path(folder), prompt=prompt, stock=nodes.SaveLatent())
    state["latent"] = {"samples": torch.randn(shape, generator=torch.Generator().manual_seed(0))}
    path = ours("prepare")
    state["payload"] = path.read_bytes()
    _clear()
    return {"latent_bytes": state["latent"]["samples"].nbytes, "file_bytes": len(state["payload"])}


def ours(stem: str) -> Path:
    metadata = {"prompt": json.dumps(state["prompt"])}
    return state["save_latent"](state["latent"], state["folder"], stem, record={}, metadata=metadata).path


def stock(stem: str) -> None:
    state["stock"].save(state["latent"], stem, prompt=state["prompt"])


def bare(stem: str) -> None:
    _write_and_sync(state["folder"] / stem)


def placed(stem: str) -> None:
    """The least that a whole file under a new name needs, whatever fails when."""
    temporary, final = state["folder"] / f"{stem}.tmp", state["folder"] / stem
    _write_and_sync(temporary)
    os.link(temporary, final)
    os.unlink(temporary)
    _sync_folder()


def run(way: str, stem: str) -> float:
    """The seconds of one save to a new name. What it leaves to the system is flushed and removed after that."""
    save = {"ours": ours, "stock": stock, "bare": bare, "placed": placed}[way]
    begin = time.perf_counter()
    save(stem)
    seconds = time.perf_counter() - begin
    _clear()
    return seconds


def parts(stem: str) -> dict[str, float]:
    """The seconds of one save of ours, and of its parts. The checksums run beside the writing and syncing."""
    with _stopwatch() as spent:
        begin = time.perf_counter()
        ours(stem)
        total = time.perf_counter() - begin
    _clear()
    hashes = sorted((value for name, value in spent.items() if name.startswith("sha256")), reverse=True)
    here = {name: value for name, value in spent.items() if not name.startswith("sha256")}
    rest = total - sum(here.values())
    beside = {"beside: sha256, slower pass": hashes[0], "beside: sha256, other pass": hashes[1]}
    return {"total": total, **here, "rest: waiting for checksums, Python": rest, **beside}


@contextlib.contextmanager
def _stopwatch() -> Iterator[dict[str, float]]:
    """Sums up what the calls into the system and into hashlib take while it is open, by what they do."""
    spent: dict[str, float] = defaultdict(float)
    new_hash, fsync = hashlib.sha256, os.fsync

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                spent[name] += time.perf_counter() - begin

        return call

    def timed_fsync(descriptor: int) -> None:
        kind = "fsync of the folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "fsync of the file"
        timed(kind, fsync)(descriptor)

    class TimedHash:
        def __init__(self, *data: bytes) -> None:
            name = f"sha256 {id(self)} {len(spent)}"
            self._hash = timed(name, new_hash)(*data)
            self.update = timed(name, self._hash.update)
            self.hexdigest = self._hash.hexdigest

    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(os, "fsync", timed_fsync))
        stack.enter_context(patch.object(hashlib, "sha256", TimedHash))
        stack.enter_context(patch.object(os, "write", timed("write", os.write)))
        for name in ("open", "link", "unlink", "replace", "close"):
            stack.enter_context(patch.object(os, name, timed("open, link, unlink, close", getattr(os, name))))
        yield spent


def _write_and_sync(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    rest = memoryview(state["payload"])
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)
    os.close(descriptor)


def _sync_folder() -> None:
    descriptor = os.open(state["folder"], os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _clear() -> None:
    """Remove the files, and let the disk settle: else one way would pay for another's unwritten pages."""
    for path in state["folder"].iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        path.unlink()
    _sync_folder()


def answer(do: str, **arguments: Any) -> Any:
    return {"prepare": prepare, "run": run, "parts": parts}[do](**arguments)


host.serve(answer, answers)
