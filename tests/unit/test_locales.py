"""The words of the nodes and of the editor extension in every language, checked without ComfyUI."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCALES = ROOT / "locales"
WEB = ROOT / "web"
ENGLISH = "en"
LANGUAGES = ["zh", "ja", "ko", "fr", "ru", "es"]
FILES = ["main.json", "nodeDefs.json"]
EXTENSION = "latentEncoder"  # the extension's words in main.json
TRANSLATED = 0.8  # the least share: names of types and "vae" stay as they are

PLACEHOLDER = re.compile(r"\{[^}]*\}|%\w+%")  # of scripts; of file names
# What a call of text() may get, as in text(large ? "tooLarge" : "uploadFailed", ...), and the rows of a table().
TEXT_ARGUMENT = re.compile(r"(?<![.\w])text\(([^,)]*)")
TABLE_ROWS = re.compile(r"(?<![.\w])table\(\[(.*?)\]\)", re.DOTALL)
ROW_KEY = re.compile(r"\[\s*([\"'`]\w+[\"'`])\s*,")
QUOTED = re.compile(r"([\"'`])(\w+)\1")


def strings(language: str, file: str) -> dict[tuple[str, ...], str]:
    """Every string of a language's file by its nested key."""
    found: dict[tuple[str, ...], str] = {}

    def walk(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, dict):
            assert value, path
            for key, each in value.items():
                walk(each, (*path, key))
        else:
            assert isinstance(value, str), path
            found[path] = value

    walk(json.loads((LOCALES / language / file).read_text(encoding="utf-8")), ())
    return found


def quoted(script: str) -> set[str]:
    """The single words that stand in quotes."""
    return {word for _, word in QUOTED.findall(script)}


def text_keys(script: str) -> set[str]:
    """The keys of the words that a script shows, as far as they are written where they are used."""
    rows = " ".join(key for table in TABLE_ROWS.findall(script) for key in ROW_KEY.findall(table))
    return quoted(" ".join(TEXT_ARGUMENT.findall(script))) | quoted(rows)


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    """The extension's scripts by their place in ``web``."""
    paths = [path for suffix in ("js", "mjs") for path in sorted(WEB.rglob(f"*.{suffix}"))]
    return {path.relative_to(WEB).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_every_language_is_checked() -> None:
    assert {path.name for path in LOCALES.iterdir()} == {ENGLISH, *LANGUAGES}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_keys_are_those_of_english(language: str, file: str) -> None:
    english, other = strings(ENGLISH, file), strings(language, file)
    assert sorted(english.keys() - other.keys()) == []
    assert sorted(other.keys() - english.keys()) == []


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_placeholders_are_those_of_english(language: str, file: str) -> None:
    english, other = strings(ENGLISH, file), strings(language, file)
    for key in english.keys() & other.keys():
        assert set(PLACEHOLDER.findall(other[key])) == set(PLACEHOLDER.findall(english[key])), key


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("language", [ENGLISH, *LANGUAGES])
def test_no_string_is_empty(language: str, file: str) -> None:
    assert [key for key, value in strings(language, file).items() if not value.strip()] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_nodes_are_translated(language: str) -> None:
    english, other = strings(ENGLISH, "nodeDefs.json"), strings(language, "nodeDefs.json")
    same = [key for key, value in english.items() if other.get(key, value) == value]
    assert len(same) <= (1 - TRANSLATED) * len(english), same


def test_the_scripts_use_the_words_that_there_are(scripts: dict[str, str]) -> None:
    keys = {key for extension, key in strings(ENGLISH, "main.json") if extension == EXTENSION}
    used = {(name, key) for name, script in scripts.items() for key in text_keys(script)}
    assert {"saved", "tooLarge", "checksum", "payload"} <= {key for _, key in used}  # each way of using one is seen
    assert sorted((name, key) for name, key in used if key not in keys) == []
    assert sorted(keys - set().union(*map(quoted, scripts.values()))) == []
