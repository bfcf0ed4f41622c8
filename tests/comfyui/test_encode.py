"""EncodeToLatentFile is the stock chain by hand, and no success without the file."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pictures
import pytest
import torch
from comfyui.folders import latents_in, put
from comfyui.prompts import SMALL, Outcome, by_hand, encode, node, run, save
from comfyui.servers import Server
from comfyui.small_vae import NAME as SMALL_VAE
from safetensors import safe_open
from safetensors.torch import load_file

from latent_encoder.latent_file import load_latent


def samples_of(path: Path) -> torch.Tensor:
    """The tensor of a safetensors latent, read without any code of ours."""
    return load_file(path)["latent_tensor"]


def strict_json(text: str) -> object:
    """JSON as a browser reads it: without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def assert_same_as_by_hand(server: Server, image: str, vae: str, prefix: str, **recipe: object) -> None:
    options = {"upscale_method": recipe.get("method", "lanczos"), "resolution_steps": recipe.get("steps", 1)}
    ours = run(server, encode(image, vae, filename_prefix=f"{prefix}/ours", **options)).record
    stock = run(server, by_hand(image, vae, f"{prefix}/stock", **recipe))
    assert stock.success, stock.text
    found, wanted = samples_of(Path(ours["path"])), samples_of(server.output / prefix / "stock_00001_.latent")
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("method", ["lanczos", "nearest-exact", "bilinear", "area", "bicubic"])
@pytest.mark.parametrize("name", ["rgb", "jpeg", "webp", "exif-rotated", "gray-16-bit", "rgba"])
def test_samples_are_bit_identical_to_the_chain_by_hand(server: Server, prefix: str, name: str, method: str) -> None:
    picture = pictures.good()[name]
    image = put(server, f"{prefix}/{picture.filename}", picture.data)
    assert_same_as_by_hand(server, image, SMALL_VAE, prefix, method=method)


def test_samples_of_the_qwen_architecture_are_bit_identical(server: Server, prefix: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png())
    assert_same_as_by_hand(server, image, server.host.demo_vae, prefix)


def test_resolution_steps_are_those_of_the_chain_by_hand(server: Server, prefix: str) -> None:
    if not server.host.has_resolution_steps:
        pytest.skip("this ComfyUI's ImageScaleToTotalPixels has no resolution_steps")
    image = put(server, f"{prefix}/a.png", pictures.png())
    assert_same_as_by_hand(server, image, SMALL_VAE, prefix, steps=32)
    record = run(server, encode(image, SMALL_VAE, filename_prefix=f"{prefix}/x", resolution_steps=32)).record
    assert [side % 32 for side in record["scaled_size"]] == [0, 0]


def test_request_of_the_sender_is_kept_or_refused(server: Server, prefix: str) -> None:
    prompt = encode(put(server, f"{prefix}/a.png", pictures.png()), SMALL_VAE, filename_prefix=f"{prefix}/a")

    def run_with(extra: Any) -> Outcome:
        return run(server, prompt, extra_data={"extra_pnginfo": extra})

    assert run_with({"latent_encoder": {"image_name": "shop/17.png"}}).record["image_name"] == "shop/17.png"
    for extra in (5, "text", {"latent_encoder": 5}):
        assert run_with(extra).record["request_id"] is None
    before = sorted((server.output / prefix).iterdir())
    for odd in ("", "a/b", "a" * 129, 5):
        assert run_with({"latent_encoder": {"request_id": odd}}).code == "INVALID_REQUEST"
    assert sorted((server.output / prefix).iterdir()) == before


def test_record_says_what_was_done(server: Server, prefix: str) -> None:
    data = pictures.png(200, 100)
    image = put(server, f"{prefix}/sub/a b.png", data)
    prompt = encode(image, server.host.demo_vae, filename_prefix=f"{prefix}/latent")
    extra_data = {"extra_pnginfo": {"latent_encoder": {"request_id": "request-7"}}}
    outcome = run(server, prompt, extra_data=extra_data)
    record = outcome.record
    path = server.output / prefix / "latent_00001_.safetensors"
    vae = server.folder / "models" / "vae" / server.host.demo_vae
    width, height = record["scaled_size"]
    assert abs(width * height - SMALL * 1024 * 1024) < 400
    wanted = {
        "schema_version": 1,
        "request_id": "request-7",
        "path": str(path),
        "filename": path.name,
        "subfolder": prefix,
        "type": "output",
        "file_format": "safetensors",
        "file_bytes": path.stat().st_size,
        "file_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "latent_shape": [1, 16, 1, height // 8, width // 8],
        "latent_dtype": "float32",
        "latent_channels": 16,
        "downscale": 8,
        "vae_name": server.host.demo_vae,
        "vae_sha256": hashlib.sha256(vae.read_bytes()).hexdigest(),
        "image_name": image,
        "image_sha256": hashlib.sha256(data).hexdigest(),
        "original_size": [200, 100],
        "upscale_method": "lanczos",
        "megapixels": SMALL,
        "resolution_steps": 1,
        "engine": "comfyui",
        "engine_version": server.host.version,
    }
    assert {key: record[key] for key in wanted} == wanted
    assert outcome.all("latents") == [{"filename": path.name, "subfolder": prefix, "type": "output"}]
    assert json.loads(path.with_name(path.name + ".json").read_text()) == record
    with safe_open(path, "pt") as file:
        header = file.metadata()
    in_header = json.loads(header["latent_record"])
    assert in_header == {key: value for key, value in record.items() if key in in_header}
    assert not {"path", "filename", "subfolder", "type", "file_bytes", "file_sha256"} & set(in_header)
    assert strict_json(header["prompt"]) == prompt


def test_a_save_node_wired_by_hand_knows_the_chain_before_it(server: Server, prefix: str) -> None:
    data = pictures.png(200, 100)
    image = put(server, f"{prefix}/a.png", data)
    prompt = by_hand(image, SMALL_VAE, "unused")
    prompt["5"] = save(["4", 0], f"{prefix}/hand")
    hand = run(server, prompt).record
    node_made = run(server, encode(image, SMALL_VAE, filename_prefix=f"{prefix}/node")).record
    known = ["image_name", "vae_name", "vae_sha256", "upscale_method", "megapixels", "resolution_steps", "latent_shape"]
    assert {key: hand[key] for key in known} == {key: node_made[key] for key in known}


def test_a_client_cannot_forge_the_record(server: Server, prefix: str) -> None:
    """``_meta`` of a client's prompt reaches the node, too; only what an expansion put there counts."""
    image = put(server, f"{prefix}/a.png", pictures.png())
    template = encode(image, SMALL_VAE, filename_prefix=f"{prefix}/latent")
    honest = run(server, template).record
    prompt = {
        "1": node("ProbeLatent", kind="plain"),
        "2": save(["1", 0], f"{prefix}/forged"),
    }
    prompt["2"]["_meta"] = {"latent_encoder": honest, "record": honest, "latent_record": honest, **honest}
    forged = run(server, prompt).record
    assert forged["image_sha256"] is None
    assert forged["vae_name"] is None


def test_the_file_is_fetched_from_history_and_view_alone(server: Server, prefix: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png())
    outcome = run(server, encode(image, SMALL_VAE, filename_prefix=f"{prefix}/latent"))
    [item] = outcome.all("latents")
    fetched = server.client.view(item)
    assert hashlib.sha256(fetched).hexdigest() == outcome.record["file_sha256"]


def test_path_output_is_absolute_and_the_latent_goes_on(server: Server, prefix: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png())
    prompt = encode(image, SMALL_VAE, filename_prefix=f"{prefix}/latent")
    prompt["3"] = node("PreviewAny", source=["2", 2])
    prompt["4"] = node("ProbeDigest", samples=["2", 0])
    outcome = run(server, prompt)
    assert outcome.all("text") == [outcome.record["path"]]
    assert Path(outcome.record["path"]).is_absolute()
    assert outcome.all("digest")[0]["shape"] == outcome.record["latent_shape"]


def test_a_list_of_pictures_gives_as_many_files(server: Server, prefix: str) -> None:
    names = [put(server, f"{prefix}/{n}.png", pictures.png(seed=n)) for n in range(3)]
    prompt = encode(["9", 1], SMALL_VAE, filename_prefix=f"{prefix}/latent")
    prompt["9"] = node("ProbeStrings", lines="\n".join(names))
    outcome = run(server, prompt)
    assert outcome.success, outcome.text
    hashes = [hashlib.sha256(pictures.png(seed=n)).hexdigest() for n in range(3)]
    assert [path.name for path in latents_in(server.output / prefix)] == [
        f"latent_0000{n}_.safetensors" for n in (1, 2, 3)
    ]
    saved = [load_latent(path) for path in latents_in(server.output / prefix)]
    assert sorted(latent.record["image_sha256"] for latent in saved) == sorted(hashes)
    assert {record["image_name"] for record in outcome.records} == set(names)


def test_a_list_of_prefixes_gives_as_many_files(server: Server, prefix: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png())
    prompt = encode(image, SMALL_VAE, filename_prefix=["9", 0], if_exists="fail")
    prompt["9"] = node("ProbeStrings", lines=f"{prefix}/one\n{prefix}/two")
    outcome = run(server, prompt)
    assert outcome.success, outcome.text
    assert [path.name for path in latents_in(server.output / prefix)] == ["one.safetensors", "two.safetensors"]


@pytest.mark.parametrize("where", ["input", "temp", "output"])
def test_picture_in_any_of_comfyuis_folders(server: Server, prefix: str, where: str) -> None:
    data = pictures.png()
    server.client.upload_image(data, "a.png", subfolder=f"{prefix}/sub", type=where)
    record = run(server, encode(f"{prefix}/sub/a.png [{where}]", SMALL_VAE, filename_prefix=f"{prefix}/latent")).record
    assert record["image_sha256"] == hashlib.sha256(data).hexdigest()


def test_uploaded_picture(server: Server, prefix: str) -> None:
    """As the upload button does it: the name that ``/upload/image`` answers goes into the widget."""
    uploaded = server.client.upload_image(pictures.png(), f"{prefix}.png")
    assert run(server, encode(uploaded["name"], SMALL_VAE, filename_prefix=f"{prefix}/latent")).record


@pytest.mark.parametrize("if_exists", ["number", "overwrite", "fail"])
def test_deleted_file_is_written_again(server: Server, prefix: str, if_exists: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png())
    prompt = encode(image, SMALL_VAE, filename_prefix=f"{prefix}/latent", if_exists=if_exists)
    first = Path(run(server, prompt).record["path"])
    first.unlink()
    again = run(server, prompt).record
    assert load_latent(Path(again["path"])).verified
    assert (Path(again["path"]) == first) or if_exists == "number"


def test_deleted_folder_is_made_again(server: Server, prefix: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png())
    prompt = encode(image, SMALL_VAE, filename_prefix=f"{prefix}/latent")
    for _ in range(2):
        path = Path(run(server, prompt).record["path"])
        assert load_latent(path).verified
        shutil.rmtree(path.parent)


def test_temp_folder(server: Server, prefix: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png())
    outcome = run(server, encode(image, SMALL_VAE, filename_prefix=f"{prefix}/latent", folder="temp"))
    assert Path(outcome.record["path"]).is_relative_to(server.temp)
    assert outcome.all("latents") == [{"filename": "latent_00001_.safetensors", "subfolder": prefix, "type": "temp"}]


def test_prefix_expands_as_stock_does(server: Server, prefix: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png(160, 80))
    ours = run(server, encode(image, SMALL_VAE, filename_prefix=f"{prefix}/%year%-%month%/%width%x%height%")).record
    assert "%" not in ours["path"]
    assert len(ours["subfolder"]) == len(f"{prefix}/2000-01")


@pytest.mark.parametrize("wanted", [True, False])
def test_preview(server: Server, prefix: str, wanted: bool) -> None:
    from PIL import Image

    image = put(server, f"{prefix}/a.png", pictures.png(400, 200))
    record = run(server, encode(image, SMALL_VAE, filename_prefix=f"{prefix}/latent", preview=wanted)).record
    preview = Path(record["path"] + ".webp")
    assert preview.is_file() is wanted
    if wanted:
        with Image.open(preview) as picture:
            assert picture.format == "WEBP"
            assert max(picture.size) <= 256
            assert picture.width == pytest.approx(2 * picture.height, abs=2)
