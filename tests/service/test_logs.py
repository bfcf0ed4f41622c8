"""Log lines, for people and for programs."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator

import pytest

from latent_encoder.service import logs


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    for name in logs.CHATTY:
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_json_lines_carry_the_ids_as_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    logger = logging.getLogger("latent_encoder.some")
    logger.info("took %d s\n", 3, extra={"request_id": "r1", "correlation_id": "c1", "code": None})
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("failed")
    logger.debug("not this")
    out, err = capsys.readouterr()
    first, second = map(json.loads, err.splitlines())
    assert out == ""
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "info",
        "logger": "latent_encoder.some",
        "message": "took 3 s\n",
        "request_id": "r1",
        "correlation_id": "c1",
    }
    assert "ValueError: broken" in second["exception"]


def test_text_lines_name_the_ids_and_let_no_picture_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "text")
    name = "a.png\n2026-01-01T00:00:00Z ERROR forged \x1b[31m"
    logging.getLogger("x").warning("no picture '%s'", name, extra={"request_id": "r1"})
    logging.getLogger("x").info("not this")
    (line,) = capsys.readouterr().err.splitlines()
    assert " WARNING no picture 'a.png\\n2026" in line
    assert "\x1b" not in line
    assert line.endswith("(request_id=r1)")


def test_warnings_are_logged_and_chatty_libraries_kept_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    logging.getLogger("httpx").info("HTTP Request: GET ...")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "DeprecationWarning: old" in json.loads(line)["message"]
    logs.configure("debug", "text")
    logging.getLogger("httpx").info("HTTP Request: GET ...")
    assert "HTTP Request" in capsys.readouterr().err
