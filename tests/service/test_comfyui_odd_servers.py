"""Servers that answer otherwise than ComfyUI does, or not at all: an error that says so, and the engine goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from comfyui.servers import Server
from service.encode_jobs import assert_is_of, failure, is_up, job, picture, until
from service.reverse_proxy import ReverseProxy

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.engines.base import Call
from latent_encoder.service.engines.comfyui import member
from latent_encoder.service.engines.comfyui.client import ComfyUIClient
from latent_encoder.service.engines.comfyui.connection import Connection
from latent_encoder.service.engines.comfyui.engine import ComfyUIEngine
from latent_encoder.service.engines.comfyui.pool import Pool

Change = Callable[[Any], Any]


@pytest.fixture(scope="module")
def server(comfyui_server: Server) -> Iterator[ReverseProxy]:
    """A real ComfyUI, some of whose answers are changed on their way."""
    with ReverseProxy(comfyui_server.process.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def engine(server: ReverseProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUIEngine]:
    made = ComfyUIEngine(urls=[server.url], state_dir=tmp_path_factory.mktemp("odd"))
    made.start()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def honest(server: ReverseProxy) -> Iterator[None]:
    yield
    server.changes.clear()
    server.before = lambda request: None


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers are looked after more often."""
    for name, seconds in {"TICK": 0.05, "PROBE": 0.1, "FIRST_BACKOFF": 0.1, "LONGEST_BACKOFF": 0.2}.items():
        monkeypatch.setattr(member, f"{name}_SECONDS", seconds)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("answer", [{"exec_info": []}, {"exec_info": {"queue_remaining": "many"}}])
def test_a_server_that_answers_oddly_is_left_out_until_it_no_longer_does(
    server: ReverseProxy, tmp_path: Path, answer: Any
) -> None:
    engine = ComfyUIEngine(urls=[server.url], state_dir=tmp_path)
    engine.start()
    server.changes["GET /prompt"] = lambda real: answer
    until(lambda: not is_up(engine), 5)
    with pytest.raises(LatentEncoderError, match="is not ComfyUI") as caught:
        engine.check()
    assert caught.value.code == "ENGINE_UNAVAILABLE"
    assert not caught.value.retryable
    server.changes.clear()
    until(lambda: is_up(engine), 5)
    engine.close()


@pytest.mark.usefixtures("quick")
def test_whatever_goes_wrong_in_looking_after_a_server_it_is_looked_after_again(
    server: ReverseProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ComfyUIEngine(urls=[server.url], state_dir=tmp_path)
    engine.start()
    first = engine._pool.connections()[0]
    first.client.close()
    until(lambda: engine._pool.connections() not in ([], [first]), 5)
    asked = ComfyUIClient.queue_length

    def unforeseen(*_: Any, **__: Any) -> int:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(ComfyUIClient, "queue_length", unforeseen)
    until(lambda: not is_up(engine), 5)
    monkeypatch.setattr(ComfyUIClient, "queue_length", asked)
    until(lambda: is_up(engine), 5)
    wanted = job(picture(seed=70))
    assert_is_of(engine.encode(wanted, Call(60)), wanted)
    engine.close()


@pytest.mark.usefixtures("quick")
def test_a_server_left_out_is_not_closed_under_the_one_who_looks_after_it(
    server: ReverseProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    probed, go_on = threading.Event(), threading.Event()

    def before(request: str) -> None:
        if request == "GET /prompt" and not probed.is_set():
            probed.set()
            go_on.wait(5)

    engine = ComfyUIEngine(urls=[server.url], state_dir=tmp_path)
    engine.start()
    server.before = before
    assert probed.wait(5)
    with engine._pool.take(Call(5)) as lease:
        lease.lost(LatentEncoderError("ENGINE_UNAVAILABLE", "It is gone."))
    assert not lease.connection.client._http.is_closed
    go_on.set()
    until(lambda: lease.connection.client._http.is_closed, 5)
    until(lambda: is_up(engine), 5)
    engine.close()
    assert "failed" not in caplog.text


def test_a_failure_that_nobody_foresaw_ends_the_wait_for_the_start() -> None:
    def connect(url: str) -> Connection:
        raise TypeError("expected string, got 'int'")

    pool = Pool(["http://127.0.0.1:9"], None, connect)
    watchdog = threading.Timer(5, pool.close)
    watchdog.start()
    with pytest.raises(LatentEncoderError, match="expected string, got 'int'") as caught:
        pool.start()
    watchdog.cancel()
    pool.close()
    assert caught.value.code == "ENGINE_UNAVAILABLE"


def of_the_record(change: Callable[[dict[str, Any]], Any]) -> Change:
    """The change of a history's answer that this one of its record makes."""

    def changed(history: dict[str, Any]) -> dict[str, Any]:
        for entry in history.values():
            for output in entry["outputs"].values():
                for record in output.get("latent_record", []):
                    change(record)
        return history

    return changed


@pytest.mark.parametrize(
    "change",
    [
        lambda history: {key: {"outputs": {}} for key in history},
        lambda history: {key: {"status": "done", "outputs": {}} for key in history},
        lambda history: {key: entry | {"outputs": []} for key, entry in history.items()},
        of_the_record(lambda record: record.pop("file_sha256")),
        of_the_record(lambda record: record.pop("filename")),
        of_the_record(lambda record: record.update(filename=None)),
        of_the_record(lambda record: record.update(latent_shape="square")),
        of_the_record(lambda record: record.update(vae_sha256="z" * 64)),
    ],
)
def test_an_answer_of_another_shape_is_named_so_and_its_prompt_cancelled(
    engine: ComfyUIEngine, server: ReverseProxy, change: Change
) -> None:
    server.changes["GET /history"] = change
    server.seen.clear()
    error = failure(engine, job(picture(seed=71), megapixels=0.01))
    assert error.code == "ENCODING_FAILED"
    assert "otherwise than our nodes do" in error.message
    assert len(error.message) < 400
    until(lambda: "POST /interrupt" in server.seen, 5)


@pytest.mark.parametrize("at", ["POST /upload/image", "POST /prompt", "GET /history/", "GET /view"])
def test_a_caller_of_a_server_that_hangs_is_let_go_soon(engine: ComfyUIEngine, server: ReverseProxy, at: str) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def before(request: str) -> None:
        if request.startswith(at):
            asked.set()
            go_on.wait(15)

    server.before = before
    call = Call(60)
    with ThreadPoolExecutor(1) as threads:
        error = threads.submit(failure, engine, job(picture(seed=72)), call)
        assert asked.wait(10)
        call.cancel()
        began = time.monotonic()
        assert error.result(20).code == "INTERRUPTED"
        assert time.monotonic() - began < 4
    go_on.set()
    server.before = lambda request: None
    wanted = job(picture(seed=73))
    assert_is_of(engine.encode(wanted, Call(60)), wanted)
