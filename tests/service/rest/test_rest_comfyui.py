"""The same door on the other engine: a real ComfyUI server."""

from __future__ import annotations

from pathlib import Path

from comfyui.servers import Server
from pictures import bad
from service.rest.process import PICTURE, RestService, error_of

from latent_encoder.latent_file import verify_latent


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
