"""Times ways to put a latent on the disk and to read it again, and where the time of our saving goes.

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
import numpy as np  # noqa: E402
import torch  # noqa: E402

import nodes  # noqa: E402

state: dict[str, Any] = {}


def prepare(pack: str, folder: str, shape: list[int], prompt: dict[str, Any]) -> dict[str, Any]:
    """Make the latent, the bytes of our file of it, which the bare ways write, and a file of each kind to read."""
    if "module" not in state:
        host.load_pack(pack)
        state["module"] = importlib.import_module(host.module_name(pack) + ".latent_encoder.latent_file")
    state.update(prompt=prompt, loader=nodes.LoadLatent())
    state["latent"] = {"samples": torch.randn(shape, generator=torch.Generator().manual_seed(0))}
    _go_to(Path(folder, "read"))
    _clear()
    state["to_read"] = {way: WRITE[way](way) for way in READ}
    state["payload"] = state["to_read"]["ours"].read_bytes()
    _go_to(Path(folder, "saved"))
    return {"latent_bytes": state["latent"]["samples"].nbytes, "file_bytes": len(state["payload"])}


def _go_to(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    state["folder"] = folder
    folder_paths.set_output_directory(str(folder))
    state["saver"] = nodes.SaveLatent()  # which keeps the folder of this moment


def ours(stem: str) -> Path:
    metadata = {"prompt": json.dumps(state["prompt"])}
    return state["module"].save_latent(state["latent"], state["folder"], stem, record={}, metadata=metadata).path


def stock(stem: str) -> Path:
    state["saver"].save(state["latent"], stem, prompt=state["prompt"])
    return state["folder"] / f"{stem}_00001_.latent"


def torch_save(stem: str) -> Path:
    path = state["folder"] / f"{stem}.pt"
    torch.save(state["latent"], path)
    return path


def npz(stem: str) -> Path:
    path = state["folder"] / f"{stem}.npz"
    np.savez(path, samples=state["latent"]["samples"].numpy())
    return path


def bare(stem: str) -> Path:
    path = state["folder"] / stem
    _write_and_sync(path)
    return path


def placed(stem: str) -> Path:
    """The least that a whole file under a new name needs, whatever fails when."""
    temporary, final = state["folder"] / f"{stem}.tmp", state["folder"] / stem
    _write_and_sync(temporary)
    os.link(temporary, final)
    os.unlink(temporary)
    _sync_folder()
    return final


def read_ours(path: Path) -> torch.Tensor:
    loaded = state["module"].load_latent(path)
    if not loaded.verified:
        raise RuntimeError(f"{path.name} was not verified")
    return loaded.latent["samples"]


def read_stock(path: Path) -> torch.Tensor:
    folder_paths.set_input_directory(str(path.parent))
    return state["loader"].load(path.name)[0]["samples"]


WRITE = {"ours": ours, "stock": stock, "torch": torch_save, "npz": npz, "bare": bare, "placed": placed}
READ: dict[str, Callable[[Path], torch.Tensor]] = {
    "ours": read_ours,
    "stock": read_stock,
    "torch": lambda path: torch.load(path, weights_only=True)["samples"],
    "npz": lambda path: torch.from_numpy(np.load(path)["samples"]),
}


def read(way: str) -> float:
    """The seconds from a file that the system has in memory to the sum of its numbers: some ways only map the file."""
    begin = time.perf_counter()
    READ[way](state["to_read"][way]).sum()
    return time.perf_counter() - begin


def run(way: str, stem: str) -> float:
    """The seconds of one save to a new name. What it leaves to the system is flushed and removed after that."""
    begin = time.perf_counter()
    WRITE[way](stem)
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
    return {"prepare": prepare, "run": run, "read": read, "parts": parts}[do](**arguments)


host.serve(answer, answers)
