"""Runs ``python main.py send | topics | dlq`` as a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka.topics import Topics

MAIN = Path(__file__).resolve().parents[2] / "main.py"
SECONDS = 120


@dataclass(frozen=True)
class Done:
    """A run that ended: its exit code, stdout, and what it said on stderr."""

    code: int
    out: str
    said: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """stdout as one JSON object a line."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Commands:
    """Starts runs in ``here``, with these settings and no other ones of this process's."""

    here: Path
    settings: dict[str, str]

    @classmethod
    def on(cls, bootstrap: str, topics: Topics, here: Path, **settings: str) -> Commands:
        """Commands for these topics of a broker."""
        own = {
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "KAFKA_REQUEST_TOPIC": topics.request,
            "KAFKA_RESPONSE_TOPIC": topics.response,
            "KAFKA_DLQ_TOPIC": topics.dlq,
            "KAFKA_CONSUMER_GROUP": f"{topics.request}-group",
        }
        return cls(here, own | settings)

    def start(self, *words: str, **settings: str) -> subprocess.Popen[str]:
        """Begin a run."""
        mine = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("KAFKA_", "LATENT_")) and name != "MEGAPIXELS"
        }
        return subprocess.Popen(
            [sys.executable, str(MAIN), *words],
            cwd=self.here,
            env=mine | self.settings | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, stdin: str = "", **settings: str) -> Done:
        """A run from start to end."""
        return finish(self.start(*words, **settings), stdin)


def finish(process: subprocess.Popen[str], stdin: str | None = None) -> Done:
    """Wait for the end."""
    try:
        out, said = process.communicate(stdin, timeout=SECONDS)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return Done(process.returncode, out, said)
