"""Logs on stderr, as lines for people or as JSON for programs.

What a call passes as ``extra`` (``request_id``, ``correlation_id``, ...) becomes a field of its line.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
CHATTY = ("httpx", "httpcore", "websockets", "asyncio", "PIL", "urllib3")  # they log each call, chunk or connection
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127)} | {10: "\\n", 13: "\\r", 9: "\\t"}


def configure(level: str, log_format: str) -> None:
    """Send all logging of this process to stderr.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        log_format: ``text`` or ``json``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else logging.WARNING)


class TextFormatter(logging.Formatter):
    """``2026-01-02T03:04:05.678Z INFO message (request_id=...)``; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in fields_of(record).items())
        text = f"{record.getMessage()} ({fields})" if fields else record.getMessage()
        # A picture's name may hold a line break: what a stranger wrote must not look like a line of ours.
        line = f"{time_of(record)} {record.levelname} {text.translate(CONTROL)}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, the fields, ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= fields_of(record)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def time_of(record: logging.LogRecord) -> str:
    """When it was logged, in UTC, to the millisecond."""
    moment = datetime.fromtimestamp(record.created, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What the call passed as ``extra`` and knows."""
    return {name: value for name, value in vars(record).items() if name not in STANDARD and value is not None}
