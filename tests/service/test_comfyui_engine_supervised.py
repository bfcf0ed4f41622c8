"""A ComfyUI that the service starts: its own folder, restarts after a crash and a hang, and nothing left at the end."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from comfyui.hosts import Host
from service.encode_jobs import assert_is_of, failure, is_up, job, picture, until

from latent_encoder.atomic_file import TEMPORARY_PREFIX
from latent_encoder.checksum import file_sha256
from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.engines.base import Call
from latent_encoder.service.engines.comfyui import member
from latent_encoder.service.engines.comfyui.engine import ComfyUIEngine
from latent_encoder.service.engines.comfyui.server import ComfyUIServer
from latent_encoder.service.engines.comfyui.slots import lock_lowest
from latent_encoder.service.engines.comfyui.supervisor import PID_FILE, Supervisor, end_leftover
from latent_encoder.service.engines.comfyui.workflow import built_in

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("supervised")


@pytest.fixture(scope="module")
def engine(newest_host: Host, models_folder: Path, state_dir: Path) -> Iterator[ComfyUIEngine]:
    """An engine that has started a ComfyUI."""
    made = ComfyUIEngine(
        comfyui=newest_host.checkout, state_dir=state_dir, models=[models_folder], usual_url=NOWHERE, worker_id="own"
    )
    made.start()
    yield made
    made.close()


def pid_of(state_dir: Path) -> int:
    return int((state_dir / "comfyui-0" / PID_FILE).read_text())


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def seconds_of(function: Callable[[], Any]) -> float:
    """How many seconds it takes."""
    began = time.monotonic()
    function()
    return time.monotonic() - began


def test_it_encodes_with_our_nodes_and_the_given_models(
    engine: ComfyUIEngine, newest_host: Host, models_folder: Path
) -> None:
    wanted = job(vae_name=newest_host.demo_vae)
    encoded = engine.encode(wanted, Call(60))
    assert_is_of(encoded, wanted)
    assert encoded.record["vae_sha256"] == engine.vae_sha256(newest_host.demo_vae)
    assert encoded.record["vae_sha256"] == file_sha256(models_folder / "vae" / newest_host.demo_vae)
    assert engine.vae_sha256("taesd") is None
    assert engine.vae_sha256("../secret") is None


def test_killed_during_an_encode_it_is_started_again_and_the_request_succeeds(
    engine: ComfyUIEngine, newest_host: Host, state_dir: Path
) -> None:
    first = pid_of(state_dir)
    wanted = job(picture(seed=1), vae_name=newest_host.demo_vae, megapixels=1.0)
    client = engine._pool.connections()[0].client
    with ThreadPoolExecutor(1) as threads:
        encoded = threads.submit(engine.encode, wanted, Call(120))
        until(lambda: client.queued())
        os.kill(first, signal.SIGKILL)
        until(lambda: not is_up(engine), 5)
        assert_is_of(encoded.result(), wanted)
    assert pid_of(state_dir) != first
    engine.check()


@pytest.mark.soak
def test_a_prompt_that_runs_on_after_its_interruption_is_ended_with_the_server(
    newest_host: Host, models_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member, "STUCK_SECONDS", 1.0)
    stock = built_in(optimize=False)  # one VAEEncode of many seconds, which looks at no interruption
    engine = ComfyUIEngine(
        comfyui=newest_host.checkout, state_dir=tmp_path, models=[models_folder], usual_url=NOWHERE, workflow=stock
    )
    try:
        engine.start()
        busy = pid_of(tmp_path)
        error = failure(engine, job(picture(seed=4), vae_name=newest_host.demo_vae, megapixels=10.0), Call(4))
        assert error.code == "TIMEOUT"
        until(lambda: pid_of(tmp_path) != busy, 30)
        until(lambda: is_up(engine), 60)
    finally:
        engine.close()


@pytest.mark.soak
def test_hung_without_work_it_is_started_again(
    engine: ComfyUIEngine, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member, "PROBE_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(member, "HANG_SECONDS", 5.0)
    hung = pid_of(state_dir)
    os.kill(hung, signal.SIGSTOP)
    until(lambda: not is_up(engine), 15)
    until(lambda: pid_of(state_dir) != hung, 60)
    until(lambda: is_up(engine), 60)


def test_hung_it_is_a_timeout_and_started_again(engine: ComfyUIEngine, state_dir: Path) -> None:
    hung = pid_of(state_dir)
    os.kill(hung, signal.SIGSTOP)
    error = failure(engine, job(picture(seed=2)), Call(2))
    assert error.code == "TIMEOUT"
    until(lambda: pid_of(state_dir) != hung, 30)
    assert not is_running(hung)


def test_closed_while_it_starts_it_ends_soon_leaves_no_process_and_answers_no_more(
    engine: ComfyUIEngine, state_dir: Path
) -> None:
    pid = pid_of(state_dir)  # of the one that the test before has had started
    assert seconds_of(engine.close) < 3
    assert not is_running(pid)
    assert not (state_dir / "comfyui-0" / PID_FILE).exists()
    assert failure(engine, job()).code == "ENGINE_UNAVAILABLE"


def fake_comfyui(folder: Path, main: str) -> Path:
    """A folder that looks like ComfyUI, with this program."""
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfy" / "cli_args.py").write_text("")
    (folder / "main.py").write_text(main)
    return folder


DEAF = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(60)
"""


def test_one_that_starts_and_listens_to_no_signal_is_ended_at_once(tmp_path: Path) -> None:
    state = tmp_path / "state"
    engine = ComfyUIEngine(comfyui=fake_comfyui(tmp_path / "comfyui", DEAF), state_dir=state, usual_url=NOWHERE)
    with ThreadPoolExecutor(1) as threads:
        started = threads.submit(engine.start)
        log = state / "comfyui-0" / "comfyui.log"
        until(lambda: log.is_file() and "deaf" in log.read_text())
        pid = pid_of(state)
        assert seconds_of(engine.close) < 2
        with pytest.raises(LatentEncoderError, match="The engine is closed"):
            started.result(5)
    assert not is_running(pid)


POLITE = """
import http.server, json, sys

class Stats(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"system": {"argv": sys.argv}}).encode())

try:
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Stats).serve_forever()
except KeyboardInterrupt:
    print("goodbye", flush=True)
"""


def test_one_that_runs_is_asked_to_end(tmp_path: Path) -> None:
    state = tmp_path / "state"
    supervisor = Supervisor(fake_comfyui(tmp_path / "comfyui", POLITE), state)
    supervisor.start()
    pid = pid_of(state)
    supervisor.close(threading.Thread())
    assert not is_running(pid)
    assert not (state / "comfyui-0" / PID_FILE).exists()
    assert "goodbye" in (state / "comfyui-0" / "comfyui.log").read_text()


@pytest.mark.parametrize("step", ["engine.running_server", "supervisor.our_server"])
def test_closed_before_there_is_a_process_none_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    module, name = step.split(".")
    reached, go_on, began = threading.Event(), threading.Event(), []
    module = importlib.import_module(f"latent_encoder.service.engines.comfyui.{module}")
    does = getattr(module, name)

    def slow(*values: Any, **named: Any) -> Any:
        reached.set()
        go_on.wait(10)
        return does(*values, **named)

    monkeypatch.setattr(module, name, slow)
    monkeypatch.setattr(ComfyUIServer, "_spawn", lambda server: began.append(server))
    comfyui = fake_comfyui(tmp_path / "comfyui", "")
    engine = ComfyUIEngine(comfyui=comfyui, state_dir=tmp_path / "state", usual_url=NOWHERE)
    with ThreadPoolExecutor(1) as threads:
        started = threads.submit(engine.start)
        assert reached.wait(5)
        closing = seconds_of(engine.close)
        go_on.set()
        with pytest.raises(LatentEncoderError, match="The engine is closed"):
            started.result(10)
    assert closing < 2
    for thread in [one.thread for one in engine._pool.members if one.thread.ident]:
        thread.join(10)
    assert began == []
    assert lock_lowest(tmp_path / "state", "comfyui-")[1] == 0


def test_what_a_killed_service_left_behind_is_ended_and_nothing_else(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import time; time.sleep(60)"]
    ours = subprocess.Popen([*words, "--base-directory", str(tmp_path)], start_new_session=True)
    other = subprocess.Popen(words, start_new_session=True)
    try:
        for process in (other, ours):
            until(lambda pid=process.pid: Path("/proc", str(pid), "cmdline").read_bytes())
            (tmp_path / PID_FILE).write_text(str(process.pid))
            half = tmp_path / f"{TEMPORARY_PREFIX}killed.tmp"
            half.write_text("")
            os.utime(half, (0, 0))
            end_leftover(tmp_path)
            assert not (tmp_path / PID_FILE).exists() and not half.exists()
        assert ours.wait(5) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        other.kill()
        ours.kill()


def test_a_comfyui_that_does_not_start_says_why(tmp_path: Path) -> None:
    comfyui = fake_comfyui(tmp_path / "comfyui", "raise SystemExit('the reason for it')")
    engine = ComfyUIEngine(comfyui=comfyui, state_dir=tmp_path / "state", usual_url=NOWHERE)
    with pytest.raises(LatentEncoderError, match="the reason for it") as caught:
        engine.start()
    engine.close()
    assert caught.value.code == "ENGINE_UNAVAILABLE"


def test_a_folder_without_comfyui_is_never_replaced_by_another(tmp_path: Path) -> None:
    engine = ComfyUIEngine(comfyui=tmp_path, state_dir=tmp_path / "state", usual_url=NOWHERE)
    with pytest.raises(LatentEncoderError, match="COMFYUI_PATH") as caught:
        engine.start()
    assert caught.value.code == "ENGINE_UNAVAILABLE"
    engine.close()
