"""How long the pack's import takes at ComfyUI's start, and what it imports besides itself.

Each process loads ComfyUI as ``main.py`` does, then a pack without nodes, then ours. ComfyUI imports its own code for
packs with the first one, which is no cost of ours; a second pack without nodes shows the floor.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks import material
from benchmarks.hosted import HostedProcess
from benchmarks.timing import Spread, table

PROCESSES = 5
PACK_PARTS = ("__init__.py", "pyproject.toml", "nodes", "latent_encoder")
EMPTY_PACK = """from comfy_api.latest import ComfyExtension

class Empty(ComfyExtension):
    async def get_node_list(self):
        return []

async def comfy_entrypoint():
    return Empty()
"""


def measure(repository: Path, comfyui: Path, folder: Path, *, quick: bool) -> list[str]:
    """Run it; returns the report's lines."""
    pack = _install(repository, folder / "packs" / "latent-encoder")
    neighbours = [_empty_pack(folder / "packs" / name) for name in ("first", "second")]
    base = folder / "import"
    material.base_directory(base)
    ours, empty = [], []
    foreign: dict[str, str] = {}
    for _ in range((2 if quick else PROCESSES) + 1):
        with HostedProcess("pack_import.py", comfyui, base) as process:
            process.call(folder=str(neighbours[0]))
            empty.append(process.call(folder=str(neighbours[1]))["seconds"])
            answer = process.call(folder=str(pack))
            ours.append(answer["seconds"])
            foreign |= answer["foreign"]
    first, *ours = ours  # the first one also compiled
    _, *empty = empty
    others = ", ".join(f"{name} (by {importer})" for name, importer in foreign.items())
    return [
        f"Milliseconds, {len(ours)} processes.",
        "",
        *table(
            ["", "median (lowest to highest)"],
            [
                ["this pack", Spread.of(ours).milliseconds],
                ["a pack without nodes", Spread.of(empty).milliseconds],
                ["this pack, first start after install: compiles too", Spread.of([first]).milliseconds.split()[0]],
            ],
        ),
        "",
        f"Target: this pack below 20 ms. Modules that it imports and ComfyUI has not loaded: {others or 'none'}.",
    ]


def _install(repository: Path, target: Path) -> Path:
    """What a user has of the pack, without compiled files."""
    target.mkdir(parents=True)
    for part in PACK_PARTS:
        if (repository / part).is_dir():
            shutil.copytree(repository / part, target / part, ignore=shutil.ignore_patterns("__pycache__", "service"))
        else:
            shutil.copy(repository / part, target)
    return target


def _empty_pack(target: Path) -> Path:
    target.mkdir(parents=True)
    (target / "__init__.py").write_text(EMPTY_PACK, encoding="utf-8")
    (target / "pyproject.toml").write_text('[project]\nname = "empty"\nversion = "1.0.0"\n', encoding="utf-8")
    return target
