"""deploy/kubernetes, read as text: valid objects whose names, keys, folders and numbers fit one another and ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from latent_encoder.service.config import NAMES, SECRET_FILES, Settings
from latent_encoder.service.kafka.topics import Plan
from latent_encoder.service.kafka.worker import DRAIN_SECONDS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
SECRETS = "/run/secrets/kafka"
# The oldest Kubernetes that has sidecars, and a new one.
VERSIONS = ["1.29", "1.37"]
DEFAULTS = Settings()


def documents() -> dict[str, dict[str, Any]]:
    """Every object by ``Kind/name``."""
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            name = document.get("metadata", {}).get("name", path.name)
            found[f"{document['kind']}/{name}"] = document
    return found


OBJECTS = documents()
OTHERS = ("keda.sh/", "kustomize.config.k8s.io/")
NATIVE = [name for name, document in OBJECTS.items() if not document["apiVersion"].startswith(OTHERS)]
WORKER = OBJECTS["Deployment/latent-encoder-worker"]
POD = WORKER["spec"]["template"]["spec"]
CONFIG = OBJECTS["ConfigMap/latent-encoder"]["data"]
SECRET = OBJECTS["Secret/latent-encoder-kafka"]["stringData"]
SCALED = OBJECTS["ScaledObject/latent-encoder-worker"]["spec"]
CONTAINERS = {container["name"]: container for container in POD["containers"] + POD["initContainers"]}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NATIVE)
def test_an_object_is_valid(name: str, version: str) -> None:
    kubernetes_validate.validate(OBJECTS[name], version, strict=True)


def test_the_kustomization_names_files_that_are_there() -> None:
    kustomization = OBJECTS["Kustomization/kustomization.yaml"]
    files = {path.name for path in FOLDER.glob("*.yaml")}
    # The Secret is filled in elsewhere, and the Job runs once: both are applied by hand.
    assert files - set(kustomization["resources"]) == {"kustomization.yaml", "secret.example.yaml", "topics.yaml"}
    assert set(kustomization["resources"]) <= files


def test_images_are_those_that_compose_builds() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    used = {container["image"].partition(":")[0] for container in CONTAINERS.values()}
    assert used == {services[name]["image"] for name in ("worker", "comfyui")}
    assert used == {image["name"] for image in OBJECTS["Kustomization/kustomization.yaml"]["images"]}


def test_the_config_map_holds_settings_with_allowed_values(tmp_path: Path) -> None:
    assert set(CONFIG) <= {*NAMES.values(), *SECRET_FILES.values()}
    for key, value in SECRET.items():
        (tmp_path / key).write_text(value, encoding="utf-8")
    environment = {key: value.replace(SECRETS, str(tmp_path)) for key, value in CONFIG.items()}
    command = [sys.executable, str(ROOT / "main.py"), "--show-settings"]
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert SECRET["password"] not in run.stdout


def test_each_secret_is_a_key_and_none_is_in_the_config_map() -> None:
    named = [value for value in CONFIG.values() if value.startswith(SECRETS)]
    assert {value.removeprefix(f"{SECRETS}/") for value in named} == set(SECRET)
    assert {"KAFKA_SASL_PASSWORD", "KAFKA_SASL_USERNAME"} & set(CONFIG) == set()


def test_probes_ask_our_endpoints() -> None:
    worker = CONTAINERS["worker"]
    asked = {name: worker[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    paths = {name: probe["path"] for name, probe in asked.items()}
    assert paths == {
        "startupProbe": "/health/live",
        "livenessProbe": "/health/live",
        "readinessProbe": "/health/ready",
    }
    ports = {port["name"]: port["containerPort"] for port in worker["ports"]}
    assert {ports[probe["port"]] for probe in asked.values()} == {DEFAULTS.rest_port}
    assert "startupProbe" in CONTAINERS["comfyui"]


def test_a_worker_may_finish_its_work() -> None:
    assert POD["terminationGracePeriodSeconds"] >= DRAIN_SECONDS + 10
    assert worker_command(CONTAINERS["worker"]) == ["--mode", "kafka"]
    # ComfyUI is a sidecar: started before the worker, stopped after it.
    assert CONTAINERS["comfyui"]["restartPolicy"] == "Always"


def worker_command(container: dict[str, Any]) -> list[str]:
    """The words behind the image's ENTRYPOINT, which stays."""
    assert "command" not in container
    return container["args"]


def test_every_mount_has_its_volume_and_every_volume_its_source() -> None:
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    mounts = [mount for container in CONTAINERS.values() for mount in container["volumeMounts"]]
    assert {mount["name"] for mount in mounts} == set(volumes)
    for volume in volumes.values():
        if "persistentVolumeClaim" in volume:
            assert f"PersistentVolumeClaim/{volume['persistentVolumeClaim']['claimName']}" in OBJECTS
        if "secret" in volume:
            assert f"Secret/{volume['secret']['secretName']}" in OBJECTS
    assert CONTAINERS["worker"]["envFrom"] == [{"configMapRef": {"name": "latent-encoder"}}]


def test_folders_are_mounts_and_the_state_is_the_pods_own() -> None:
    mounts = {mount["mountPath"]: mount["name"] for mount in CONTAINERS["worker"]["volumeMounts"]}
    assert CONFIG["LATENT_ENCODER_INPUT_ROOTS"] == CONFIG["LATENT_ENCODER_OUTPUT_ROOTS"] == "/data"
    assert CONFIG["OUTPUT_DIR"].startswith("/data/")
    assert mounts["/data"] == "data"
    assert mounts[SECRETS] == "kafka"
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    state = next(path for path, name in mounts.items() if name == "state")
    assert f"LATENT_ENCODER_STATE_DIR={state} " in dockerfile
    assert next(volume for volume in POD["volumes"] if volume["name"] == "state")["emptyDir"] == {}
    claim = OBJECTS["PersistentVolumeClaim/latent-encoder-data"]["spec"]
    assert claim["accessModes"] == ["ReadWriteMany"]


def test_nothing_runs_as_root_or_is_given_more_than_it_needs() -> None:
    user = POD["securityContext"]["runAsUser"]
    assert f"useradd --uid {user} " in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert POD["securityContext"]["runAsNonRoot"]
    assert not POD["automountServiceAccountToken"]
    # Variables of Services would be taken for settings: REST_PORT, KAFKA_...
    assert not POD["enableServiceLinks"]
    for container in CONTAINERS.values():
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"]
        assert container["resources"]["limits"]["memory"]


def test_others_reach_the_metrics_and_not_comfyui() -> None:
    policy = OBJECTS["NetworkPolicy/latent-encoder-worker"]["spec"]
    assert policy["podSelector"] == WORKER["spec"]["selector"]
    assert WORKER["spec"]["selector"]["matchLabels"] == WORKER["spec"]["template"]["metadata"]["labels"]
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"] == [{"ports": [{"port": DEFAULTS.rest_port}]}]


def test_workers_scale_by_the_lag_of_our_group() -> None:
    assert SCALED["scaleTargetRef"] == {key: WORKER[key] for key in ("apiVersion", "kind")} | {
        "name": WORKER["metadata"]["name"]
    }
    assert "replicas" not in WORKER["spec"]
    (trigger,) = SCALED["triggers"]
    metadata = trigger["metadata"]
    assert trigger["type"] == "kafka"
    assert metadata["bootstrapServers"] == CONFIG["KAFKA_BOOTSTRAP_SERVERS"]
    assert metadata["consumerGroup"] == CONFIG.get("KAFKA_CONSUMER_GROUP", DEFAULTS.kafka_consumer_group)
    assert metadata["topic"] == CONFIG.get("KAFKA_REQUEST_TOPIC", DEFAULTS.kafka_request_topic)
    assert int(metadata["lagThreshold"]) > 0
    assert metadata["offsetResetPolicy"] == "earliest"
    assert {type(value) for value in metadata.values()} == {str}
    # More workers than partitions would be idle.
    assert metadata["allowIdleConsumers"] == "false"
    assert SCALED["maxReplicaCount"] == Plan().partitions
    assert SCALED["minReplicaCount"] == 1


def test_keda_logs_in_as_the_workers_do() -> None:
    (trigger,) = SCALED["triggers"]
    login = OBJECTS[f"TriggerAuthentication/{trigger['authenticationRef']['name']}"]["spec"]["secretTargetRef"]
    assert {entry["parameter"] for entry in login} == {"username", "password", "ca"}
    for entry in login:
        assert f"Secret/{entry['name']}" in OBJECTS
        assert entry["key"] in SECRET
    assert CONFIG["KAFKA_SECURITY_PROTOCOL"] == "sasl_ssl"
    assert trigger["metadata"]["tls"] == "enable"
    assert trigger["metadata"]["sasl"] == CONFIG["KAFKA_SASL_MECHANISM"].lower().replace("-", "_", 1).replace("-", "")


def test_the_job_that_creates_topics_is_a_worker_with_its_settings() -> None:
    pod = OBJECTS["Job/latent-encoder-topics"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert worker_command(container) == ["topics", "create"]
    assert container["image"] == CONTAINERS["worker"]["image"]
    assert container["envFrom"] == CONTAINERS["worker"]["envFrom"]
    assert pod["volumes"] == [volume for volume in POD["volumes"] if volume["name"] == "kafka"]
    assert pod["securityContext"]["runAsUser"] == POD["securityContext"]["runAsUser"]
