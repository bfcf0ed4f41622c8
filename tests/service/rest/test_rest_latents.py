"""GET /v1/latents and /v1/vaes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from service.rest.process import ROOT, RestService, error_of


@pytest.fixture(scope="module")
def latent(rest: RestService) -> bytes:
    """The file of the request ``stored``."""
    return Path(rest.encode(request_id="stored").json()["latent_file_path"]).read_bytes()


def test_file_comes_whole_with_its_checksum_as_etag(rest: RestService, latent: bytes) -> None:
    response = rest.client.get("/v1/latents/stored")
    assert response.status_code == 200 and response.content == latent
    assert response.headers["ETag"] == f'"{hashlib.sha256(latent).hexdigest()}"'
    assert "stored.safetensors" in response.headers["Content-Disposition"]
    head = rest.client.head("/v1/latents/stored")
    assert head.status_code == 200 and head.content == b"" and head.headers["Content-Length"] == str(len(latent))


def test_caller_who_has_it_is_told_so(rest: RestService, latent: bytes) -> None:
    etag = f'"{hashlib.sha256(latent).hexdigest()}"'
    for given in (etag, f'"other", W/{etag}', "*"):
        response = rest.client.get("/v1/latents/stored", headers={"If-None-Match": given})
        assert (response.status_code, response.content, response.headers["ETag"]) == (304, b"", etag)
    assert rest.client.get("/v1/latents/stored", headers={"If-None-Match": '"other"'}).status_code == 200


def test_ranges(rest: RestService, latent: bytes) -> None:
    part = rest.client.get("/v1/latents/stored", headers={"Range": "bytes=8-99"})
    assert part.status_code == 206 and part.content == latent[8:100]
    assert part.headers["Content-Range"] == f"bytes 8-99/{len(latent)}"
    etag = f'"{hashlib.sha256(latent).hexdigest()}"'
    for condition, status in ((etag, 206), ('"other"', 200)):
        headers = {"Range": "bytes=-10", "If-Range": condition}
        assert rest.client.get("/v1/latents/stored", headers=headers).status_code == status
    beyond = rest.client.get("/v1/latents/stored", headers={"Range": f"bytes={len(latent)}-"})
    assert error_of(beyond) == (416, "INVALID_REQUEST") and beyond.headers["Content-Range"] == f"bytes */{len(latent)}"
    for nonsense in ("bytes=x", "bytes=9-1", "pages=1-2", ""):
        response = rest.client.get("/v1/latents/stored", headers={"Range": nonsense})
        assert response.status_code == 200 and response.content == latent


def test_other_folders_and_formats(rest: RestService) -> None:
    rest.encode(request_id="stored-npy", output_dir="more/deep", file_format="npy")
    assert rest.client.get("/v1/latents/stored-npy", params={"output_dir": "more/deep"}).content[:6] == b"\x93NUMPY"
    assert error_of(rest.client.get("/v1/latents/stored-npy")) == (404, "LATENT_NOT_FOUND")


@pytest.mark.parametrize("folder", ["/etc", "..", "more/../pictures", "pictures", "output\0"])
def test_folders_that_are_not_allowed(rest: RestService, folder: str) -> None:
    response = rest.client.get("/v1/latents/stored", params={"output_dir": folder})
    assert error_of(response) == (403, "PATH_NOT_ALLOWED")


def test_names_that_are_no_request(rest: RestService) -> None:
    assert error_of(rest.client.get("/v1/latents/unknown")) == (404, "LATENT_NOT_FOUND")
    assert error_of(rest.client.get("/v1/latents/.hidden")) == (400, "INVALID_REQUEST")
    assert error_of(rest.client.get("/v1/latents/..%2F..%2Fetc%2Fpasswd"))[0] in (400, 404)
    link = rest.here / "output" / "link.safetensors"
    link.symlink_to("/etc/hostname")
    assert error_of(rest.client.get("/v1/latents/link")) == (403, "PATH_NOT_ALLOWED")
    assert error_of(rest.encode(request_id="link")) == (403, "PATH_NOT_ALLOWED")


def test_folders_that_cannot_be_looked_into(rest: RestService, latent: bytes) -> None:
    folder = str(rest.here / "output" / ("a" * 300))
    response = rest.client.get("/v1/latents/stored", params={"output_dir": folder})
    assert error_of(response) == (404, "LATENT_NOT_FOUND")


def test_file_of_a_newer_version(rest: RestService) -> None:
    path = Path(rest.encode(request_id="newer").json()["latent_file_path"])
    sidecar = path.with_name(f"{path.name}.json")
    sidecar.write_text(sidecar.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    assert error_of(rest.client.get("/v1/latents/newer")) == (422, "FORMAT_UNSUPPORTED")
    documented = json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"]["/v1/latents/{request_id}"]
    assert {"FORMAT_UNSUPPORTED", "OUT_OF_MEMORY"} <= {
        code
        for status in ("422", "503")
        for code in documented["get"]["responses"][status]["content"]["application/json"]["examples"]
    }


def test_damaged_file_is_not_handed_out(rest: RestService) -> None:
    path = Path(rest.encode(request_id="damaged").json()["latent_file_path"])
    assert rest.client.get("/v1/latents/damaged").status_code == 200
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert error_of(rest.client.get("/v1/latents/damaged")) == (422, "LATENT_INVALID")


def test_vaes_are_listed(rest: RestService) -> None:
    body = rest.client.get("/v1/vaes").json()
    assert "demo_vae.safetensors" in body["vaes"] and body["default"] == "demo_vae.safetensors"
    assert body["engine"] == "embedded"
