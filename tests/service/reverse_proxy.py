"""A small reverse proxy before a real ComfyUI: a path prefix, a login, faults at a chosen moment, odd answers."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

from aiohttp import ClientSession, ClientTimeout, WSMsgType, web

HOP_BY_HOP = {"connection", "content-encoding", "content-length", "host", "transfer-encoding"}


class ReverseProxy:
    """Forwards HTTP and WebSockets to ``target``.

    Args:
        prefix: the path before ComfyUI's own.
        password: ``user:password`` that is asked for.
        token: a bearer token that is asked for.
        websockets: whether they are forwarded, or refused with 400.

    Attributes:
        before: called with "METHOD /path" before a request is forwarded.
        seen: those texts, in their order.
        changes: by "METHOD /first-part-of-the-path", what is made of an answer's JSON.
    """

    def __init__(
        self,
        target: str,
        *,
        prefix: str = "",
        password: str | None = None,
        token: str | None = None,
        websockets: bool = True,
    ) -> None:
        self.target, self.prefix, self.websockets = target, prefix, websockets
        self.before: Callable[[str], None] = lambda request: None
        self.seen: list[str] = []
        self.changes: dict[str, Callable[[Any], Any]] = {}
        self._wanted, self._challenge = None, ""
        if password is not None:
            self._wanted, self._challenge = f"Basic {base64.b64encode(password.encode()).decode()}", 'Basic realm="x"'
        if token is not None:
            self._wanted, self._challenge = f"Bearer {token}", "Bearer"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    def start(self) -> ReverseProxy:
        """Listen; the port stays the same after each ``stop``."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._run(self._open())
        return self

    def stop(self) -> None:
        """Hang up on everybody, and listen no longer."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> ReverseProxy:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.stop()

    def _run(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def _open(self) -> None:
        self._session = ClientSession(timeout=ClientTimeout(total=None), auto_decompress=True)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", self.prefix + "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()

    async def _close(self) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self._wanted and request.headers.get("Authorization") != self._wanted:
            return web.Response(status=401, headers={"WWW-Authenticate": self._challenge})
        path = request.raw_path.removeprefix(self.prefix)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._forward_websocket(request, path) if self.websockets else web.Response(status=400)
        said = f"{request.method} {path.partition('?')[0]}"
        self.seen.append(said)
        body = await request.read()
        await asyncio.to_thread(self.before, said)
        headers = {key: value for key, value in request.headers.items() if key.lower() not in HOP_BY_HOP}
        async with self._session.request(request.method, self.target + path, data=body, headers=headers) as answer:
            content = await answer.read()
            change = self.changes.get("/".join(said.split("/")[:2]))
            if change is not None:
                content = json.dumps(change(json.loads(content))).encode()
            kept = {key: value for key, value in answer.headers.items() if key.lower() not in HOP_BY_HOP}
            return web.Response(status=answer.status, body=content, headers=kept)

    async def _forward_websocket(self, request: web.Request, path: str) -> web.StreamResponse:
        ours = web.WebSocketResponse()
        await ours.prepare(request)
        async with self._session.ws_connect(self.target + path, max_msg_size=0) as theirs:
            upward = asyncio.create_task(self._pump_up(ours, theirs))
            async for message in theirs:
                if message.type == WSMsgType.TEXT:
                    await ours.send_str(message.data)
            upward.cancel()
        await ours.close()
        return ours

    async def _pump_up(self, ours: web.WebSocketResponse, theirs: Any) -> None:
        async for message in ours:
            if message.type == WSMsgType.TEXT:
                await theirs.send_str(message.data)
        await theirs.close()
