"""Saving a latent: ours against ComfyUI's SaveLatent, and against the least that puts the same bytes on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.hosted import HostedProcess
from benchmarks.timing import Spread, interleave, ratio, table

ROUNDS = 21
SHAPES = {"0.25 MB": [1, 16, 64, 64], "2 MB": [1, 16, 128, 256], "64 MB": [1, 16, 16, 256, 256]}  # float32
WAYS = {
    "ours": "save_latent",
    "stock": "ComfyUI's SaveLatent: no sync, no checksum",
    "bare": "write, fsync",
    "placed": "write, fsync, link, fsync of the folder",
}


def measure(repository: Path, comfyui: Path, folder: Path, *, quick: bool) -> list[str]:
    """Run it; returns the report's lines."""
    (folder / "saved").mkdir(parents=True)
    (folder / "custom_nodes").mkdir()
    pack = folder / "custom_nodes" / "latent-encoder"
    pack.symlink_to(repository)
    prompt = json.loads((repository / "workflows" / "api" / "encode.json").read_text(encoding="utf-8"))
    rounds = 3 if quick else ROUNDS
    times: dict[str, dict[str, list[float]]] = {}
    parts: dict[str, list[dict[str, float]]] = {}
    with HostedProcess("saves.py", comfyui, folder) as process:
        for size, shape in SHAPES.items():
            process.call(do="prepare", pack=str(pack), folder=str(folder / "saved"), shape=shape, prompt=prompt)
            arms = {way: _arm(process, way) for way in WAYS}
            for arm in arms.values():
                arm(-1)
            times[size] = interleave(arms, rounds)
            parts[size] = [process.call(do="parts", stem=f"parts{number}") for number in range(rounds)]
    return [
        f"Milliseconds, {rounds} rounds, each to a new name in one folder; without preview.",
        "",
        *table(
            ["", *SHAPES],
            [[name, *(Spread.of(times[size][way]).milliseconds for size in SHAPES)] for way, name in WAYS.items()],
        ),
        "",
        *table(
            ["save_latent takes", *SHAPES],
            [
                [f"of {name}", *(ratio(times[size], "ours", way).ratio for size in SHAPES)]
                for way, name in WAYS.items()
                if way != "ours"
            ],
        ),
        "",
        "Target: at most 1.15x of write, fsync.",
        "",
        "Where the time of save_latent goes, measured apart from the above. "
        "Its two checksums run on a second thread, beside the rest.",
        "",
        *_parts_table(parts),
    ]


def _arm(process: HostedProcess, way: str) -> Any:
    return lambda number: process.call(do="run", way=way, stem=f"{way}{number}")


def _parts_table(parts: dict[str, list[dict[str, float]]]) -> list[str]:
    names = dict.fromkeys(name for samples in parts.values() for sample in samples for name in sample)
    rows = [
        [name, *(Spread.of([sample.get(name, 0.0) for sample in samples]).milliseconds for samples in parts.values())]
        for name in names
    ]
    return table(["", *parts], rows)
