"""What a body may be: JSON bombs, wrong types, broken forms, uploads beyond the limit, slow senders."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
from service.rest.process import PICTURE, RestService, error_of, wait_for

from latent_encoder.service.doors.rest import protocol

MB = 1_000_000
BOUNDARY = "frontier"


def post(
    rest: RestService, body: bytes, content_type: str = "application/json", path: str = "/v1/encode"
) -> httpx.Response:
    return rest.client.post(path, content=body, headers={"Content-Type": content_type})


def part(name: str, value: bytes, extra: str = "") -> bytes:
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + value + b"\r\n"


IMAGE = part("image", PICTURE, '; filename="a.png"')
START = f"--{BOUNDARY}\r\n".encode()
END = f"--{BOUNDARY}--\r\n".encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"image_path": "\\ud800"}',
        b'{"image_path": "pictures/a.png", "megapixels": NaN}',
        b'{"image_path": "pictures/a.png", "megapixels": 1e999}',
        b'{"image_path": "pictures/a.png", "megapixels": ' + b"9" * 5000 + b"}",
        b'{"a":' * 9000 + b"1" + b"}" * 9000,
        b"[" * 60_000,
        b'{"image_path": "pictures/a.png", "image_path": "pictures/b.png"}',
        b'{"image_path": "pictures/a.png", "request_id": "one", "request_id": "two"}',
    ],
)
@pytest.mark.parametrize("path", ["/v1/encode", "/v1/jobs"])
def test_bodies_that_are_no_request(rest: RestService, body: bytes, path: str) -> None:
    assert error_of(post(rest, body, path=path)) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, ["image_path"]),
        ({"image_path": 7}, ["image_path"]),
        (
            {"image_path": "a.png", "megapixels": "many", "colour": 1, "file_format": "gif"},
            ["megapixels", "colour", "file_format"],
        ),
        ({"image_path": "a.png", "request_id": "../../etc"}, ["request_id"]),
        ({"image_path": "a.png", "request_id": None}, ["request_id"]),
        ({"image_path": "a.png", "schema_version": 2}, ["schema_version"]),
        ({"image_path": "a.png", "deadline": 1700000000}, ["deadline"]),
        ({"image_path": "a.png", "deadline": "2026-01-01T00:00:00"}, ["deadline"]),
    ],
)
def test_every_wrong_field_is_named_at_once(rest: RestService, fields: dict, named: list[str]) -> None:
    response = rest.client.post("/v1/encode", json=fields)
    assert error_of(response) == (400, "INVALID_REQUEST")
    assert all(f"'{name}'" in response.json()["error_message"] for name in named)


def test_number_in_a_form_that_is_too_long_leaves_no_upload(rest: RestService) -> None:
    for path in ("/v1/encode", "/v1/jobs"):
        assert error_of(rest.upload(path=path, schema_version="1" * 5000)) == (400, "INVALID_REQUEST")
    assert rest.uploads() == []


def test_failure_says_which_request_it_was(rest: RestService) -> None:
    body = rest.encode(request_id="known", correlation_id="order 7", megapixels=99).json()
    assert (body["request_id"], body["correlation_id"]) == ("known", "order 7")


@pytest.mark.parametrize("wrong", ["c" * 257, "two\nlines", "\u0085", 7])
def test_a_correlation_id_that_is_none_is_named_and_not_handed_back(rest: RestService, wrong: object) -> None:
    response = rest.encode(request_id="known", correlation_id=wrong)
    assert error_of(response) == (400, "INVALID_REQUEST")
    body = response.json()
    assert (body["request_id"], body["correlation_id"]) == ("known", None)
    assert "'correlation_id'" in body["error_message"] and len(body["error_message"]) < 400


def test_json_beyond_the_limit_is_not_read(rest: RestService) -> None:
    big = json.dumps({"image_path": "a" * 70_000}).encode()
    assert error_of(post(rest, big)) == (413, "MESSAGE_TOO_LARGE")


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "image/png"])
def test_other_content_types_are_refused_with_words(rest: RestService, content_type: str) -> None:
    response = post(rest, b"image_path=a.png", content_type)
    assert error_of(response) == (400, "INVALID_REQUEST") and "application/json" in response.json()["error_hint"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form at all",
        END,
        IMAGE,
        IMAGE + IMAGE + END,
        part("megapixels", b"0.02") + END,
        IMAGE + part("image_path", b"a.png") + END,
        IMAGE + part("colour", b"red") + END,
        IMAGE + part("megapixels", b"0.02") * 2 + END,
        IMAGE + part("correlation_id", b"\xff") + END,
        IMAGE + part("mask", PICTURE, '; filename="mask.png"') + END,
        IMAGE + b"".join(part(f"field-{number}", b"") for number in range(100)) + END,
        START + b"\r\nnameless\r\n" + END,
        START + b"".join(b"x-%d: y\r\n" % number for number in range(100)) + b"\r\n" + END,
    ],
)
def test_broken_forms(rest: RestService, body: bytes) -> None:
    response = post(rest, body, f"multipart/form-data; boundary={BOUNDARY}")
    assert error_of(response) == (400, "INVALID_REQUEST")
    assert rest.uploads() == []


def test_form_without_a_boundary_and_with_a_long_field(rest: RestService) -> None:
    assert error_of(post(rest, IMAGE + END, "multipart/form-data")) == (400, "INVALID_REQUEST")
    long = IMAGE + part("correlation_id", b"x" * 70_000) + END
    assert error_of(post(rest, long, f"multipart/form-data; boundary={BOUNDARY}")) == (413, "MESSAGE_TOO_LARGE")


def test_upload_at_the_limit_is_taken_and_beyond_it_is_not(rest: RestService) -> None:
    assert error_of(rest.upload(b"x" * MB)) == (422, "IMAGE_INVALID")
    assert error_of(rest.upload(b"x" * (MB + 1))) == (413, "IMAGE_TOO_LARGE")
    assert error_of(rest.upload(b"x" * (MB + 1), path="/v1/jobs")) == (413, "IMAGE_TOO_LARGE")
    assert rest.uploads() == []


def test_announced_upload_beyond_the_limit_is_refused_before_it_is_sent(rest: RestService) -> None:
    head = f"POST /v1/encode HTTP/1.1\r\nHost: {rest.address[0]}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with socket.create_connection(rest.address, timeout=10) as connection:
        connection.sendall(f"{head}Expect: 100-continue\r\nContent-Length: {10**12}\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_endless_upload_is_answered_and_cut_off(rest: RestService) -> None:
    """The answer comes soon after the limit; what is read after it is bounded."""
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'.encode()
        while True:
            sent += MB
            yield bytes(MB)

    content_type = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    with contextlib.suppress(httpx.TransportError):  # an answer that its sender may be too busy to read
        assert error_of(rest.client.post("/v1/encode", content=endless(), headers=content_type))[0] == 413
    assert sent < protocol.LINGER_BYTES + 20 * MB
    assert rest.uploads() == []


def test_upload_a_little_beyond_the_limit_gets_its_answer_through(rest: RestService) -> None:
    """Its sender reads only when it has sent everything."""
    assert error_of(rest.upload(b"x" * 20 * MB)) == (413, "IMAGE_TOO_LARGE")


def test_broken_off_upload_leaves_nothing(rest: RestService) -> None:
    form = f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: 500000\r\n"
    with socket.create_connection(rest.address, timeout=10) as connection:
        connection.sendall(f"POST /v1/encode HTTP/1.1\r\nHost: localhost\r\n{form}\r\n".encode())
        connection.sendall(IMAGE[:200])
        wait_for(lambda: len(rest.uploads()) == 1)
    wait_for(lambda: rest.uploads() == [])


def receive(connection: socket.socket) -> bytes:
    """What the service has sent; nothing where it has closed the connection without an answer."""
    with contextlib.suppress(ConnectionError):
        return connection.recv(1000)
    return b""


def test_slow_heads_and_bodies_are_cut_off_and_keep_nobody_waiting(held: RestService) -> None:
    slow_head = b"POST /v1/encode HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
    slow_body = slow_head + b"no\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n{"
    connections = [socket.create_connection(held.address, timeout=40) for _ in range(400)]
    for number, connection in enumerate(connections):
        connection.sendall(slow_head if number % 2 else slow_body)
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.5):
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.send(b" ")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        assert held.encode(request_id="among-slow-ones").status_code == 200
        assert [receive(connection) for connection in connections[1::2]] == [b""] * 200
        assert {receive(connection)[:13] for connection in connections[::2]} == {b"HTTP/1.1 408 "}
    finally:
        stop.set()
        thread.join()
        for connection in connections:
            connection.close()


def test_head_without_end_is_refused(rest: RestService) -> None:
    with socket.create_connection(rest.address, timeout=10) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\n")
        received = b""
        try:
            for number in range(3000):
                connection.sendall(b"X-Filler-%d: " % number + b"y" * 100 + b"\r\n")
            received = connection.recv(1000)
        except ConnectionError:
            received = received or b"HTTP/1.1 431 (reset)"
    assert received.startswith(b"HTTP/1.1 431 ")


def test_what_is_not_http_is_answered_in_json(rest: RestService) -> None:
    with socket.create_connection(rest.address, timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = connection.recv(10_000)
    assert (
        answer.startswith(b"HTTP/1.1 400 ")
        and json.loads(answer.split(b"\r\n\r\n")[1])["error_code"] == "INVALID_REQUEST"
    )
