"""The same door on the other engine: a real ComfyUI server."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from comfyui.hosts import Host
from comfyui.servers import Server
from pictures import bad
from service.rest.process import PICTURE, RestService, error_of, wait_for

from latent_encoder.latent_file import verify_latent
from latent_encoder.service.engines.comfyui.supervisor import PID_FILE


def test_requests_are_answered_by_comfyui_with_the_same_codes(comfyui_server: Server, tmp_path: Path) -> None:
    service = RestService(
        tmp_path,
        LATENT_ENCODER_ENGINE="comfyui",
        COMFYUI_URL=comfyui_server.process.url,
        VAE_MODEL_NAME=comfyui_server.host.demo_vae,
    ).start()
    assert comfyui_server.host.demo_vae in service.client.get("/v1/vaes").json()["vaes"]
    body = service.upload(request_id="by-comfyui", name="größe 1.png").json()
    assert body["status"] == "success" and body["metadata"]["engine"] == "comfyui", body
    assert verify_latent(Path(body["latent_file_path"])) and body["metadata"]["image_name"] == "größe 1.png"
    assert service.upload(request_id="by-comfyui").json()["metadata"]["reused"] is True
    assert error_of(service.upload(bad()["cut-png"].data)) == (422, "IMAGE_INVALID")
    assert error_of(service.upload(bad()["bomb"].data)) == (413, "IMAGE_TOO_LARGE")
    assert error_of(service.encode(vae_model_name="none.safetensors")) == (404, "VAE_MODEL_NOT_FOUND")
    service.client.post("/v1/jobs", files={"image": PICTURE}, data={"request_id": "job-by-comfyui"})
    assert service.ended("job-by-comfyui")["response"]["metadata"]["engine"] == "comfyui"
    assert service.stop() == 0


@pytest.mark.soak
def test_comfyui_that_dies_turns_readiness_red_and_its_request_succeeds_on_the_next_one(
    newest_host: Host, models_folder: Path, tmp_path: Path
) -> None:
    service = RestService(
        tmp_path,
        LATENT_ENCODER_ENGINE="comfyui",
        COMFYUI_PATH=str(newest_host.checkout),
        MODEL_DIR=str(models_folder),
        VAE_MODEL_NAME=newest_host.demo_vae,
    ).start()
    pid_file = tmp_path / ".latent_encoder" / "comfyui-0" / PID_FILE
    first = int(pid_file.read_text())
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(service.encode, request_id="in-between", megapixels=0.3)
        wait_for(lambda: service.metric('latent_encoder_running{engine="comfyui"}') == 1)
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: not service.is_ready())
        assert error_of(service.client.get("/health/ready")) == (503, "ENGINE_UNAVAILABLE")
        service.submit(request_id="patient", megapixels=0.02)
        body = asked.result().json()
    assert body["status"] == "success" and verify_latent(Path(body["latent_file_path"])), body
    assert int(pid_file.read_text()) != first
    wait_for(service.is_ready)
    assert service.ended("patient")["response"]["status"] == "success"
    assert service.stop() == 0
