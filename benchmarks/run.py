#!/usr/bin/env python3
"""Measure this pack against its peers; each figure is a ratio or a time from one run in which both sides alternate.

    python benchmarks/run.py [MEASUREMENT ...] [--full] [--quick] [--folder FOLDER] [--write]

See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

# For this process only: it never imports ComfyUI, whose `nodes` ours would hide. In place of this folder, whose
# kafka.py would hide that of the tests.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import doors, encode, encoders, import_time, kafka, machine, results, save, service, start_up
from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.engines.comfyui.checkout import find_comfyui

MEASUREMENTS = {
    "encoders": ("Encoders", encoders.measure),
    "encode": ("Encoding", encode.measure),
    "save": ("Saving and reading", save.measure),
    "import": ("The pack's import", import_time.measure),
    "start": ("Start-up", start_up.measure),
    "doors": ("The whole job, by every door", doors.measure),
    "service": ("The service", service.measure),
    "kafka": ("The Kafka worker", kafka.measure),
}
TITLES = [title for title, _ in MEASUREMENTS.values()]
FULL_ONLY = ("doors", "service", "kafka")
"""What a run leaves out that names no measurement: with them it takes more than 45 minutes on two cores."""

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / f"results{machine.SUFFIX}.md"


def main() -> None:
    options, comfyui = _command_line()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what ends servers and removes folders
    try:
        _run(options, comfyui)
    except KeyboardInterrupt:
        sys.exit(130)


def _run(options: argparse.Namespace, comfyui: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.folder) as folder:
        for name in options.measurements:
            section = _measure(name, comfyui, Path(folder), quick=options.quick)
            print(section, flush=True)
            if options.write:
                results.put(RESULTS, section, TITLES)
                for drawing in Path(folder, name).glob("*.svg"):
                    shutil.copy(drawing, RESULTS.parent)


def _command_line() -> tuple[argparse.Namespace, Path]:
    """The options, ``measurements`` filled in, and ComfyUI's folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurements", nargs="*", metavar=" | ".join(MEASUREMENTS))
    parser.add_argument("--full", action="store_true", help=f"all; without: all but {', '.join(FULL_ONLY)}")
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it works, says little")
    parser.add_argument(
        "--folder",
        type=Path,
        default=REPOSITORY / ".cache",
        help="a folder on the disk to measure; default: .cache of the repository",
    )
    parser.add_argument("--write", action="store_true", help=f"put what was measured into benchmarks/{RESULTS.name}")
    options = parser.parse_args()
    if unknown := set(options.measurements) - set(MEASUREMENTS):
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}")
    if options.quick and options.write:
        parser.error("the figures of a quick run say too little to be kept: --quick or --write")
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        comfyui = find_comfyui()
    except (OSError, LatentEncoderError) as error:
        parser.error(str(error))
    if comfyui is None:
        parser.error("there is no ComfyUI: set COMFYUI_PATH, or run setup.sh")
    usual = [name for name in MEASUREMENTS if options.full or name not in FULL_ONLY]
    options.measurements = list(dict.fromkeys(options.measurements)) or usual
    return options, comfyui


def _measure(name: str, comfyui: Path, folder: Path, *, quick: bool) -> str:
    """One section of the report."""
    title, measure = MEASUREMENTS[name]
    (hardware, software), before = machine.describe(comfyui, folder), machine.load()
    date = machine.today() + (", a quick run" if quick else "")
    lines = measure(REPOSITORY, comfyui, folder / name, quick=quick)
    about = [f"{date}; {hardware}; load {before} before, {machine.load()} after.", f"{software}."]
    return results.section(title, about, lines)


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)  # else ComfyUI's server would inherit it
    main()
