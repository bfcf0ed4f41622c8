#!/usr/bin/env python3
"""Run the test suites one after the other and say at the end what ran, what was skipped and why.

    python tools/run_suites.py [SUITE ...]

A suite is ``check`` (ruff, mypy) or a folder below ``tests/``. The exit code is 0 only where nothing failed.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("unit", "comfyui", "service", "kafka", "browser", "package")
PARALLEL = {"comfyui": 2, "kafka": 3, "browser": 2, "package": 2}
"""Suites that mostly wait, for sessions that end and pages that settle, and in how many processes they do."""

CHECKS = {
    "ruff check": ("ruff", "check", "."),
    "ruff format": ("ruff", "format", "--check", "."),
    "mypy": ("mypy", "--strict", "latent_encoder"),
}


@dataclass
class Result:
    """What came of one suite."""

    suite: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)


def run_check() -> Result:
    """The static checks; each counts as one test."""
    result = Result("check")
    for name, words in CHECKS.items():
        print(f"-- {name}", flush=True)
        if subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=False).returncode:
            result.failed += 1
        else:
            result.passed += 1
    return result


def run_pytest(suite: str) -> Result:
    """One folder of tests, in a pytest process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        words = ["pytest", f"tests/{suite}", "-m", "not soak", "--durations=5", f"--junit-xml={report}"]
        if suite in PARALLEL:
            words += ["-n", str(PARALLEL[suite]), "--dist", "loadfile"]
            words += ["--max-worker-restart", "0"]  # after a restart xdist waits for the dead one's tests for ever
        code = run_to_its_end([sys.executable, "-m", *words])
        result = read_report(suite, report)
    if code and not result.failed:
        print(f"pytest ended with exit code {code}")
        result.failed = 1  # it broke off, could not start, or found no test
    return result


def run_to_its_end(words: list[str]) -> int:
    """Run a command; Ctrl-C and SIGTERM reach it too, and it may still stop the servers that it has started."""
    stopped, interrupted = threading.Event(), False
    numbers = (signal.SIGINT, signal.SIGTERM)
    # Before the process starts: what a shell runs in the background ignores SIGINT, and would hand that on.
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in numbers}
    try:
        process = subprocess.Popen(words, cwd=ROOT, start_new_session=True)
        while process.poll() is None:
            if stopped.wait(0.2):
                stopped.clear()
                interrupted = True
                process.send_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupted or stopped.is_set():
        raise KeyboardInterrupt
    return process.returncode


def read_report(suite: str, report: Path) -> Result:
    """The counts in a JUnit file; all zero where pytest wrote none."""
    result = Result(suite)
    if not report.is_file():
        return result
    for case in ElementTree.parse(report).iter("testcase"):
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            result.failed += 1
        elif skip is not None:
            result.skipped += 1
            result.reasons[skip.get("message") or "no reason given"] += 1
        else:
            result.passed += 1
    return result


def run(suite: str) -> Result:
    """One suite by its name, timed."""
    print(f"\n== {suite}", flush=True)
    start = time.monotonic()
    result = run_check() if suite == "check" else run_pytest(suite)
    result.seconds = time.monotonic() - start
    return result


def print_table(results: list[Result]) -> None:
    """The table, the reasons for skipping, and the sums alone on the last line."""
    print(f"\n{'suite':<10}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for result in results:
        counts = f"{result.passed:>8}{result.failed:>8}{result.skipped:>9}{result.seconds:>9.0f}"
        print(f"{result.suite:<10}{counts}")
    for result in results:
        for reason, count in result.reasons.most_common():
            print(f"skipped in {result.suite}, {count}: {reason}")
    passed, failed, skipped = (sum(getattr(r, name) for r in results) for name in ("passed", "failed", "skipped"))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")


def main() -> int:
    """Run what the command line names, or everything."""
    available = ["check", *(name for name in FOLDERS if (ROOT / "tests" / name).is_dir())]
    parser = argparse.ArgumentParser(description="Run the test suites and sum them up.")
    parser.add_argument("suites", metavar="SUITE", nargs="*", help=f"of {', '.join(available)}; default: all")
    chosen = parser.parse_args().suites or available
    unknown = [name for name in chosen if name not in available]
    if unknown:
        parser.error(f"no suite {', '.join(unknown)}; there are {', '.join(available)}")
    results = []
    try:
        for suite in chosen:
            results.append(run(suite))
    except KeyboardInterrupt:
        print_table(results)
        print(f"stopped in the suite '{suite}'")
        return 130
    print_table(results)
    return 1 if any(result.failed for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
