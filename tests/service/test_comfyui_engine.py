"""The comfyui engine on running servers: what comes back, what it refuses, what it leaves behind."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pictures
import pytest
from comfyui.prompts import by_hand, run
from comfyui.servers import Server
from safetensors.torch import load, load_file
from service.encode_jobs import SLOW, SMALL, assert_is_of, failure, files_in, job, picture, until
from service.reverse_proxy import ReverseProxy

from latent_encoder.errors import LatentEncoderError
from latent_encoder.latent_file import place_latent, verify_latent
from latent_encoder.service.config import Settings
from latent_encoder.service.engines.base import Call
from latent_encoder.service.engines.comfyui.connection import OUR_NODES
from latent_encoder.service.engines.comfyui.engine import ComfyUIEngine, running_server
from latent_encoder.service.engines.comfyui.workflow import built_in
from latent_encoder.staged_pictures import KEPT


@pytest.fixture(scope="module")
def engine(comfyui_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUIEngine]:
    """An engine on the running server."""
    made = ComfyUIEngine(
        urls=[comfyui_server.process.url], state_dir=tmp_path_factory.mktemp("state"), worker_id="worker"
    )
    made.start()
    yield made
    made.close()


@pytest.mark.parametrize("optimize", ["auto", "off"])
def test_the_latent_is_what_that_comfyui_makes_of_the_picture_by_hand(
    comfyui_server: Server, tmp_path: Path, optimize: Literal["auto", "off"]
) -> None:
    """To the bit, or as near as the faster way is."""
    settings = Settings(comfyui_url=[comfyui_server.process.url], state_dir=tmp_path, optimize=optimize)
    engine = ComfyUIEngine.from_settings(settings)
    engine.start()
    data = pictures.encode(pictures.photo(), "JPEG")
    (comfyui_server.input / "by_hand.jpg").write_bytes(data)
    vae = comfyui_server.host.demo_vae
    stock = run(comfyui_server, by_hand("by_hand.jpg", vae, f"by_hand_{optimize}", megapixels=SMALL))
    assert stock.success, stock.text
    wanted = job(picture(data, "photo.jpg"), vae_name=vae)
    encoded = engine.encode(wanted, Call(60))
    assert_is_of(encoded, wanted)
    by_hand_samples = load_file(comfyui_server.output / f"by_hand_{optimize}_00001_.latent")["latent_tensor"]
    difference = (load(encoded.content)["latent_tensor"] - by_hand_samples).abs().max()
    assert difference < 2e-5 if optimize == "auto" else difference == 0
    header = json.loads(encoded.content[8 : 8 + int.from_bytes(encoded.content[:8], "little")])
    assert not {"prompt", "workflow"} & header["__metadata__"].keys(), "a graph of ours, with our temporary names"
    assert encoded.record["optimized"] is (True if optimize == "auto" else None)
    assert encoded.record["engine_version"] == engine.version() == comfyui_server.host.version
    engine.close()


@pytest.mark.parametrize("file_format", ["safetensors", "latent", "pt", "npy"])
def test_what_comes_back_can_be_placed_and_verifies(engine: ComfyUIEngine, tmp_path: Path, file_format: str) -> None:
    encoded = engine.encode(job(file_format=file_format), Call(60))
    saved = place_latent(encoded.content, tmp_path, "a", record=encoded.record)
    record = verify_latent(saved.path)
    assert record is not None
    assert record["file_format"] == file_format


def test_progress_comes_over_the_websocket_and_never_falls(engine: ComfyUIEngine) -> None:
    parts: list[float] = []
    engine.encode(job(picture(seed=5)), Call(60, parts.append))
    assert parts == sorted(parts)
    assert parts[-1] == 1.0
    assert any(0.1 < part < 0.95 for part in parts), parts


def test_nothing_grows_in_the_servers_temp_folder(engine: ComfyUIEngine, comfyui_server: Server) -> None:
    def encode(seed: int) -> None:
        engine.encode(job(picture(seed=100 + seed), megapixels=0.01), Call(60))

    for seed in range(KEPT + 1):
        encode(seed)
    before = files_in(comfyui_server.temp)
    for seed in range(KEPT + 1, KEPT + 4):
        encode(seed)
    after = files_in(comfyui_server.temp)
    assert len(after) == len(before)
    ours = {name for name in after if name.startswith("latent_encoder/worker-")}
    suffixes = {name.rpartition(".")[2] for name in ours if name.startswith("latent_encoder/worker-0.")}
    assert suffixes <= {"png", "jpg", "safetensors", "latent", "pt", "npy", "json"}
    assert ours == {name for name in before if name.startswith("latent_encoder/worker-")}


def test_many_at_once_each_get_the_latent_of_their_own_picture(engine: ComfyUIEngine) -> None:
    jobs = [job(picture(seed=200 + n), request_id=f"request-{n}") for n in range(6)]
    with ThreadPoolExecutor(6) as threads:
        for wanted, encoded in zip(jobs, threads.map(lambda one: engine.encode(one, Call(90)), jobs), strict=True):
            assert_is_of(encoded, wanted)


def test_two_services_under_one_name_never_mix_their_pictures_up(
    comfyui_server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engines = [
        ComfyUIEngine(urls=[comfyui_server.process.url], state_dir=tmp_path / name, worker_id="same")
        for name in ("a", "b")
    ]
    jobs = [job(picture(seed=300 + n), megapixels=0.01) for n in range(8)]

    def encode(n: int) -> None:
        try:
            assert_is_of(engines[n % 2].encode(jobs[n], Call(90)), jobs[n])
        except LatentEncoderError as error:
            assert error.code == "ENGINE_UNAVAILABLE", error  # three times in a row; the hint is what matters
            assert "WORKER_ID" in error.hint

    for each in engines:
        each.start()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(encode, range(8)))
    for each in engines:
        each.close()


def test_services_that_share_a_state_folder_use_different_names(comfyui_server: Server, tmp_path: Path) -> None:
    urls = [comfyui_server.process.url]
    first, second = (ComfyUIEngine(urls=urls, state_dir=tmp_path) for _ in range(2))
    for each in (first, second):
        each.start()
        each.encode(job(), Call(60))
    numbers = {path.stem.rpartition("-")[2] for path in (tmp_path / "slots").iterdir()}
    first.close()
    second.close()
    assert numbers == {"0", "1"}


def test_services_of_two_folders_use_different_names(comfyui_server: Server, tmp_path: Path) -> None:
    urls = [comfyui_server.process.url]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        engine = ComfyUIEngine(urls=urls, state_dir=folder)
        engine.start()
        engine.encode(job(), Call(60))
        engine.close()
    names = [path.stem for folder in folders for path in (folder / "slots").iterdir()]
    assert len(names) == len(set(names)) == 2
    for name in names:
        assert (comfyui_server.temp / "latent_encoder" / f"{name}.safetensors").is_file()


def test_what_is_wrong_with_a_request_has_its_code(engine: ComfyUIEngine, comfyui_server: Server) -> None:
    missing = failure(engine, job(vae_name="nothing.safetensors"))
    assert missing.code == "VAE_MODEL_NOT_FOUND"
    assert "nothing.safetensors" in missing.message
    assert "There are: " in missing.message and comfyui_server.host.demo_vae in missing.message
    broken = comfyui_server.folder / "models" / "vae" / "broken.safetensors"
    broken.write_bytes(b"no weights")
    try:
        invalid = failure(engine, job(vae_name=broken.name))
    finally:
        broken.unlink()
    assert invalid.code == "VAE_MODEL_INVALID"
    assert "embedded" in invalid.hint
    assert failure(engine, job(megapixels=99.0)).code == "INVALID_REQUEST"


@pytest.mark.parametrize("fixture", ["comfyui_server", "old_server"])
def test_without_any_vae_it_says_so_and_stays_ready(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str
) -> None:
    server: Server = request.getfixturevalue(fixture)
    models = server.folder / "models"
    engine = ComfyUIEngine(urls=[server.process.url], state_dir=tmp_path)
    engine.start()
    folders = ("vae", "vae_approx")
    for name in folders:
        (models / name).rename(models / f"no_{name}")
        (models / name).mkdir()
    try:
        assert not set(engine.vaes()) - {"pixel_space"}  # which newer ones offer without a file
        error = failure(engine, job(vae_name=server.host.demo_vae))
        engine.check()
    finally:
        for name in folders:
            (models / name).rmdir()
            (models / f"no_{name}").rename(models / name)
        engine.close()
    assert error.code == "VAE_MODEL_NOT_FOUND"
    there = {
        f"ComfyUI has no VAE '{server.host.demo_vae}' in models/vae. There are{end}"
        for end in (" none.", ": pixel_space.")
    }
    assert error.message in there
    assert error.hint == "Put the file into the folder models/vae, or choose a VAE that is there."


def test_its_vaes_are_those_of_the_server(engine: ComfyUIEngine, comfyui_server: Server) -> None:
    assert {comfyui_server.host.demo_vae, "taesd", "spare_vae.safetensors"} <= set(engine.vaes())
    assert engine.vae_sha256(comfyui_server.host.demo_vae) is None  # another one's files cannot be seen


def test_an_old_comfyui_encodes_and_says_that_it_cannot_round(old_server: Server, tmp_path: Path) -> None:
    engine = ComfyUIEngine(urls=[old_server.process.url], state_dir=tmp_path)
    engine.start()
    try:
        wanted = job()
        assert_is_of(engine.encode(wanted, Call(60)), wanted)
        assert engine.version() == old_server.host.version
        if not old_server.host.has_resolution_steps:
            refused = failure(engine, job(resolution_steps=32))
            assert (refused.code, "update ComfyUI" in refused.hint) == ("INVALID_REQUEST", True)
    finally:
        engine.close()


def test_a_vae_that_only_one_of_two_servers_has_is_found_there(
    comfyui_server: Server, old_server: Server, tmp_path: Path
) -> None:
    names = {comfyui_server.host.demo_vae, old_server.host.demo_vae}
    engine = ComfyUIEngine(urls=[old_server.process.url, comfyui_server.process.url], state_dir=tmp_path)
    engine.start()
    until(lambda: names <= set(engine.vaes()))
    wanted = job(vae_name=comfyui_server.host.demo_vae)
    for _ in range(2):  # whichever server is asked first
        encoded = engine.encode(wanted, Call(60))
        assert_is_of(encoded, wanted)
        assert encoded.record["engine_version"] == comfyui_server.host.version
    assert failure(engine, job(vae_name="nothing.safetensors")).code == "VAE_MODEL_NOT_FOUND"
    engine.close()


def test_closing_ends_the_running_encode_and_its_prompt(comfyui_server: Server, tmp_path: Path) -> None:
    engine = ComfyUIEngine(urls=[comfyui_server.process.url], state_dir=tmp_path)
    engine.start()
    slow = job(picture(seed=12), vae_name=comfyui_server.host.demo_vae, megapixels=SLOW)
    with ThreadPoolExecutor(1) as threads:
        error = threads.submit(failure, engine, slow)
        until(lambda: comfyui_server.client.queued())
        engine.close()
        assert error.result(2).code == "ENGINE_UNAVAILABLE"
    until(lambda: not comfyui_server.client.queued(), 20)
    with pytest.raises(LatentEncoderError, match="ENGINE_UNAVAILABLE"):
        engine.check()


@pytest.fixture(params=["hidden", pytest.param("never there", marks=pytest.mark.soak)])
def bare_url(request: pytest.FixtureRequest, comfyui_server: Server) -> Iterator[str]:
    """A ComfyUI without our nodes."""
    if request.param == "never there":
        yield request.getfixturevalue("bare_server").url
        return
    with ReverseProxy(comfyui_server.process.url) as proxy:
        proxy.changes["GET /object_info"] = lambda info: {key: info[key] for key in info if key not in OUR_NODES}
        yield proxy.url


def test_a_server_without_our_nodes_is_named_so(bare_url: str, tmp_path: Path) -> None:
    engine = ComfyUIEngine(urls=[bare_url], state_dir=tmp_path)
    with pytest.raises(LatentEncoderError) as caught:
        engine.start()
    assert caught.value.code == "NODES_MISSING"
    assert "EncodeToLatentFile" in caught.value.message
    with pytest.raises(LatentEncoderError, match="NODES_MISSING"):
        engine.check()
    assert failure(engine, job()).code == "NODES_MISSING"
    engine.close()


def test_only_a_server_with_our_nodes_is_used_unasked(comfyui_server: Server, bare_url: str) -> None:
    assert running_server(comfyui_server.process.url, built_in()) == comfyui_server.process.url
    assert running_server(bare_url, built_in()) is None
    assert running_server("http://127.0.0.1:9", built_in()) is None


def test_the_server_at_the_usual_place_is_used_where_none_is_configured(comfyui_server: Server, tmp_path: Path) -> None:
    engine = ComfyUIEngine(state_dir=tmp_path, usual_url=comfyui_server.process.url)
    engine.start()
    engine.encode(job(), Call(60))
    engine.close()
    assert not list(tmp_path.glob("comfyui-*"))  # none was started


def test_the_settings_name_the_servers(comfyui_server: Server, tmp_path: Path) -> None:
    settings = Settings(comfyui_url=[comfyui_server.process.url], state_dir=tmp_path, worker_id="from-settings")
    engine = ComfyUIEngine.from_settings(settings)
    engine.start()
    engine.encode(job(), Call(60))
    engine.close()
    assert (comfyui_server.temp / "latent_encoder" / "from-settings-0.safetensors").is_file()


def test_a_caller_who_goes_away_takes_his_prompt_along(engine: ComfyUIEngine, comfyui_server: Server) -> None:
    slow = job(picture(seed=7), vae_name=comfyui_server.host.demo_vae, megapixels=SLOW)
    calls = [Call(60), Call(60)]
    errors: list[LatentEncoderError] = []
    threads = [threading.Thread(target=lambda call=call: errors.append(failure(engine, slow, call))) for call in calls]
    for thread in threads:
        thread.start()
    until(lambda: len(comfyui_server.client.queued()) == 2)  # one runs, one waits
    for call in calls:
        call.cancel()
    for thread in threads:
        thread.join(2)
        assert not thread.is_alive()
    assert [error.code for error in errors] == ["INTERRUPTED", "INTERRUPTED"]
    until(lambda: not comfyui_server.client.queued(), 20)
    wanted = job(picture(seed=8))
    assert_is_of(engine.encode(wanted, Call(60)), wanted)


def test_a_call_that_takes_too_long_is_cancelled_on_the_server(engine: ComfyUIEngine, comfyui_server: Server) -> None:
    slow = job(picture(seed=9), vae_name=comfyui_server.host.demo_vae, megapixels=SLOW)
    error = failure(engine, slow, Call(0.6))
    assert error.code == "TIMEOUT"
    until(lambda: not comfyui_server.client.queued(), 20)
    engine.check()


def test_somebody_elses_interruption_is_told(engine: ComfyUIEngine, comfyui_server: Server) -> None:
    slow = job(picture(seed=10), vae_name=comfyui_server.host.demo_vae, megapixels=SLOW)
    with ThreadPoolExecutor(1) as threads:
        error = threads.submit(failure, engine, slow)
        until(lambda: comfyui_server.client.queued())
        for _ in range(100):  # the first may come before the prompt runs
            comfyui_server.client.interrupt()
            if error.done():
                break
            until(lambda: True, pause=0.1)
    assert error.result().code == "INTERRUPTED"


def test_a_picture_that_is_gone_or_another_before_the_prompt_is_sent_again(
    comfyui_server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uploaded = comfyui_server.temp / "latent_encoder" / "tricked-0.png"
    tricks = [uploaded.unlink, lambda: uploaded.write_bytes(pictures.png(seed=77))]

    def before(request: str) -> None:
        if request == "POST /prompt" and tricks:
            tricks.pop(0)()

    with ReverseProxy(comfyui_server.process.url) as proxy:
        proxy.before = before
        engine = ComfyUIEngine(urls=[proxy.url], state_dir=tmp_path, worker_id="tricked")
        engine.start()
        wanted = job(picture(seed=11))
        assert_is_of(engine.encode(wanted, Call(60)), wanted)
        engine.close()
    assert proxy.seen.count("POST /upload/image") == 3
    assert caplog.text.count("sent again") == 2


def test_a_result_that_was_changed_before_it_came_back_is_not_taken(comfyui_server: Server, tmp_path: Path) -> None:
    saved = comfyui_server.temp / "latent_encoder" / "spoilt-0.safetensors"

    def before(request: str) -> None:
        if request == "GET /view":
            saved.write_bytes(saved.read_bytes()[:-1] + b"!")

    with ReverseProxy(comfyui_server.process.url) as proxy:
        proxy.before = before
        engine = ComfyUIEngine(urls=[proxy.url], state_dir=tmp_path, worker_id="spoilt")
        engine.start()
        error = failure(engine, job())
        engine.close()
    assert error.code == "ENGINE_UNAVAILABLE"
    assert "WORKER_ID" in error.hint
