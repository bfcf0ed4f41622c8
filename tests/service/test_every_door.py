"""The same pictures and requests through both doors and both engines: the same answers and codes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pictures
import pytest
from comfyui.servers import Server
from comfyui.small_vae import NAME as SMALL_VAE
from service.rest.process import RestService, error_of
from service.standalone_runs import CommandLine

from latent_encoder.latent_file import load_latent

ENGINES = ("embedded", "comfyui")
TOO_NARROW = "thin"  # at the 0.02 megapixels of these runs
SAME = ("latent_shape", "image_sha256", "original_size", "scaled_size", "vae_name", "vae_sha256", "downscale")


def codes() -> dict[str, str | None]:
    """What must come of each picture, by its file's name; None is success."""
    good = {picture.filename: None for name, picture in pictures.good().items() if name != TOO_NARROW}
    bad = {picture.filename: picture.code for picture in pictures.bad().values()}
    return good | bad | {pictures.good()[TOO_NARROW].filename: "SCALING_FAILED"}


def lay(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for picture in (*pictures.good().values(), *pictures.bad().values()):
        (folder / picture.filename).write_bytes(picture.data)


def environment(engine: str, server: Server) -> dict[str, str]:
    """The settings of an engine, with a small VAE that takes little time."""
    shared = {"LATENT_ENCODER_ENGINE": engine, "VAE_MODEL_NAME": SMALL_VAE}
    if engine == "comfyui":
        return shared | {"COMFYUI_URL": server.process.url}
    return shared | {"MODEL_DIR": str(server.folder / "models")}


@pytest.fixture(scope="module", params=ENGINES)
def service(
    request: pytest.FixtureRequest, comfyui_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RestService]:
    """A REST service on each engine; what must not be read lies beside its allowed folders."""
    service = RestService(
        tmp_path_factory.mktemp("doors"),
        LATENT_ENCODER_INPUT_ROOTS="pictures",
        OUTPUT_DIR="output",
        **environment(request.param, comfyui_server),
    )
    lay(service.here / "pictures")
    (service.here / "secret.png").write_bytes(pictures.png())
    (service.here / "pictures" / "link.png").symlink_to(service.here / "secret.png")
    yield service.start()
    assert service.stop() == 0


def test_every_picture_through_http(service: RestService) -> None:
    for n, (name, code) in enumerate(codes().items()):
        data = (service.here / "pictures" / name).read_bytes()
        named = service.encode(image_path=f"pictures/{name}", request_id=f"named-{n}")
        sent = service.upload(data, name=f"picture-{n}", request_id=f"sent-{n}")
        for response in (named, sent):
            answer = response.json()
            assert answer["error_code"] == code, (name, answer)
            if code is None:
                assert load_latent(Path(answer["latent_file_path"])).verified
                assert answer["metadata"]["image_sha256"] == hashlib.sha256(data).hexdigest()
        if code is None:
            assert all(named.json()["metadata"][key] == sent.json()["metadata"][key] for key in SAME)
    made = [path.name for path in (service.here / "output").iterdir() if path.suffix == ".safetensors"]
    assert len(made) == 2 * sum(code is None for code in codes().values())


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"image_path": "pictures/none.png"}, "IMAGE_NOT_FOUND"),
        ({"image_path": "pictures"}, "IMAGE_INVALID"),
        ({"image_path": "secret.png"}, "PATH_NOT_ALLOWED"),
        ({"image_path": "/etc/passwd"}, "PATH_NOT_ALLOWED"),
        ({"image_path": "/dev/zero"}, "PATH_NOT_ALLOWED"),
        ({"image_path": "pictures/../secret.png"}, "PATH_NOT_ALLOWED"),
        ({"image_path": "pictures/link.png"}, "PATH_NOT_ALLOWED"),
        ({"image_path": "pictures/a\0.png"}, "PATH_NOT_ALLOWED"),
        ({"image_path": "pictures/" + "a" * 300 + ".png"}, "PATH_NOT_ALLOWED"),
        ({"image_path": "pictures/" + "a/" * 2500 + "a.png"}, "PATH_NOT_ALLOWED"),
        ({"image_path": "pictures/rgb.png/"}, "IMAGE_NOT_FOUND"),
        ({"image_path": "pictures/"}, "IMAGE_NOT_FOUND"),
        ({"correlation_id": "c" * 257}, "INVALID_REQUEST"),
        ({"correlation_id": "two\nlines"}, "INVALID_REQUEST"),
        ({"image_path": ""}, "INVALID_REQUEST"),
        ({"output_dir": "/tmp"}, "PATH_NOT_ALLOWED"),
        ({"output_dir": "output/../.."}, "PATH_NOT_ALLOWED"),
        ({"vae_model_name": "no_such_vae.safetensors"}, "VAE_MODEL_NOT_FOUND"),
        ({"vae_model_name": "../vae/demo_vae.safetensors"}, "PATH_NOT_ALLOWED"),
        ({"vae_model_name": "/etc/passwd"}, "PATH_NOT_ALLOWED"),
        ({"megapixels": 0}, "INVALID_REQUEST"),
        ({"megapixels": 1e9}, "INVALID_REQUEST"),
        ({"megapixels": "NaN"}, "INVALID_REQUEST"),
        ({"resolution_steps": 0}, "INVALID_REQUEST"),
        ({"image_path": "pictures/rgb.png", "resolution_steps": 256}, "SCALING_FAILED"),
        ({"upscale_method": "magic"}, "INVALID_REQUEST"),
        ({"file_format": "pickle"}, "INVALID_REQUEST"),
        ({"request_id": "../a"}, "INVALID_REQUEST"),
        ({"request_id": "a" * 129}, "INVALID_REQUEST"),
        ({"unknown": 1}, "INVALID_REQUEST"),
        ({"schema_version": 2}, "INVALID_REQUEST"),
        ({"deadline": "2020-01-01T00:00:00Z"}, "TIMEOUT"),
        ({"deadline": 5}, "INVALID_REQUEST"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_every_wrong_request(service: RestService, fields: dict[str, Any], code: str) -> None:
    before = sorted((service.here / "output").rglob("*"))
    assert error_of(service.encode(**fields))[1] == code
    assert sorted((service.here / "output").rglob("*")) == before


@pytest.mark.parametrize("file_format", ["safetensors", "latent", "pt", "npy"])
def test_every_format(service: RestService, file_format: str) -> None:
    answer = service.encode(
        image_path="pictures/rgb.png", file_format=file_format, request_id=f"f-{file_format}"
    ).json()
    assert answer["latent_file_path"].endswith(f"f-{file_format}.{file_format}"), answer
    loaded = load_latent(Path(answer["latent_file_path"]))
    assert loaded.verified and list(loaded.latent["samples"].shape) == answer["latent_shape"]


@pytest.fixture(scope="module")
def runs(comfyui_server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, Any]]]:
    """Each engine's answers to a folder of all the pictures, by the picture's name."""
    answers = {}
    for engine in ENGINES:
        shell = CommandLine(tmp_path_factory.mktemp(engine))
        lay(shell.here / "pictures")
        done = shell.run("--image_path", "pictures", **environment(engine, comfyui_server))
        assert done.code == 3, done.said
        shown = [answer["metadata"].get("image_name") or answer["request_id"] for answer in done.answers]
        assert len(shown) == len(done.answers)
        report = [picture.name for picture in sorted((shell.here / "pictures").iterdir())]
        answers[engine] = {"names": report, "answers": done.answers, "output": shell.here / "output"}
    return answers


@pytest.mark.parametrize("engine", ENGINES)
def test_every_picture_of_a_folder(runs: dict[str, Any], engine: str) -> None:
    wanted = codes()
    failed = [answer["error_code"] for answer in runs[engine]["answers"] if answer["status"] == "error"]
    pictures_only = {name: code for name, code in wanted.items() if not name.endswith(".svg")}  # a folder's pictures
    assert sorted(failed) == sorted(code for code in pictures_only.values() if code)
    made = {path.name.removesuffix(".safetensors") for path in runs[engine]["output"].glob("*.safetensors")}
    assert made == {name for name, code in pictures_only.items() if code is None}


def test_the_engines_say_the_same_of_a_folder(runs: dict[str, Any]) -> None:
    told = [
        [(answer["error_code"], *(answer["metadata"].get(key) for key in SAME)) for answer in runs[engine]["answers"]]
        for engine in ENGINES
    ]
    assert told[0] == told[1]
