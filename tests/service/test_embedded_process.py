"""The engine that needs no ComfyUI, in a Python process of its own: what it imports, its memory and its threads."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui.servers import demo_vae

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A models folder with the demo VAE."""
    (tmp_path / "vae").mkdir()
    shutil.copyfile(demo_vae(padded=False), tmp_path / "vae" / "demo_vae.safetensors")
    return tmp_path


def printed(script: str, models: Path, **environment: str) -> str:
    """What the script prints, which is told the models folder."""
    paths = {"PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests")))}
    command = [sys.executable, "-c", script, str(models)]
    values = os.environ | paths | environment
    done = subprocess.run(command, env=values, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


ALONE = """
import re, resource, socket, sys
from pathlib import Path

def refused(*_, **__):
    raise SystemExit("the network was asked")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refused
from latent_encoder.service.engines.embedded import EmbeddedEngine
print(sorted({"torch", "diffusers", "transformers", "huggingface_hub"} & set(sys.modules)))

import pictures
from service.encode_jobs import job_of_bytes as job
from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.engines.base import Call
engine = EmbeddedEngine(Path(sys.argv[1]))
engine.start()
small = job(pictures.png(), "demo_vae.safetensors")
print(engine.encode(small, Call()).record["latent_shape"])

used = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000, -1))
try:
    engine.encode(job(pictures.png(), "demo_vae.safetensors", megapixels=6.0), Call())
except LatentEncoderError as error:
    print(error.code, error.retryable)
print(engine.encode(small, Call()).record["latent_shape"])
"""


def test_no_network_no_early_import_and_too_little_memory(models: Path) -> None:
    """Nothing heavy comes with the module, the network is never asked, and a picture that does not fit into memory is
    an answer, after which the engine goes on."""
    shape = "[1, 16, 1, 15, 20]"
    assert printed(ALONE, models).splitlines() == ["[]", shape, "OUT_OF_MEMORY True", shape]


THREADS = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pictures
from service.encode_jobs import job_of_bytes as job
from latent_encoder.images import UPSCALE_METHODS
from latent_encoder.latent_format import FILE_FORMATS
from latent_encoder.service.engines.base import Call
from latent_encoder.service.engines.embedded import EmbeddedEngine

def others():  # those that Python knows nothing of
    return len(list(Path("/proc/self/task").iterdir())) - threading.active_count()

def encode(**recipe):
    engine.encode(job(pictures.png(1024, 1024), "demo_vae.safetensors", megapixels=0.3, **recipe), Call())

engine = EmbeddedEngine(Path(sys.argv[1]))
engine.start()
encode()
before = others()
recipes = [{"upscale_method": method} for method in UPSCALE_METHODS] + [{"file_format": name} for name in FILE_FORMATS]
with ThreadPoolExecutor(3) as pool:
    for done in [pool.submit(encode, **recipe) for recipe in recipes]:
        done.result()
    print(before, others())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process's threads in /proc")
def test_one_thread_alone_has_helpers_that_compute(models: Path) -> None:
    """Were there more of them than cores, each would sleep and be woken in every part of every layer."""
    before, after = map(int, printed(THREADS, models, OMP_NUM_THREADS="2", CUDA_VISIBLE_DEVICES="").split())
    assert before == after


FAULTS = """
import resource, sys
from pathlib import Path
import pictures
from service.encode_jobs import job_of_bytes as job
from latent_encoder.service.engines.base import Call
from latent_encoder.service.engines.embedded import EmbeddedEngine

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

engine = EmbeddedEngine(Path(sys.argv[1]))
engine.start()
counts = []
for _ in range(15):
    before = faults()
    engine.encode(job(pictures.png(256, 256), "demo_vae.safetensors", megapixels=0.05), Call())
    counts.append(faults() - before)
print(*counts)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is GNU's C library's")
def test_a_small_pictures_memory_is_kept_for_the_next(models: Path) -> None:
    """Were it given back, each encode would have it cleared anew, 2,000 to 4,000 pages."""
    counts = list(map(int, printed(FAULTS, models, CUDA_VISIBLE_DEVICES="").split()))
    assert sorted(counts[5:])[5] < 500, counts
