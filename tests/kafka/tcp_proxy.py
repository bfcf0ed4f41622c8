"""A TCP proxy between clients and a broker, whose port is the broker's advertised one: it makes the network bad."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

CHUNK = 1 << 16
IN_FLIGHT = 64  # chunks that are kept on their way; then the sender is no longer read


@dataclass(eq=False)
class Connection:
    """A client's end and the broker's end."""

    client: asyncio.StreamWriter
    broker: asyncio.StreamWriter
    is_half_open: bool = False


class TcpProxy:
    """Forwards connections to ``target`` ("host:port"), until told otherwise.

    Attributes:
        target: may be set later, and changed; connections that are open stay where they are.
        address: "127.0.0.1:port", the same for the proxy's life.
        delay: seconds that every byte is kept on its way, in each direction.
    """

    def __init__(self, target: str = "") -> None:
        self.target, self.delay = target, 0.0
        self._refuses = False
        self._connections: set[Connection] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def start(self) -> TcpProxy:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="tcp-proxy")
        self._thread.start()
        self._run(self._open())
        return self

    def stop(self) -> None:
        """Hang up on everybody, and listen no longer."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def drop(self) -> None:
        """Packets get lost, both ways: connections stay, new ones too, and nothing comes through until ``heal``.

        As in TCP, what was sent meanwhile is not lost for ever: it arrives after ``heal``.
        """
        self._run(self._let_pass(requests=False, answers=False))

    def drop_answers(self) -> None:
        """Requests arrive and are carried out; answers do not come back until ``heal``."""
        self._run(self._let_pass(requests=True, answers=False))

    def half_open(self) -> None:
        """The broker's end of every open connection is gone, the clients' ends are not told; new ones are served."""
        self._run(self._cut(clients_too=False))

    def reset(self) -> None:
        """RST to both ends of every open connection; new ones are served."""
        self._run(self._cut(clients_too=True))

    def refuse(self) -> None:
        """RST to both ends of every open connection, and to each new one until ``heal``."""
        self._refuses = True
        self.reset()

    def heal(self) -> None:
        """Forward again, without a delay; connections that were cut stay so."""
        self._refuses, self.delay = False, 0.0
        self._run(self._let_pass(requests=True, answers=True))

    @property
    def connections(self) -> int:
        """How many clients are connected, those of half-open connections too."""
        return len(self._connections)

    def __enter__(self) -> TcpProxy:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(20)

    async def _open(self) -> None:
        self._requests_pass, self._answers_pass = asyncio.Event(), asyncio.Event()
        await self._let_pass(requests=True, answers=True)
        self._server = await asyncio.start_server(self._serve, sock=self._listener)

    async def _close(self) -> None:
        self._server.close()
        await self._cut(clients_too=True)
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _let_pass(self, *, requests: bool, answers: bool) -> None:
        for event, passes in ((self._requests_pass, requests), (self._answers_pass, answers)):
            (event.set if passes else event.clear)()

    async def _cut(self, *, clients_too: bool) -> None:
        for connection in list(self._connections):
            connection.is_half_open = not clients_too
            _send_reset(connection.broker)
            if clients_too:
                _send_reset(connection.client)

    async def _serve(self, client_in: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        try:
            if self._refuses:
                raise ConnectionRefusedError
            broker_in, broker = await asyncio.open_connection(host, int(port))
        except OSError:  # nobody listens there, so nobody listens here
            _send_reset(client)
            return
        connection = Connection(client, broker)
        self._connections.add(connection)
        upward = asyncio.create_task(self._pump(client_in, connection, broker, self._requests_pass))
        downward = asyncio.create_task(self._pump(broker_in, connection, client, self._answers_pass))
        try:
            # Who hangs up first ends it for both; of a half-open connection that can only be the client.
            await asyncio.wait((upward, downward), return_when=asyncio.FIRST_COMPLETED)
            if connection.is_half_open:
                await upward
        except asyncio.CancelledError:  # by stop(); asyncio's own caller does not expect it
            pass
        finally:
            self._connections.discard(connection)
            for task in (upward, downward):
                task.cancel()
            for writer in (client, broker):
                writer.close()

    async def _pump(
        self, source: asyncio.StreamReader, connection: Connection, sink: asyncio.StreamWriter, passes: asyncio.Event
    ) -> None:
        """Move bytes to the sink, in their order and each after the delay, until the source ends."""
        on_their_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT)
        writing = asyncio.create_task(self._write(on_their_way, connection, sink, passes))
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    data = await source.read(CHUNK)
                except OSError:
                    data = b""
                await on_their_way.put((loop.time() + self.delay, data))
                if not data:
                    break
            await writing
        finally:
            writing.cancel()

    async def _write(
        self,
        on_their_way: asyncio.Queue[tuple[float, bytes]],
        connection: Connection,
        sink: asyncio.StreamWriter,
        passes: asyncio.Event,
    ) -> None:
        while True:
            due, data = await on_their_way.get()
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
            await passes.wait()
            if not data:
                return
            if not connection.is_half_open:
                with contextlib.suppress(OSError):
                    sink.write(data)
                    await sink.drain()


def _send_reset(writer: asyncio.StreamWriter) -> None:
    """Close at once, with RST in place of FIN."""
    connection: Any = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
