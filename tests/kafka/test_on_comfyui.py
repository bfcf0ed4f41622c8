"""Workers on a real ComfyUI process: what must hold while either of the two is killed, away, or interrupted."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pictures
import pytest
from comfyui.hosts import Host, HostUnavailable, find_hosts, python_for
from comfyui.prompts import encode, node, outcome
from comfyui.servers import install_models, install_pack
from kafka.broker import Broker, free_ports
from kafka.groups import Group, ids
from kafka.outcomes import requests, text_header
from kafka.supervisor import readiness, wait_until
from kafka.topics import create_topics, read_topic, unread
from kafka.worker_starter import Starter
from kafka.workers import WorkerProcess

from latent_encoder.latent_file import load_latent
from latent_encoder.service.engines.comfyui.client import ComfyUIClient
from latent_encoder.service.engines.comfyui.server import ComfyUIServer

SLOW = 2.0
"""Megapixels of a picture that the demo VAE takes more than a second for."""


@pytest.fixture(scope="module")
def host() -> Host:
    """The newest ComfyUI checkout."""
    if not find_hosts():
        pytest.skip("no ComfyUI checkout is found: set COMFYUI_PATH")
    return find_hosts()[0]


@pytest.fixture(scope="module")
def stopped_comfyui(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUIServer]:
    """A ComfyUI with our nodes and the demo VAE, and a port that stays its own; the first who wants it starts it."""
    folder = tmp_path_factory.mktemp("comfyui")
    (folder / "custom_nodes").mkdir()
    install_pack(folder / "custom_nodes")
    install_models(folder / "models", host)
    try:
        python = python_for(host)
    except HostUnavailable as reason:
        pytest.skip(str(reason))
    (port,) = free_ports(1)
    server = ComfyUIServer(host.checkout, base_directory=folder, python=python, port=port, arguments=("--cpu",))
    yield server
    server.kill()


@pytest.fixture
def comfyui(stopped_comfyui: ComfyUIServer) -> ComfyUIServer:
    """It runs, whatever the tests before have done to it."""
    stopped_comfyui.start()
    return stopped_comfyui


@pytest.fixture
def group(
    broker: Broker, starter: Starter, host: Host, stopped_comfyui: ComfyUIServer, tmp_path: Path
) -> Iterator[Group]:
    """Its workers drive that ComfyUI."""
    settings = {
        "LATENT_ENCODER_ENGINE": "comfyui",
        "COMFYUI_URL": stopped_comfyui.url,
        "VAE_MODEL_NAME": host.demo_vae,
        "MEGAPIXELS": "0.02",
    }
    with Group(broker.bootstrap, tmp_path, starter, **settings) as group:
        yield group


def picture(group: Group, number: int) -> str:
    """A picture that no other number has; its absolute path."""
    path = group.folder / "pictures" / f"picture-{number}.png"
    path.write_bytes(pictures.png(seed=number))
    return str(path)


def wait_encoding(comfyui: ComfyUIServer) -> None:
    """Wait until it is at work on a prompt."""
    wait_until(lambda: httpx.get(f"{comfyui.url}/queue").json()["queue_running"], 60, lambda: "nothing is encoded")


def wait_unready(worker: WorkerProcess) -> None:
    """Wait until the worker says that its engine is away."""
    wait_until(lambda: readiness(worker)[0] == "ENGINE_UNAVAILABLE", 60, lambda: f"{readiness(worker)} {worker.log()}")


def encoded_by(group: Group) -> dict[str, Any]:
    """The one answer of each request, all of them good ones of the comfyui engine."""
    answers = {name: answer for name, (answer,) in group.finish().answers.items()}
    assert {answer["metadata"]["engine"] for answer in answers.values()} == {"comfyui"}
    return answers


def test_a_comfyui_that_is_not_there_at_the_start(group: Group, stopped_comfyui: ComfyUIServer) -> None:
    stopped_comfyui.kill()
    worker = group.worker()
    group.ask(ids("early", 2))
    wait_unready(worker)
    assert worker.health("/health/live").status_code == 200
    assert worker.metric("latent_encoder_kafka_partitions") == 0
    stopped_comfyui.start()
    assert group.finish().codes() == {"success": 2}
    worker.wait_ready()


def test_two_workers_share_one(group: Group, comfyui: ComfyUIServer) -> None:
    workers = [group.worker(name) for name in ("one", "two")]
    wait_until(
        lambda: all(worker.is_ready and worker.metric("latent_encoder_kafka_partitions") == 2 for worker in workers),
        60,
        lambda: "".join(worker.log() for worker in workers),
    )
    paths = {name: picture(group, number) for number, name in enumerate(ids("request", 12))}
    for name, path in paths.items():
        group.ask([name], path)
    answers = encoded_by(group)
    for name, path in paths.items():
        assert answers[name]["metadata"]["image_sha256"] == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert len({answer["metadata"]["file_sha256"] for answer in answers.values()}) == 12
    by_worker = {dict(message.headers())["ce_source"] for message in group.finish().messages}
    assert by_worker == {b"/latent-encoder/one", b"/latent-encoder/two"}


def test_a_worker_is_killed_while_its_picture_is_encoded(group: Group, comfyui: ComfyUIServer) -> None:
    worker = group.worker().wait_ready()
    for number, name in enumerate(ids("request", 2)):
        group.ask([name], picture(group, number), megapixels=SLOW)
    wait_encoding(comfyui)
    worker.kill()
    assert unread(group.bootstrap, group.name, group.topics.request)
    worker.start()
    assert group.finish().codes() == {"success": 2}


def test_comfyui_is_killed_while_it_encodes(group: Group, comfyui: ComfyUIServer) -> None:
    worker = group.worker().wait_ready()
    for number, name in enumerate(ids("request", 2)):
        group.ask([name], picture(group, number), megapixels=SLOW)
    wait_encoding(comfyui)
    comfyui.kill()
    wait_unready(worker)
    worker.wait_log("Consumption stops")
    begun = worker.metric("latent_encoder_kafka_begun_total")
    group.ask(ids("later", 8))
    time.sleep(2)
    assert worker.metric("latent_encoder_kafka_begun_total") == begun
    assert readiness(worker)[0] == "ENGINE_UNAVAILABLE"
    comfyui.start()
    result = group.finish()
    assert result.codes() == {"success": 10}
    assert result.dead == []
    worker.wait_ready()
    assert "Consumption goes on" in worker.log()


def test_a_user_interrupts_what_is_encoded_for_a_worker(group: Group, comfyui: ComfyUIServer) -> None:
    worker = group.worker().wait_ready()
    with ComfyUIClient(comfyui.url) as client:
        group.ask(["interrupted"], megapixels=SLOW)
        wait_encoding(comfyui)
        client.interrupt()
    assert group.finish().codes() == {"success": 1}
    assert "Tried again: Somebody interrupted the prompt in ComfyUI" in worker.log()


def test_a_vae_that_is_not_there(group: Group, comfyui: ComfyUIServer) -> None:
    worker = group.worker().wait_ready()
    group.send(requests(["none"], group.picture, vae_model_name="none.safetensors"))
    group.ask(["good"])
    result = group.finish()
    assert result.codes() == {"success": 1, "VAE_MODEL_NOT_FOUND": 1}
    (letter,) = result.dead
    assert text_header(letter, "dlq.error.code") == "VAE_MODEL_NOT_FOUND"
    assert text_header(letter, "dlq.error.stage") == "encode"
    assert json.loads(letter.value())["request_id"] == "none"
    assert worker.is_ready


def test_what_the_graph_publishes_is_a_file_that_its_reader_loads(
    broker: Broker, host: Host, comfyui: ComfyUIServer
) -> None:
    topic = f"published-{time.time_ns()}"
    create_topics(broker.bootstrap, topic, partitions=1)
    properties = comfyui.base_directory / "user" / "__latent_encoder" / "client.properties"
    properties.parent.mkdir(parents=True, exist_ok=True)
    properties.write_text(f"bootstrap.servers={broker.bootstrap}\nlatent_encoder.topics={topic}\n", encoding="utf-8")
    (comfyui.base_directory / "input" / "photo.png").write_bytes(pictures.png(seed=7))
    widgets = {"topic": topic, "key": "photo", "payload": "reference", "correlation_id": "order-7"}
    prompt = encode("photo.png", host.demo_vae) | {"3": node("PublishLatentToKafka", record=["2", 1], **widgets)}
    with ComfyUIClient(comfyui.url) as client:
        done = outcome(client.run(prompt, timeout=120))
    assert done.success, done.text
    (message,) = read_topic(broker.bootstrap, topic)
    assert (message.key(), dict(message.headers())["correlation-id"]) == (b"photo", b"order-7")
    record = json.loads(message.value())
    assert hashlib.sha256(Path(record["path"]).read_bytes()).hexdigest() == record["file_sha256"]
    loaded = load_latent(Path(record["path"]))
    assert loaded.verified
    assert list(loaded.latent["samples"].shape) == record["latent_shape"]
