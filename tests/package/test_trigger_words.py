"""No file of node.zip holds a text that the registry's scan stops a version for, be it in a comment.

The scan compares texts and knows no context, so a version with one of them waits for a person, for days. What is on the
list is not called by another name here: the pack has no need of it.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

TEXTS = {".py", ".js", ".mjs", ".css", ".json", ".md", ".toml", ".txt", ".svg"}
TRIGGERS = {
    "processes": r"\bsubprocess\b|\bos\.(system|popen|spawn|exec|fork)|\bpopen\b",
    "commands that fetch": r"(?<![\w-])(curl|wget|ffmpeg|ffprobe)(?![\w-])",
    "environment": r"\benviron\b|\bgetenv\b|\bputenv\b",
    "network": r"\burllib|\burlopen\b|\bhttp\.client\b|\bsocket\.|\bClientSession\b|\bgethost|\bgettempdir\b",
    "network calls": r"\.(connect|bind|send|sendall|recv)\(",
    "HTTP calls": r"\brequests\.(get|post|put|patch|delete|head|request|Session)\b",
    "addresses": r"raw\.githubusercontent\.com|https?://[^/@\s\"'`]+:[^/@\s\"'`]+@",
    "databases": r"\bsqlite3\b",
    "code": r"\beval\(|\bexec\(|\bcompile\([^)]*[\"']exec|\bnew Function\b",
    "imports by name": r"\b__import__\b|\bimport_module\b|\bsys\.modules\b",
    "objects": r"\bpickle\.load|\bmarshal\b",
}
ONLY_IN_PYTHON = {"commands that fetch"}
"""The README says how to use the HTTP API by hand."""

LONGEST_LINE = 1000
"""Characters of a script's line; what a bundler has made has longer ones."""


def hits(name: str, text: str) -> list[str]:
    """Each line with such a text, as ``file:line (kind): line``."""
    lines = enumerate(text.splitlines(), start=1)
    return [
        f"{name}:{number} ({kind}): {line.strip()[:120]}"
        for number, line in lines
        for kind, pattern in TRIGGERS.items()
        if re.search(pattern, line) and (name.endswith(".py") or kind not in ONLY_IN_PYTHON)
    ]


@pytest.fixture(scope="module")
def texts(node_zip: Path) -> dict[str, str]:
    """The archive's text files."""
    with zipfile.ZipFile(node_zip) as archive:
        names = [name for name in archive.namelist() if Path(name).suffix in TEXTS]
        return {name: archive.read(name).decode("utf-8") for name in names}


def test_no_file_holds_a_trigger_word(texts: dict[str, str]) -> None:
    assert {Path(name).suffix for name in texts} >= {".py", ".mjs", ".json", ".md"}
    found = [hit for name, text in texts.items() for hit in hits(name, text)]
    assert not found, "\n".join(found)


def test_no_script_is_bundled(texts: dict[str, str]) -> None:
    scripts = {name: text for name, text in texts.items() if Path(name).suffix in {".js", ".mjs"}}
    assert [name for name in scripts if ".min." in name or "/dist/" in name] == []
    long = [name for name, text in scripts.items() if max(map(len, text.splitlines()), default=0) > LONGEST_LINE]
    assert long == []


@pytest.mark.parametrize(
    "line",
    [
        "# a subprocess would do",
        "os.system(command)",
        "value = os.environ['HOME']",
        "os.getenv('HOME')",
        "# as ffmpeg does",
        "from urllib.request import urlopen",
        "requests.get(url)",
        "import http.client",
        "socket.socket()",
        "aiohttp.ClientSession()",
        "link.connect(target)",
        "callback.bind(this)",
        "producer.send(message)",
        "peer.recv(1)",
        "import sqlite3",
        "importlib.import_module(name)",
        "sys.modules[name]",
        "https://raw.githubusercontent.com/a/b",
        "__import__('os')",
        "pickle.loads(data)",
        "import marshal",
        "eval(text)",
        "exec(text)",
    ],
)
def test_the_search_finds_each(line: str) -> None:
    assert hits("file.py", line)


@pytest.mark.parametrize(
    "line", ["producer.produce(topic)", "latent-encoder-requests", "websockets>=14", "max.in.flight.requests.per"]
)
def test_the_search_finds_nothing_else(line: str) -> None:
    assert hits("file.py", line) == []
