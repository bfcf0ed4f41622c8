#!/usr/bin/env python3
"""Measure this pack against its peers; each figure is a ratio or a time from one run in which both sides alternate.

    python benchmarks/run.py [MEASUREMENT ...] [--quick] [--folder FOLDER] [--results FILE]

See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

# For this process only: it never imports ComfyUI, whose `nodes` ours would hide. In place of this folder, whose
# kafka.py would hide that of the tests.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import doors, encode, encoders, import_time, kafka, machine, save, service
from latent_encoder.service.engines.comfyui.checkout import find_comfyui

MEASUREMENTS = {
    "encoders": ("Encoders", encoders.measure),
    "encode": ("Encoding", encode.measure),
    "doors": ("The whole job, by every door", doors.measure),
    "save": ("Saving", save.measure),
    "import": ("The pack's import", import_time.measure),
    "service": ("The service", service.measure),
    "kafka": ("The Kafka worker", kafka.measure),
}
REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "measurements",
        nargs="*",
        metavar="encoders | encode | doors | save | import | service | kafka",
        help="default: all",
    )
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it works, says little")
    parser.add_argument(
        "--folder", type=Path, help="a folder on the disk to measure; default: .cache of the repository"
    )
    parser.add_argument("--results", type=Path, help="write the report here too; default for a full run of all: "
                        "benchmarks/results.md")  # fmt: skip
    options = parser.parse_args()
    chosen = options.measurements or list(MEASUREMENTS)
    if unknown := set(chosen) - set(MEASUREMENTS):
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}")
    comfyui = find_comfyui()
    if comfyui is None:
        parser.error("there is no ComfyUI: set COMFYUI_PATH, or run setup.sh")
    results = options.results
    if results is None and not options.quick and set(chosen) == set(MEASUREMENTS):
        results = RESULTS
    parent = options.folder or REPOSITORY / ".cache"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=parent) as folder:
        report = _report(chosen, comfyui, Path(folder), quick=options.quick)
    if results is not None:
        results.write_text(report, encoding="utf-8")


def _report(chosen: list[str], comfyui: Path, folder: Path, *, quick: bool) -> str:
    date = datetime.now(timezone.utc).date()
    lines = ["# Benchmark results", "", f"{date}{', a quick run' if quick else ''}."]
    lines += [f"- {line}" for line in machine.describe(comfyui, folder)]
    lines += [
        "",
        "Medians (lowest to highest); ratios are taken within a round. docs/benchmarks.md says what each row means.",
    ]
    _show(lines)
    for name in chosen:
        title, measure = MEASUREMENTS[name]
        before = machine.load()
        section = ["", f"## {title}", "", *measure(REPOSITORY, comfyui, folder / name, quick=quick)]
        section += ["", f"Load of the machine: {before} before, {machine.load()} after."]
        _show(section)
        lines += section
    return "\n".join(lines) + "\n"


def _show(lines: list[str]) -> None:
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)  # else ComfyUI's server would inherit it
    main()
