"""compose.yaml, read as text: valid, its names are our settings, and its addresses, topics and folders fit together."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from latent_encoder.service.config import NAMES, Settings
from latent_encoder.service.kafka.worker import DRAIN_SECONDS

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = Settings()
OURS = ["topics", "worker"]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return compose["services"]


def show_settings(folder: Path, environment: dict[str, str]) -> str:
    """What ``--show-settings`` says in a folder, with these variables alone; it must not complain."""
    command = [sys.executable, str(ROOT / "main.py"), "--show-settings"]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def seconds(text: str) -> int:
    assert re.fullmatch(r"\d+s", text)
    return int(text[:-1])


def test_it_follows_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    run = subprocess.run(
        [*command, str(ROOT / "compose.yaml")], capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_it_has_every_part(services: dict[str, Any]) -> None:
    assert set(services) == {"kafka", "topics", "comfyui", "worker"}
    assert services["kafka"]["image"].startswith("apache/kafka:4.")
    targets = [services[name]["build"]["target"] for name in ("topics", "comfyui", "worker")]
    assert targets == ["worker", "comfyui", "worker"]
    assert services["topics"]["command"] == ["topics", "create"]
    assert "post_start" not in services["kafka"]  # topics are made in one way


@pytest.mark.parametrize("name", OURS)
def test_what_a_container_is_told_are_settings_with_allowed_values(
    services: dict[str, Any], name: str, tmp_path: Path
) -> None:
    environment = services[name]["environment"]
    assert set(environment) <= set(NAMES.values())
    show_settings(tmp_path, {key: value for key, value in environment.items() if value is not None})


def test_the_addresses_are_those_that_clients_use(services: dict[str, Any]) -> None:
    kafka = services["kafka"]
    advertised = dict(entry.split("://") for entry in kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(","))
    listening = dict(entry.split("://") for entry in kafka["environment"]["KAFKA_LISTENERS"].split(","))
    assert advertised["HOST"] == DEFAULTS.kafka_bootstrap_servers
    port = advertised["HOST"].partition(":")[2]
    assert kafka["ports"] == [f"127.0.0.1:{port}:{port}"]
    for name in OURS:
        assert services[name]["environment"]["KAFKA_BOOTSTRAP_SERVERS"] == advertised["DOCKER"]
    for listener in advertised:
        assert listening[listener] == ":" + advertised[listener].partition(":")[2]
    protocols = kafka["environment"]["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"]
    assert {entry.split(":")[0] for entry in protocols.split(",")} == set(listening)
    assert services["worker"]["environment"]["COMFYUI_URL"] == "http://comfyui:8188"


def test_workers_can_be_many(services: dict[str, Any]) -> None:
    worker = services["worker"]
    assert {"container_name", "ports", "hostname"} & set(worker) == set()
    # A worker's id and its state come from its own container.
    assert {"LATENT_ENCODER_WORKER_ID", "LATENT_ENCODER_STATE_DIR"} & set(worker["environment"]) == set()
    assert worker["volumes"] == ["data:/data"]


def test_the_data_volume_is_what_may_be_read_and_written(compose: dict[str, Any], services: dict[str, Any]) -> None:
    environment = services["worker"]["environment"]
    assert environment["LATENT_ENCODER_INPUT_ROOTS"] == environment["LATENT_ENCODER_OUTPUT_ROOTS"] == "/data"
    assert environment["OUTPUT_DIR"].startswith("/data/")
    assert set(compose["volumes"]) == {"data", "kafka"}


def test_each_waits_for_what_it_needs(services: dict[str, Any]) -> None:
    waits = {name: {on: how["condition"] for on, how in services[name]["depends_on"].items()} for name in OURS}
    assert waits == {
        "topics": {"kafka": "service_healthy"},
        "worker": {"topics": "service_completed_successfully", "comfyui": "service_healthy"},
    }
    assert services["kafka"]["healthcheck"]["test"][0] == "CMD"
    # Those of the two images are in the Dockerfile.
    assert "healthcheck" not in services["worker"] | services["comfyui"]


def test_what_ends_is_started_again_and_may_finish_its_work(services: dict[str, Any]) -> None:
    restarts = {name: service["restart"] for name, service in services.items()}
    assert restarts.pop("topics") == "no"
    assert set(restarts.values()) == {"unless-stopped"}
    assert seconds(services["worker"]["stop_grace_period"]) >= DRAIN_SECONDS + 10


def test_the_example_of_the_settings_is_one_that_starts(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes((ROOT / ".env.example").read_bytes())
    shown = show_settings(tmp_path, {})
    assert {line.split()[-1] for line in shown.splitlines()} == {"default"}
