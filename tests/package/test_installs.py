"""The pack, installed in each of the ways that users take, in a ComfyUI that is then started and used."""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from comfyui.hosts import Host, HostUnavailable, find_hosts
from confluent_kafka import KafkaException, Producer
from kafka.broker import Broker, ExistingBroker
from kafka.topics import create_topics, read_topic
from package.installs import NAME, TOPIC, WAYS, Installation
from package.node_ids import node_ids
from package.templates import MODEL_LOADERS, TEMPLATES, as_prompt, made_small, refusals, run_prompt, template
from package.tools import ROOT

import latent_encoder
from latent_encoder.latent_file import load_latent

pytestmark = pytest.mark.timeout(600)

REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir())
COMPLAINTS = re.compile(r"Traceback|IMPORT FAILED|Cannot import|Latent Encoder:|(WARN|ERROR).*latent", re.IGNORECASE)
# The newest ComfyUI in every way, the others in the way that most users take.
CASES = [
    pytest.param((host, way), id=f"{way}-{host}")
    for number, host in enumerate(find_hosts())
    for way in WAYS
    if number == 0 or way == "manager"
] or [pytest.param(None, marks=pytest.mark.skip(reason="no ComfyUI checkout is found: set COMFYUI_PATH"))]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Host, str]:
    return request.param


@pytest.fixture(scope="module")
def installed(
    case: tuple[Host, str], repository: Path, node_zip: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """A ComfyUI with the pack, started."""
    host, way = case
    try:
        installation = Installation(host, tmp_path_factory.mktemp("installed") / "ComfyUI")
    except HostUnavailable as reason:
        pytest.skip(str(reason))
    if way == "manager":
        WAYS[way](installation, node_zip, latent_encoder.__version__)
    else:
        WAYS[way](installation, repository)
    with installation.server:
        yield installation
    installation.clear()


def get(installation: Installation, path: str) -> httpx.Response:
    return httpx.get(f"{installation.server.url}{path}", trust_env=False).raise_for_status()


def test_manager_installs_each_requirement_by_itself(case: tuple[Host, str], installed: Installation) -> None:
    said = re.sub(r"\s+", " ", installed.said)
    if case[1] == "portable":
        assert [line for line in REQUIREMENTS if line not in said] == []
        return
    assert re.findall(r"EXECUTE => \[.*?'install', '(.*?)'\]", said) == REQUIREMENTS
    assert "ERROR" not in said


def test_it_is_laid_where_its_way_lays_it(case: tuple[Host, str], installed: Installation, node_zip: Path) -> None:
    assert installed.pack.name == NAME
    tracking = installed.pack / ".tracking"
    assert (installed.pack / ".git").is_dir() == (case[1] != "manager")
    assert tracking.is_file() == (case[1] == "manager")
    if tracking.is_file():
        with zipfile.ZipFile(node_zip) as archive:
            assert sorted(tracking.read_text(encoding="utf-8").splitlines()) == sorted(archive.namelist())


def test_every_node_is_found_and_nothing_is_said_against_it(installed: Installation) -> None:
    nodes = get(installed, "/object_info").json()
    ours = {name for name, node in nodes.items() if node["python_module"] == f"custom_nodes.{NAME}"}
    assert ours == set(node_ids().values())
    log = installed.server.log_path.read_text(encoding="utf-8")
    assert f"seconds: {installed.pack}" in log
    assert [line for line in log.splitlines() if COMPLAINTS.search(line)] == []


def test_the_editor_gets_its_files(installed: Installation) -> None:
    web = installed.pack / "web"
    scripts = {f"/extensions/{NAME}/{path.relative_to(web).as_posix()}" for path in web.rglob("*.js")}
    assert {path for path in get(installed, "/extensions").json() if NAME in path} == scripts
    helpers = {f"/extensions/{NAME}/{path.relative_to(web).as_posix()}" for path in web.rglob("*.mjs")}
    for path in scripts | helpers:
        assert "javascript" in get(installed, path).headers["content-type"]
    for node in node_ids().values():
        assert get(installed, f"/extensions/{NAME}/docs/{node}.md").text.strip()


def test_the_editor_gets_every_language(installed: Installation) -> None:
    texts = get(installed, "/i18n").json()
    for language in LANGUAGES:
        assert set(texts[language]["nodeDefs"]) >= set(node_ids().values())


def test_the_editor_gets_the_templates(installed: Installation) -> None:
    names = [path.stem for path in TEMPLATES]
    assert sorted(get(installed, "/workflow_templates").json()[NAME]) == names
    for path in TEMPLATES:
        served = f"/api/workflow_templates/{NAME}/{path.stem}"
        assert get(installed, f"{served}.json").json() == json.loads(path.read_text(encoding="utf-8"))
        assert get(installed, f"{served}.jpg").headers["content-type"] == "image/jpeg"


def encode(installed: Installation) -> list[dict[str, Any]]:
    """Run the template that encodes; the records of what it saved."""
    done = run_prompt(installed, made_small(installed, as_prompt(installed, template("example"))))
    assert done.success, done.text
    return done.records


def test_the_template_encodes(installed: Installation) -> None:
    records = encode(installed)
    assert len(records) == 2
    for record in records:
        loaded = load_latent(Path(record["path"]))
        assert loaded.verified
        assert list(loaded.latent["samples"].shape) == record["latent_shape"]


def test_the_template_loads_and_decodes(installed: Installation) -> None:
    encode(installed)
    prompt = made_small(installed, as_prompt(installed, template("load_and_decode")))
    done = run_prompt(installed, prompt)
    assert done.success, done.text
    (shown,) = done.all("images")
    assert (installed.folder / "temp" / shown["subfolder"] / shown["filename"]).is_file()


@pytest.fixture(scope="session")
def topic(broker: Broker | ExistingBroker) -> str:
    """The topic that the template names, on a broker that is awake: a new one keeps the first producer waiting."""
    with contextlib.suppress(KafkaException):  # a broker that was there before may have it
        create_topics(broker.bootstrap, TOPIC)
    first = Producer({"bootstrap.servers": broker.bootstrap, "enable.idempotence": True, "log_level": 0})
    first.produce(TOPIC, b"awake")
    assert first.flush(30) == 0
    return TOPIC


def test_the_template_publishes(installed: Installation, broker: Broker | ExistingBroker, topic: str) -> None:
    installed.allow_publishing(broker.bootstrap)
    prompt = made_small(installed, as_prompt(installed, template("encode_and_publish")))
    done = run_prompt(installed, prompt)
    assert done.success, done.text
    (told,) = done.all("kafka")
    place = (told["partition"], told["offset"])
    (message,) = [m for m in read_topic(broker.bootstrap, topic) if (m.partition(), m.offset()) == place]
    assert json.loads(message.value()) == done.record


def test_the_template_for_editing_lacks_nothing_but_models(installed: Installation) -> None:
    """And the latent file of an earlier run, which is there."""
    encode(installed)
    prompt = made_small(installed, as_prompt(installed, template("edit_with_qwen_image")))
    kinds = set(get(installed, "/object_info").json())
    assert {node["class_type"] for node in prompt.values()} <= kinds
    refused = refusals(installed, prompt)
    assert {kind for kind, _ in refused} == MODEL_LOADERS - {"VAELoader"}
    assert {error for _, error in refused} == {"value_not_in_list"}


def test_nothing_was_said_while_it_ran(installed: Installation) -> None:
    encode(installed)
    log = installed.server.log_path.read_text(encoding="utf-8")
    assert [line for line in log.splitlines() if COMPLAINTS.search(line)] == []
