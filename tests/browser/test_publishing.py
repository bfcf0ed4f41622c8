"""PublishLatentToKafka in the editor: where a message went, by a real Apache Kafka, or why it did not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser.editor import Editor
from browser.graphs import BOTH_RENDERINGS, check_words, fail, lay, look_at, node, panel, run
from browser.shots import take_node
from comfyui.servers import Server
from kafka.broker import Broker, ExistingBroker, session_broker
from kafka.topics import create_topics, read_topic
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

PUBLISHED = "Published message"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker | ExistingBroker]:
    with session_broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture
def properties(server: Server) -> Iterator[Path]:
    """Where the administrator's settings stand."""
    path = server.folder / "user" / "__latent_encoder" / "client.properties"
    path.parent.mkdir(parents=True, exist_ok=True)
    yield path
    path.unlink(missing_ok=True)


def allow(path: Path, topic: str, bootstrap: str) -> None:
    lines = {"latent_encoder.topics": topic, "latent_encoder.timeout_seconds": 3, "bootstrap.servers": bootstrap}
    path.write_text("".join(f"{name}={value}\n" for name, value in lines.items()), encoding="utf-8")


def lay_publisher(editor: Editor, topic: str) -> int:
    nodes = {
        "source": node("ProbeLatent", 0, kind="plain"),
        "saver": node("SaveLatentToDisk", 350, filename_prefix="sent", preview=False),
        "publisher": node("PublishLatentToKafka", 800, topic=topic, key="größe"),
    }
    ids = lay(editor, nodes, [("source", 0, "saver", "samples"), ("saver", 1, "publisher", "record")])
    look_at(editor, ids["publisher"])
    return ids["publisher"]


@BOTH_RENDERINGS
def test_shows_where_the_message_stands(
    editor: Editor, server: Server, broker: Broker, properties: Path, rendering: str
) -> None:
    topic = f"latents-{rendering}-{server.host.version}"
    create_topics(broker.bootstrap, topic)
    allow(properties, topic, broker.bootstrap)
    editor.reload()  # the editor asks for the nodes' choices once
    publisher = lay_publisher(editor, topic)
    run(editor, server)
    (message,) = read_topic(broker.bootstrap, topic)
    check_shown(editor, topic, message.partition(), message.offset())
    expect(panel(editor, PUBLISHED).locator("[data-field=payload]")).to_have_text("reference")
    expect(panel(editor, PUBLISHED).locator("[data-field=key]")).to_have_text("größe")
    take_node(editor, server, "PublishLatentToKafka")

    editor.page.wait_for_timeout(1500)
    editor.reload()
    look_at(editor, publisher)
    check_shown(editor, topic, message.partition(), message.offset())
    expect(panel(editor, PUBLISHED).locator("[data-field=key]")).to_have_count(0)  # the workflow does not keep it
    assert editor.ours == []


def check_shown(editor: Editor, topic: str, partition: int, offset: int) -> None:
    shown = panel(editor, PUBLISHED)
    expect(shown.locator(".latent-encoder-name")).to_have_text(f"{topic}[{partition}]@{offset}")
    expect(shown.locator("[data-field=sentAt]")).to_contain_text(time.strftime("%Y"))


@BOTH_RENDERINGS
def test_says_why_it_did_not_go(editor: Editor, server: Server, properties: Path, rendering: str) -> None:
    """Without settings, then with a broker that does not answer."""
    lay_publisher(editor, "nowhere")
    said = fail(editor, server)
    assert said.startswith("[KAFKA_UNAVAILABLE] Kafka is not set up here")
    check_words(editor, said)
    allow(properties, "nowhere", "127.0.0.1:1")
    said = fail(editor, server)
    assert said.startswith("[KAFKA_UNAVAILABLE]")
    assert "is not set up" not in said
    check_words(editor, said)
    expect(panel(editor, PUBLISHED)).to_have_count(0)
    assert editor.ours == []
