"""The report: sections that each say when and where they were measured, and the file that keeps the last of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

HEAD = (
    "# Benchmark results\n\n"
    "Medians (lowest to highest); ratios are taken within a round. docs/benchmarks.md says what each row means.\n"
)


def section(title: str, about: Sequence[str], lines: Sequence[str]) -> str:
    """One measurement's part of the report.

    Args:
        about: when and where it was measured.
        lines: what came out.
    """
    return "\n".join([f"## {title}", "", *about, "", *lines, ""])


def put(path: Path, section: str, titles: Sequence[str]) -> None:
    """Put a section into the file, in the place of the one that has its title; all others stay.

    Args:
        titles: the order of the sections.
    """
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    _, *parts = re.split(r"^(?=## )", before, flags=re.MULTILINE)
    sections = {_title(part): part.rstrip() + "\n" for part in [*parts, section]}
    known = [title for title in titles if title in sections]
    others = [title for title in sections if title not in titles]
    path.write_text("\n".join([HEAD, *(sections[title] for title in known + others)]), encoding="utf-8")


def _title(section: str) -> str:
    return section.partition("\n")[0].removeprefix("## ")
