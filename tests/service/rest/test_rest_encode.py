"""POST /v1/encode: JSON and uploads, repeated ids, the errors and their statuses."""

from __future__ import annotations

import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from pictures import Bad, Good, bad, good, png
from service.rest.process import PICTURE, RestService, error_of, wait_for
from unit.conftest import mount

from latent_encoder.latent_file import verify_latent

RUNNING = 'latent_encoder_running{engine="embedded"}'
WAITING = 'latent_encoder_queue_depth{queue="encode"}'


def test_json_names_a_picture_and_is_answered_when_it_is_encoded(rest: RestService) -> None:
    response = rest.encode(request_id="json-1", correlation_id="order 7")
    body = response.json()
    assert response.status_code == 200 and body["status"] == "success"
    assert (body["request_id"], body["correlation_id"]) == ("json-1", "order 7")
    path = Path(body["latent_file_path"])
    assert path == rest.here / "output" / "json-1.safetensors"
    record = verify_latent(path)
    assert record and record == {key: body["metadata"][key] for key in record}
    assert body["metadata"]["reused"] is False and body["metadata"]["queue_time_ms"] >= 0


def test_upload_is_named_after_its_file_and_leaves_nothing_behind(rest: RestService) -> None:
    response = rest.upload(name="C:\\photos\\größe 1.png", request_id="upload-1", megapixels="0.03", schema_version="1")
    body = response.json()
    assert response.status_code == 200, body
    assert body["metadata"]["image_name"] == "größe 1.png" and body["metadata"]["megapixels"] == 0.03
    assert rest.uploads() == []


def test_absent_request_id_is_made(rest: RestService) -> None:
    body = rest.upload().json()
    assert body["status"] == "success" and len(body["request_id"]) == 32 and body["correlation_id"] is None


def test_repeated_id_is_answered_from_its_file_and_other_contents_conflict(rest: RestService) -> None:
    first, again = (rest.upload(request_id="repeated").json() for _ in range(2))
    assert not first["metadata"]["reused"] and again["metadata"]["reused"]
    assert first["metadata"]["file_sha256"] == again["metadata"]["file_sha256"]
    assert error_of(rest.upload(png(64, 64, 5), request_id="repeated")) == (409, "REQUEST_ID_CONFLICT")


def test_requests_with_one_id_at_once_are_one_encode_and_keep_no_other_waiting(held: RestService) -> None:
    held.hold()
    with ThreadPoolExecutor(4) as pool:
        same = [pool.submit(held.encode, request_id="triplets") for _ in range(3)]
        wait_for(lambda: held.metric(WAITING) == 2)
        other = pool.submit(held.encode, request_id="other")
        wait_for(lambda: "other" in held.encodes())
        assert held.metric(RUNNING) == 2
        held.hold(False)
        answers = [request.result().json() for request in same]
        assert other.result().status_code == 200
    assert [answer["status"] for answer in answers] == ["success"] * 3
    assert sorted(answer["metadata"]["reused"] for answer in answers) == [False, True, True]
    assert len({answer["metadata"]["file_sha256"] for answer in answers}) == 1
    assert held.encodes().count("triplets") == 1


def test_idempotency_key_stands_for_request_id(rest: RestService) -> None:
    def encode(key: str, **fields: str) -> object:
        return rest.client.post(
            "/v1/encode", json={"image_path": "pictures/a.png"} | fields, headers={"Idempotency-Key": key}
        )

    assert encode("key-1").json()["request_id"] == "key-1"
    assert encode("key-1", request_id="key-1").json()["metadata"]["reused"] is True
    assert error_of(encode("key-1", request_id="key-2")) == (400, "INVALID_REQUEST")
    assert error_of(encode("-starts-with-a-dash")) == (400, "INVALID_REQUEST")


def test_output_dir_and_format_are_the_request_s(rest: RestService) -> None:
    body = rest.encode(request_id="elsewhere", output_dir="more/deep", file_format="npy").json()
    assert body["latent_file_path"] == str(rest.here / "more" / "deep" / "elsewhere.npy")


@pytest.mark.parametrize("name", ["rgba", "palette", "gray-16-bit", "exif-rotated", "webp", "mpo", "odd-name"])
def test_odd_pictures_encode(rest: RestService, name: str) -> None:
    picture: Good = good()[name]
    body = rest.upload(picture.data, picture.filename, megapixels=str(picture.megapixels)).json()
    assert body["status"] == "success" and tuple(body["metadata"]["original_size"]) == picture.size, body


@pytest.mark.parametrize("name", bad())
def test_bad_pictures_are_refused_with_their_code(rest: RestService, name: str) -> None:
    picture: Bad = bad()[name]
    status = {"IMAGE_INVALID": 422, "IMAGE_TOO_LARGE": 413}[picture.code]
    assert error_of(rest.upload(picture.data, picture.filename)) == (status, picture.code)
    assert rest.uploads() == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"image_path": "pictures/none.png"}, (404, "IMAGE_NOT_FOUND")),
        ({"image_path": "pictures/../a.png"}, (403, "PATH_NOT_ALLOWED")),
        ({"image_path": "/etc/hostname"}, (403, "PATH_NOT_ALLOWED")),
        ({"image_path": "pictures/link.png"}, (403, "PATH_NOT_ALLOWED")),
        ({"image_path": "a\0b"}, (403, "PATH_NOT_ALLOWED")),
        ({"image_path": "pictures"}, (422, "IMAGE_INVALID")),
        ({"output_dir": "elsewhere"}, (403, "PATH_NOT_ALLOWED")),
        ({"output_dir": "more/out"}, (403, "PATH_NOT_ALLOWED")),
        ({"vae_model_name": "none.safetensors"}, (404, "VAE_MODEL_NOT_FOUND")),
        ({"vae_model_name": "../a"}, (403, "PATH_NOT_ALLOWED")),
        ({"image_path": "pictures/thin.png"}, (422, "SCALING_FAILED")),
        ({"deadline": "2020-01-01T00:00:00Z"}, (504, "TIMEOUT")),
    ],
)
def test_each_failure_has_its_status_and_code(
    rest: RestService, fields: dict[str, str], expected: tuple[int, str]
) -> None:
    link, out = rest.here / "pictures" / "link.png", rest.here / "more" / "out"
    if not link.is_symlink():
        link.symlink_to("/etc/hostname")
        out.parent.mkdir(exist_ok=True)
        out.symlink_to("/tmp")
        (rest.here / "pictures" / "thin.png").write_bytes(png(4000, 1))
    assert error_of(rest.encode(**fields)) == expected


def test_deadline_is_kept_while_a_request_waits_for_its_turn(held: RestService) -> None:
    held.hold()
    others = [threading.Thread(target=held.encode, kwargs={"request_id": f"front-{n}"}) for n in range(3)]
    for thread in others:
        thread.start()
    wait_for(lambda: held.metric(RUNNING) == 3)
    deadline = datetime.now(timezone.utc) + timedelta(seconds=2)
    response = held.encode(request_id="too-late", deadline=deadline.isoformat())
    assert error_of(response) == (504, "TIMEOUT")
    assert response.json()["metadata"]["queue_time_ms"] >= 400
    assert held.metric(WAITING) == 0
    held.hold(False)
    for thread in others:
        thread.join()
    assert "too-late" not in held.encodes()


def test_output_folder_that_is_a_file(rest: RestService) -> None:
    (rest.here / "more").mkdir(exist_ok=True)
    (rest.here / "more" / "file").write_bytes(PICTURE)
    assert error_of(rest.encode(output_dir="more/file")) == (507, "OUTPUT_DIR_NOT_WRITABLE")


def test_full_disk(rest: RestService) -> None:
    folder = rest.here / "more" / "small disk"
    folder.mkdir(parents=True, exist_ok=True)
    mount(folder, "-t", "tmpfs", "-o", "size=16k", "tmpfs")
    try:
        assert error_of(rest.encode(output_dir="more/small disk")) == (507, "DISK_FULL")
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)
