"""The bad network: what each fault of the TCP proxy looks like to a client."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import KafkaException, Producer
from kafka.broker import Broker
from kafka.tcp_proxy import TcpProxy
from kafka.topics import admin_client, create_topics, produce, read_topic


class Echo(socketserver.BaseRequestHandler):
    heard: list[bytes]

    def handle(self) -> None:
        try:
            while data := self.request.recv(1 << 16):
                self.heard.append(data)
                self.request.sendall(data)
        except ConnectionError:
            self.heard.append(b"RST")


@pytest.fixture
def heard() -> list[bytes]:
    """What the server behind the proxy was sent."""
    return []


@pytest.fixture
def proxy(heard: list[bytes]) -> Iterator[TcpProxy]:
    """A proxy before a server that sends everything back."""
    handler = type("EchoHere", (Echo,), {"heard": heard})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with TcpProxy(f"127.0.0.1:{server.server_address[1]}") as proxy:
            yield proxy
        server.shutdown()


def connect(proxy: TcpProxy) -> socket.socket:
    host, port = proxy.address.split(":")
    return socket.create_connection((host, int(port)), timeout=5)


def ask(client: socket.socket, data: bytes = b"hello") -> bytes:
    """Send, and read as much; a ConnectionError where the other end hangs up before."""
    with ThreadPoolExecutor(1) as sender:
        sending = sender.submit(client.sendall, data)
        answer = b""
        while len(answer) < len(data):
            piece = client.recv(len(data) - len(answer))
            if not piece:
                raise ConnectionError("closed")
            answer += piece
        sending.result()
    return answer


def is_silent(client: socket.socket) -> bool:
    client.settimeout(0.3)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(5)
    return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_forwards_everything_in_its_order(proxy: TcpProxy) -> None:
    data = bytes(range(256)) * 4096
    with connect(proxy) as client:
        assert ask(client, data) == data
        assert proxy.connections == 1


def test_delay(proxy: TcpProxy) -> None:
    proxy.delay = 0.15
    data = bytes(1 << 20)
    with connect(proxy) as client:
        start = time.monotonic()
        assert ask(client) == b"hello"
        assert time.monotonic() - start >= 0.3
        start = time.monotonic()
        assert ask(client, data) == data
        assert time.monotonic() - start < 3, "the pieces wait together, not one after the other"
        proxy.delay = 4
        proxy.heal()
        start = time.monotonic()
        assert ask(client) == b"hello"
        assert time.monotonic() - start < 4


def test_drop(proxy: TcpProxy, heard: list[bytes]) -> None:
    with connect(proxy) as client:
        assert ask(client) == b"hello"
        proxy.drop()
        client.sendall(b"lost")
        with connect(proxy) as late:
            late.sendall(b"late")
            assert is_silent(client)
            assert is_silent(late)
            assert heard == [b"hello"]
            proxy.heal()
            assert (client.recv(4), late.recv(4)) == (b"lost", b"late")


def test_drop_answers(proxy: TcpProxy, heard: list[bytes]) -> None:
    with connect(proxy) as client:
        proxy.drop_answers()
        client.sendall(b"done")
        wait_for(lambda: heard == [b"done"])
        assert is_silent(client)
        proxy.heal()
        assert client.recv(4) == b"done"


def test_half_open(proxy: TcpProxy, heard: list[bytes]) -> None:
    with connect(proxy) as client:
        assert ask(client) == b"hello"
        proxy.half_open()
        client.sendall(b"gone")
        assert is_silent(client)
        wait_for(lambda: heard == [b"hello", b"RST"])
        with connect(proxy) as new:
            assert ask(new) == b"hello"
        proxy.heal()
        assert is_silent(client)
    wait_for(lambda: proxy.connections == 0)


def test_reset(proxy: TcpProxy, heard: list[bytes]) -> None:
    with connect(proxy) as client:
        assert ask(client) == b"hello"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        wait_for(lambda: proxy.connections == 0 and heard == [b"hello", b"RST"])
    with connect(proxy) as new:
        assert ask(new) == b"hello"


def test_refuse(proxy: TcpProxy) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionError), connect(proxy) as client:
        ask(client)
    proxy.heal()
    with connect(proxy) as client:
        assert ask(client) == b"hello"


def test_a_server_that_is_away_is_a_reset(proxy: TcpProxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy.target = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(ConnectionResetError), connect(proxy) as client:
        client.recv(1)


def test_who_hangs_up_is_seen_by_the_other(proxy: TcpProxy) -> None:
    with connect(proxy) as client:
        ask(client)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    wait_for(lambda: proxy.connections == 0)


def test_a_broker_behind_it(proxied_broker: tuple[Broker, TcpProxy]) -> None:
    broker, proxy = proxied_broker
    create_topics(broker.bootstrap, "topic")
    assert proxy.connections == 0
    listed = admin_client(broker.proxied_bootstrap).list_topics(timeout=10)
    assert [f"{known.host}:{known.port}" for known in listed.brokers.values()] == [proxy.address]
    produce(broker.proxied_bootstrap, "topic", [{"value": b"first"}])

    proxy.drop()
    with pytest.raises(KafkaException):
        admin_client(broker.proxied_bootstrap).list_topics(timeout=1)
    assert len(read_topic(broker.bootstrap, "topic")) == 1, "the other listener is not touched"
    proxy.heal()

    reports: list[object] = []
    producer = Producer({"bootstrap.servers": broker.proxied_bootstrap, "enable.idempotence": True, "log_level": 0})
    producer.list_topics("topic", timeout=10)
    proxy.drop_answers()
    producer.produce("topic", b"second", on_delivery=lambda error, message: reports.append(error))
    assert producer.flush(1) == 1
    for fault in (proxy.half_open, proxy.reset):
        fault()
    proxy.heal()
    assert producer.flush(60) == 0
    assert reports == [None]
    assert sorted(m.value() for m in read_topic(broker.bootstrap, "topic")) == [b"first", b"second"]
