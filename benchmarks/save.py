"""Saving a latent and reading it again: ours against ComfyUI's nodes, torch.save and npz, and against the least that
puts the same bytes on the disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from benchmarks import material
from benchmarks.hosted import HostedProcess
from benchmarks.timing import Spread, interleave, ratio, table

ROUNDS = 21
SHAPES = {"0.25 MB": [1, 16, 64, 64], "2 MB": [1, 16, 128, 256], "64 MB": [1, 16, 16, 256, 256]}  # float32
WAYS = {
    "ours": "save_latent",
    "stock": "ComfyUI's SaveLatent: no sync, no checksum",
    "torch": "torch.save: no sync, no checksum",
    "npz": "numpy.savez: no sync",
    "bare": "write, fsync",
    "placed": "write, fsync, link, fsync of the folder",
}

READERS = {
    "ours": "load_latent: checks the checksum",
    "stock": "ComfyUI's LoadLatent",
    "torch": "torch.load, weights only",
    "npz": "numpy.load",
}


def measure(repository: Path, comfyui: Path, folder: Path, *, quick: bool) -> list[str]:
    """Run it; returns the report's lines."""
    material.base_directory(folder, repository)
    pack = folder / "custom_nodes" / "latent-encoder"
    prompt = json.loads((repository / "workflows" / "api" / "encode.json").read_text(encoding="utf-8"))
    rounds = 3 if quick else ROUNDS
    times: dict[str, dict[str, list[float]]] = {}
    reads: dict[str, dict[str, list[float]]] = {}
    parts: dict[str, list[dict[str, float]]] = {}
    with HostedProcess("saves.py", comfyui, folder) as process:
        for size, shape in SHAPES.items():
            process.call(do="prepare", pack=str(pack), folder=str(folder), shape=shape, prompt=prompt)
            times[size] = interleave({way: _writer(process, way) for way in WAYS}, rounds, warm_up=True)
            reads[size] = interleave({way: _reader(process, way) for way in READERS}, rounds, warm_up=True)
            parts[size] = [process.call(do="parts", stem=f"parts{number}") for number in range(rounds)]
    return [
        f"Milliseconds, {rounds} rounds, each to a new name in one folder; without preview.",
        "",
        *_times_table(WAYS, times),
        "",
        *_ratio_table("save_latent takes", WAYS, times),
        "",
        "Target: at most 1.15x of write, fsync.",
        "",
        "Where the time of save_latent goes, measured apart from the above. "
        "Its two checksums run on a second thread, beside the rest.",
        "",
        *_parts_table(parts),
        "",
        "Reading a file that the system still has in memory, and adding up its numbers:",
        "",
        *_times_table(READERS, reads),
        "",
        *_ratio_table("load_latent takes", READERS, reads),
    ]


def _writer(process: HostedProcess, way: str) -> Callable[[int], float]:
    return lambda number: process.call(do="run", way=way, stem=f"{way}{number}")


def _reader(process: HostedProcess, way: str) -> Callable[[int], float]:
    return lambda number: process.call(do="read", way=way)


def _times_table(ways: dict[str, str], times: dict[str, dict[str, list[float]]]) -> list[str]:
    rows = [[name, *(Spread.of(times[size][way]).milliseconds for size in SHAPES)] for way, name in ways.items()]
    return table(["", *SHAPES], rows)


def _ratio_table(head: str, ways: dict[str, str], times: dict[str, dict[str, list[float]]]) -> list[str]:
    rows = [
        [f"of {name}", *(ratio(times[size], "ours", way).ratio for size in SHAPES)]
        for way, name in ways.items()
        if way != "ours"
    ]
    return table([head, *SHAPES], rows)


def _parts_table(parts: dict[str, list[dict[str, float]]]) -> list[str]:
    names = dict.fromkeys(name for samples in parts.values() for sample in samples for name in sample)
    rows = [
        [name, *(Spread.of([sample.get(name, 0.0) for sample in samples]).milliseconds for samples in parts.values())]
        for name in names
    ]
    return table(["", *parts], rows)
