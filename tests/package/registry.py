"""A registry of this test's own: it offers one version of one pack, at the addresses that ComfyUI-Manager asks."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


class Registry(ThreadingHTTPServer):
    """Serves ``archive`` as that version of the pack."""

    daemon_threads = True

    def __init__(self, name: str, version: str, archive: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.version, self.archive = name, version, archive
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, query: dict[str, list[str]]) -> bytes | None:
        """The body for a GET; None where there is nothing."""
        if path == "/nodes":
            node = {"id": self.name, "latest_version": {"version": self.version}}
            return json.dumps({"nodes": [node], "totalPages": 1}).encode()
        if path == f"/nodes/{self.name}/install" and query.get("version", [self.version]) == [self.version]:
            offer = {"id": self.name, "version": self.version, "downloadUrl": f"{self.url}/node.zip"}
            return json.dumps(offer).encode()
        return self.archive.read_bytes() if path == "/node.zip" else None


class _Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        self.server.asked.append(asked.path)
        body = self.server.answer(asked.path, parse_qs(asked.query))
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        """Nothing: it would stand in the test's output."""


@contextlib.contextmanager
def serve(name: str, version: str, archive: Path) -> Iterator[Registry]:
    """The registry, while the ``with`` lasts."""
    with Registry(name, version, archive) as registry:
        thread = threading.Thread(target=registry.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield registry
        finally:
            registry.shutdown()
            thread.join()
