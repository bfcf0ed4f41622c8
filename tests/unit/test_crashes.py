"""A process that saves through the core is killed at random moments: nothing that looks whole is not."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import torch
from unit.savers import Savers

from latent_encoder.atomic_file import TEMPORARY_PREFIX
from latent_encoder.latent_file import load_latent, save_latent

ROUNDS = 200
SUFFIXES = {".safetensors", ".latent", ".pt", ".npy"}
JOB = {
    "stems": ["one", "two"],
    "modes": ["number", "overwrite"],
    "sizes": [256, 256, 4096, 4096, 65536, 65536, 1 << 20],  # 1 kB to 4 MB
    "formats": ["safetensors", "safetensors", "latent", "pt", "npy"],
}


def check_finished(folder: Path) -> int:
    """Every final name in ``folder`` is a whole file, or stands beside one; the number of latents."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(TEMPORARY_PREFIX)}
    latents = {name for name in names if Path(name).suffix in SUFFIXES}
    for name in latents:
        loaded = load_latent(folder / name)
        least, most = loaded.latent["samples"].aminmax()
        assert least == most, f"{name} mixes two latents"
        value = str(int(most))
        if name + ".json" in names:
            assert loaded.verified, f"{name} has a sidecar without a checksum"
            assert json.loads((folder / f"{name}.json").read_bytes())["request_id"] == value
        if name + ".webp" in names:
            assert (folder / f"{name}.webp").read_text() == value, f"{name} has another latent's preview"
    strays = {name for name in names - latents if name.removesuffix(Path(name).suffix) not in latents}
    assert not strays, f"nothing stands beside {strays}"
    return len(latents)


def test_killed_at_random_moments(savers: Savers, tmp_path: Path) -> None:
    chance = random.Random(4)
    finished = leftovers = locks = 0
    for seed in range(ROUNDS):
        folder = tmp_path / str(seed // 2)  # every second round begins in a folder with files
        folder.mkdir(exist_ok=True)
        pid = savers.start(folder, seed=seed, **JOB)
        time.sleep(chance.uniform(0.002, 0.06))
        savers.kill(pid)
        finished += check_finished(folder)
        left = [path.name for path in folder.iterdir() if path.name.startswith(TEMPORARY_PREFIX)]
        leftovers += len(left)
        locks += sum(name.endswith(".lock") for name in left)
        latent, record = {"samples": torch.zeros(1, 1, 1, 256)}, {"request_id": "0"}
        saved = save_latent(latent, folder, "last", if_exists="overwrite", record=record)
        assert load_latent(saved.path).verified
        assert not [path for path in folder.iterdir() if path.name.startswith(TEMPORARY_PREFIX)]
    print(f"\n{ROUNDS} kills: {finished} whole files seen, {leftovers} leftovers ({locks} locks), all cleared")
    assert finished and leftovers and locks, "the kills came at no interesting moment"
