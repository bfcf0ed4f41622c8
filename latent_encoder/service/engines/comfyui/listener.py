"""What ComfyUI says over ``/ws`` about our prompts: how far they are, that they have ended, how long its queue is.

It only makes things quicker and livelier: where there is no WebSocket, ``/history`` tells the same a little later.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from .client import ComfyUIClient

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
OPEN_SECONDS = 10.0
LARGEST_MESSAGE = 1 << 26  # progress_state names every node of a workflow
ENDINGS = ("execution_success", "execution_error", "execution_interrupted")

logger = logging.getLogger(__name__)
_protocol_logger = logging.getLogger(f"{__name__}.protocol")
_protocol_logger.setLevel(logging.WARNING)  # below that it would write the Authorization header into the log


class PromptNews:
    """What is known of one prompt.

    Attributes:
        progress: the part that is done, from 0 to 1; never falls.
        ended: whether ComfyUI has said so; its history may be written a moment later.
    """

    def __init__(self, nodes: int) -> None:
        self.progress = 0.0
        self.ended = False
        self._nodes = max(nodes, 1)
        self._done: dict[str, float] = {}
        self._news = threading.Event()

    def wait(self, seconds: float) -> None:
        """Sleep that long, or until there is news."""
        if self._news.wait(seconds):
            self._news.clear()

    def take(self, kind: str, data: dict[str, Any]) -> None:
        """Note what a message says."""
        if kind == "execution_cached":
            self._done.update(dict.fromkeys(data.get("nodes") or [], 1.0))
        elif kind == "progress_state":
            for node_id, state in (data.get("nodes") or {}).items():
                part = float(state.get("value") or 0) / (float(state.get("max") or 0) or 1.0)
                self._done[node_id] = 1.0 if state.get("state") == "finished" else min(part, 1.0)
        if kind in ENDINGS or (kind == "executing" and data.get("node") is None):
            self.ended = True
        self.progress = max(self.progress, min(1.0, sum(self._done.values()) / max(self._nodes, len(self._done))))
        self._news.set()


class Listener:
    """Listens to one server until it is closed, and connects anew whenever the connection falls.

    Attributes:
        connected: whether there is a connection just now.
        connections: how many there have been. As long as it stays the same, the server has not been restarted.
        queue_length: how many prompts run or wait there; None while it is not known.
    """

    def __init__(self, client: ComfyUIClient) -> None:
        self.connected = False
        self.connections = 0
        self.queue_length: int | None = None
        self._client = client
        self._prompts: dict[str, PromptNews] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._socket: ClientConnection | None = None
        self._thread = threading.Thread(target=self._run, name=f"latent-encoder-ws {client.url}", daemon=True)
        self._thread.start()

    @contextmanager
    def watch(self, prompt_id: str, nodes: int) -> Iterator[PromptNews]:
        """The news of a prompt. Begin before it is sent, else the first ones are missed.

        Args:
            nodes: how many nodes will run, as far as one can tell.
        """
        news = PromptNews(nodes)
        with self._lock:
            self._prompts[prompt_id] = news
        try:
            yield news
        finally:
            with self._lock:
                del self._prompts[prompt_id]

    def close(self) -> None:
        """Hang up; does not wait for it."""
        self._closing.set()
        socket = self._socket
        if socket is not None:
            with contextlib.suppress(Exception):
                socket.socket.shutdown(2)  # wakes the thread at once; a closing handshake could hang

    def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._closing.is_set():
            try:
                self._listen()
                pause = FIRST_PAUSE_SECONDS
            except (OSError, WebSocketException, EOFError) as error:
                logger.debug("No WebSocket to ComfyUI at %s (%s): its history is asked.", self._client.url, error)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            finally:
                self.connected, self._socket, self.queue_length = False, None, None
            self._closing.wait(pause)

    def _listen(self) -> None:
        """Connect, and take messages until the connection ends."""
        address = self._client.address
        with connect(
            f"{address.websocket_url}?clientId={self._client.client_id}",
            additional_headers=address.headers,
            open_timeout=OPEN_SECONDS,
            close_timeout=1.0,
            max_size=LARGEST_MESSAGE,
            proxy=None if address.is_loopback else True,
            logger=_protocol_logger,
            # The same certificates as httpx takes.
            ssl=httpx.create_ssl_context() if address.websocket_url.startswith("wss:") else None,
        ) as socket:
            self._socket = socket
            self.connections += 1
            self.connected = True
            for message in socket:
                if self._closing.is_set():
                    return
                if isinstance(message, str):  # the rest is pictures
                    self._take(message)

    def _take(self, text: str) -> None:
        try:
            message = json.loads(text)
            kind, data = message["type"], message["data"]
            if kind == "status":
                self.queue_length = int(data["status"]["exec_info"]["queue_remaining"])
                return
            with self._lock:
                news = self._prompts.get(data.get("prompt_id"))
            if news is not None:
                news.take(kind, data)
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.debug("An odd message from ComfyUI at %s: %.200s", self._client.url, text)
