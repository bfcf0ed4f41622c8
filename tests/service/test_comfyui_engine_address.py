"""Where a ComfyUI may be: behind a path prefix, a login, something that is no ComfyUI. It works, or says what it is."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import web
from comfyui.servers import Server
from service.encode_jobs import assert_is_of, is_up, job, picture, until
from service.reverse_proxy import ReverseProxy

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.engines.base import Call
from latent_encoder.service.engines.comfyui import member, pool
from latent_encoder.service.engines.comfyui.address import parse_address
from latent_encoder.service.engines.comfyui.engine import ComfyUIEngine

SECRET = "s3cret-w0rd"


@contextmanager
def started(folder: Path, *urls: str, token: str | None = None) -> Iterator[ComfyUIEngine]:
    engine = ComfyUIEngine(urls=urls, state_dir=folder, token=token)
    try:
        engine.start()
        yield engine
    finally:
        engine.close()


def refusal(folder: Path, url: str, token: str | None = None) -> LatentEncoderError:
    """Why an engine does not start with this server."""
    with pytest.raises(LatentEncoderError) as caught, started(folder, url, token=token):
        pass
    return caught.value


def with_user(url: str, user: str) -> str:
    return url.replace("://", f"://{user}@")


def test_a_path_prefix_works_with_progress(comfyui_server: Server, tmp_path: Path) -> None:
    proxy = ReverseProxy(comfyui_server.process.url, prefix="/some/prefix")
    with proxy, started(tmp_path, proxy.url + "/") as engine:
        parts: list[float] = []
        wanted = job(picture(seed=20))
        until(lambda: engine._pool.connections()[0].listener.connected)
        assert_is_of(engine.encode(wanted, Call(60, parts.append)), wanted)
        assert any(0.1 < part < 0.95 for part in parts), parts


def test_it_works_where_a_proxy_lets_no_websocket_through(comfyui_server: Server, tmp_path: Path) -> None:
    with ReverseProxy(comfyui_server.process.url, websockets=False) as proxy, started(tmp_path, proxy.url) as engine:
        wanted = job(picture(seed=21))
        assert_is_of(engine.encode(wanted, Call(60)), wanted)
        assert sum(request.startswith("GET /history/") for request in proxy.seen) >= 1


def test_basic_auth_of_the_url_works_over_both_and_stays_out_of_the_log(
    comfyui_server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with ReverseProxy(comfyui_server.process.url, password=f"me:{SECRET}@/x") as proxy:
        url = with_user(proxy.url, f"me:{SECRET}%40%2Fx")
        with started(tmp_path, url) as engine:
            until(lambda: engine._pool.connections()[0].listener.connected)
            wanted = job(picture(seed=22))
            assert_is_of(engine.encode(wanted, Call(60)), wanted)
    assert "takes work" in caplog.text
    assert SECRET not in caplog.text
    assert base64.b64encode(f"me:{SECRET}".encode()).decode()[:12] not in caplog.text


def test_a_bearer_token_works_over_both_and_stays_out_of_the_log(
    comfyui_server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy = ReverseProxy(comfyui_server.process.url, token=SECRET)
    with proxy, started(tmp_path, proxy.url, token=SECRET) as engine:
        until(lambda: engine._pool.connections()[0].listener.connected)
        wanted = job(picture(seed=23))
        assert_is_of(engine.encode(wanted, Call(60)), wanted)
    assert "takes work" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("proxy_asks", "user", "token", "words"),
    [
        ({"password": "me:right"}, "", None, ["asks for a login", "401", "user name and a password", "COMFYUI_URL"]),
        ({"password": "me:right"}, f"me:{SECRET}", None, ["does not accept the user name and password"]),
        ({"token": "right"}, "", None, ["asks for a login", "bearer token", "LATENT_ENCODER_COMFYUI_TOKEN"]),
        ({"token": "right"}, "", SECRET, ["does not accept the bearer token"]),
        ({"token": "right"}, f"me:{SECRET}", None, ["user name and password", "It wants a bearer token"]),
    ],
)
def test_a_wrong_login_is_named_so_and_not_shown(
    comfyui_server: Server,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    proxy_asks: dict[str, str],
    user: str,
    token: str | None,
    words: list[str],
) -> None:
    with ReverseProxy(comfyui_server.process.url, **proxy_asks) as proxy:
        error = refusal(tmp_path, with_user(proxy.url, user) if user else proxy.url, token)
    assert error.code == "ENGINE_UNAVAILABLE"
    assert [word for word in words if word not in str(error)] == []
    assert SECRET not in str(error) + caplog.text


@contextmanager
def other_server(answer: Callable[[], web.Response]) -> Iterator[str]:
    """Something that is no ComfyUI: its answer to everything."""
    proxy = ReverseProxy("http://127.0.0.1:9")

    async def handle(request: web.Request) -> web.StreamResponse:
        return answer()

    proxy._handle = handle
    with proxy:
        yield proxy.url


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (lambda: web.Response(status=403), "ENGINE_UNAVAILABLE", ["forbids", "403"]),
        (lambda: web.Response(status=404), "ENGINE_UNAVAILABLE", ["not ComfyUI", "the path before ComfyUI's own"]),
        (lambda: web.Response(status=502), "ENGINE_UNAVAILABLE", ["proxy", "does not reach the ComfyUI behind it"]),
        (lambda: web.Response(status=500), "ENGINE_UNAVAILABLE", ["500"]),
        (
            lambda: web.Response(status=302, headers={"Location": f"https://u:{SECRET}@login.example/in?x={SECRET}"}),
            "ENGINE_UNAVAILABLE",
            ["sends us on to 'https://login.example/in'"],
        ),
        (
            lambda: web.Response(text="<h1>hi</h1>", content_type="text/html"),
            "ENGINE_UNAVAILABLE",
            ["not ComfyUI", "text/html"],
        ),
        (lambda: web.json_response({"name": "another program"}), "ENGINE_UNAVAILABLE", ["is not ComfyUI"]),
        (lambda: web.json_response({"system": {"os": "posix"}}), "NODES_MISSING", ["too old", "0.3.64 or newer"]),
        (
            lambda: web.json_response({"system": {"comfyui_version": 33}}),
            "NODES_MISSING",
            ["too old to say its version"],
        ),
        (
            lambda: web.json_response({"system": {"comfyui_version": "0.33.0"}, "EncodeToLatentFile": ["image"]}),
            "ENGINE_UNAVAILABLE",
            ["does not describe the node EncodeToLatentFile"],
        ),
        (
            lambda: web.json_response({"system": {"comfyui_version": "0.3.20"}}),
            "NODES_MISSING",
            ["0.3.20", "Update ComfyUI"],
        ),
        (
            lambda: web.json_response(
                {
                    "system": {"comfyui_version": "0.33.0"},
                    "EncodeToLatentFile": {"input": {"required": {"image": [], "vae": []}}},
                }
            ),
            "NODES_MISSING",
            ["another version", "filename_prefix", "Update the Latent Encoder nodes"],
        ),
    ],
)
def test_what_is_no_comfyui_or_an_old_one_is_named_so(
    tmp_path: Path, answer: Callable[[], web.Response], code: str, words: list[str]
) -> None:
    with other_server(answer) as url:
        error = refusal(tmp_path, url)
    assert error.code == code
    assert [word for word in words if word not in str(error)] == []
    assert SECRET not in str(error)


def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    error = refusal(tmp_path, f"http://me:{SECRET}@127.0.0.1:9/prefix")
    assert error.code == "ENGINE_UNAVAILABLE"
    assert "http://127.0.0.1:9/prefix" in error.message
    assert SECRET not in str(error)


@pytest.mark.parametrize(
    "url",
    [
        *("127.0.0.1:8188", f"ftp://me:{SECRET}@host", "http://", f"http://[{SECRET}"),
        *(f"http://host/?key={SECRET}", f"http://host/#{SECRET}"),
    ],
)
def test_no_address_of_http_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(LatentEncoderError, match="INVALID_REQUEST") as caught:
        parse_address(url)
    assert SECRET not in str(caught.value)


def test_work_goes_to_the_least_loaded_and_a_dead_server_is_left_out(
    comfyui_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member, "LONGEST_BACKOFF_SECONDS", 0.5)
    one, two = ReverseProxy(comfyui_server.process.url), ReverseProxy(comfyui_server.process.url)
    with one, two, started(tmp_path, one.url, "http://127.0.0.1:9", two.url) as engine:
        until(lambda: len(engine._pool.connections()) == 2)
        for seed in range(4):  # one after the other: both are idle each time
            until(lambda: not comfyui_server.client.queued())
            engine.encode(job(picture(seed=30 + seed), megapixels=0.01), Call(60))
        shares = [proxy.seen.count("POST /prompt") for proxy in (one, two)]
        assert shares == [2, 2]

        two.stop()
        for seed in range(3):
            wanted = job(picture(seed=40 + seed), megapixels=0.01)
            assert_is_of(engine.encode(wanted, Call(60)), wanted)
        assert one.seen.count("POST /prompt") == 5

        two.start()  # on the same port
        until(lambda: len(engine._pool.connections()) == 2, 15)
        engine.encode(job(picture(seed=45), megapixels=0.01), Call(60))
        assert two.seen.count("POST /prompt") == 3


def test_a_server_lost_during_an_encode_is_replaced_by_another(comfyui_server: Server, tmp_path: Path) -> None:
    one, two = ReverseProxy(comfyui_server.process.url), ReverseProxy(comfyui_server.process.url)
    with one, two, started(tmp_path, one.url, two.url) as engine:
        until(lambda: len(engine._pool.connections()) == 2)
        lost: list[ReverseProxy] = []

        def lose(request: str) -> None:
            if request == "POST /prompt" and not lost:
                lost.append(one if one.seen[-1] == request else two)

        one.before = two.before = lose
        wanted = job(picture(seed=50), vae_name=comfyui_server.host.demo_vae, megapixels=1.0)
        stopper = until_lost(lost)
        assert_is_of(engine.encode(wanted, Call(60)), wanted)
        stopper.join()
        assert one.seen.count("POST /prompt") == two.seen.count("POST /prompt") == 1


def test_the_only_server_lost_is_unavailable_until_it_is_back(
    comfyui_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "RETRY_SECONDS", 1.0)
    monkeypatch.setattr(member, "LONGEST_BACKOFF_SECONDS", 0.5)
    with ReverseProxy(comfyui_server.process.url) as proxy, started(tmp_path, proxy.url) as engine:
        lost: list[ReverseProxy] = []
        proxy.before = lambda request: lost.append(proxy) if request == "POST /prompt" and not lost else None
        stopper = until_lost(lost)
        with pytest.raises(LatentEncoderError, match="ENGINE_UNAVAILABLE"):
            engine.encode(job(picture(seed=51), vae_name=comfyui_server.host.demo_vae, megapixels=1.0), Call(60))
        stopper.join()
        assert not is_up(engine)
        proxy.start()
        until(lambda: is_up(engine), 15)
        wanted = job(picture(seed=52))
        assert_is_of(engine.encode(wanted, Call(60)), wanted)


def until_lost(lost: list[ReverseProxy]) -> threading.Thread:
    """A thread that stops the proxy as soon as it stands in the list."""
    thread = threading.Thread(target=lambda: until(lambda: lost, 30, pause=0.002).pop().stop())
    thread.start()
    return thread
