"""A user's workflow: which nodes the fields of a request go into, and what is said where that is not clear."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from comfyui.prompts import node, save
from comfyui.servers import Server
from comfyui.small_vae import NAME as SMALL_VAE
from safetensors.torch import load
from service.encode_jobs import SMALL, assert_is_of, failure, job, picture

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.config import Settings
from latent_encoder.service.engines.base import Call
from latent_encoder.service.engines.comfyui.engine import ComfyUIEngine
from latent_encoder.service.engines.comfyui.workflow import FIELDS, Workflow, built_in
from latent_encoder.service.engines.comfyui.workflow_file import read_workflow

ROOT = Path(__file__).resolve().parents[2]
EXPORTED = ROOT / "workflows" / "api" / "encode.json"


def chain(start: int = 1, **scaling: Any) -> dict[str, Any]:
    """The chain of single nodes, with ids from ``start`` on."""
    a, b, c, d, e = (str(start + n) for n in range(5))
    recipe = {"upscale_method": "area", "megapixels": 1.0, "resolution_steps": 1} | scaling
    return {
        a: node("VAELoader", vae_name="x"),
        b: node("LoadImage", image="x.png"),
        c: node("ImageScaleToTotalPixels", image=[b, 0], **recipe),
        d: node("VAEEncode", pixels=[c, 0], vae=[a, 0]),
        e: save([d, 0], "x"),
    }


def encode_node(vae: str, **values: Any) -> dict[str, Any]:
    return node("EncodeToLatentFile", image="x.png", vae=[vae, 0], **values)


def written(folder: Path, content: Any) -> Path:
    path = folder / "my_workflow.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def refusal(folder: Path, content: Any, *mappings: str) -> LatentEncoderError:
    with pytest.raises(LatentEncoderError) as caught:
        read_workflow(written(folder, content), mappings)
    assert caught.value.code == "INVALID_REQUEST"
    return caught.value


def places(workflow: Workflow) -> dict[str, str]:
    return {field: f"{target.node}.{target.input}" for field, target in workflow.targets.items()}


def test_the_built_in_workflow_is_the_one_of_the_repository() -> None:
    exported = read_workflow(EXPORTED)
    ours = built_in(optimize=False)
    assert (places(ours), ours.saver) == (places(exported), exported.saver)
    wanted = job()
    filled, theirs = ours.fill(wanted, "a.png [temp]", "b"), exported.fill(wanted, "a.png [temp]", "b")
    assert filled == {key: {k: v for k, v in entry.items() if k != "_meta"} for key, entry in theirs.items()}


def test_optimizing_puts_one_node_behind_the_vae() -> None:
    workflow = built_in()
    assert workflow.prompt["2"]["inputs"]["vae"] == ["3", 0]
    assert workflow.prompt["3"] == {"class_type": "OptimizeVAEForEncoding", "inputs": {"vae": ["1", 0]}}
    assert places(workflow) == places(built_in(optimize=False))


def test_filling_one_prompt_leaves_the_workflow_as_it_is() -> None:
    workflow = built_in()
    workflow.fill(job(), "a.png [temp]", "b")
    assert workflow == built_in()


def test_the_fields_go_into_a_chain_of_single_nodes(tmp_path: Path) -> None:
    workflow = read_workflow(written(tmp_path, chain(10)))
    assert places(workflow) == {
        "image": "11.image",
        "vae_model_name": "10.vae_name",
        "upscale_method": "12.upscale_method",
        "megapixels": "12.megapixels",
        "resolution_steps": "12.resolution_steps",
    }
    assert workflow.saver == "14"


def test_nodes_that_the_result_does_not_depend_on_do_not_count(tmp_path: Path) -> None:
    others = {"7": node("VAELoader", vae_name="y"), "8": node("LoadImage", image="y.png")}
    workflow = read_workflow(written(tmp_path, {**others, "9": node("PreviewImage", images=["8", 0]), **chain(10)}))
    assert places(workflow)["image"] == "11.image"


def test_the_vae_may_pass_through_other_nodes(tmp_path: Path) -> None:
    content = {
        "1": node("VAELoader", vae_name="x"),
        "2": node("OptimizeVAEForEncoding", vae=["1", 0]),
        "3": encode_node("2"),
    }
    assert places(read_workflow(written(tmp_path, content)))["vae_model_name"] == "1.vae_name"


def test_one_encode_to_latent_file_goes_before_single_nodes(tmp_path: Path) -> None:
    content = chain(10) | {"1": node("VAELoader", vae_name="x"), "2": encode_node("1")}
    assert read_workflow(written(tmp_path, content)).saver == "2"
    assert read_workflow(written(tmp_path, content), ["save=14"]).saver == "14"


def test_of_two_the_named_picture_says_which_is_meant(tmp_path: Path) -> None:
    content = {"1": node("VAELoader", vae_name="x"), "5": encode_node("1"), "12": encode_node("1")}
    error = refusal(tmp_path, content)
    assert "EncodeToLatentFile (5), EncodeToLatentFile (12)" in error.message
    assert "--map image=5.image" in error.hint
    workflow = read_workflow(written(tmp_path, content), ["image=12.image"])
    assert workflow.saver == "12"
    assert set(places(workflow).values()) == {
        *(f"12.{field}" for field in FIELDS if field != "vae_model_name"),
        "1.vae_name",
    }

    two_chains = chain(10) | chain(20)
    error = refusal(tmp_path, two_chains)
    assert "SaveLatentToDisk (14), SaveLatentToDisk (24)" in error.message
    assert "--map save=14" in error.hint
    assert read_workflow(written(tmp_path, two_chains), ["image=21.image"]).saver == "24"


def test_two_loaders_are_both_named_with_their_titles(tmp_path: Path) -> None:
    content = chain(10)
    content["30"] = node("LoadImage", image="y.png") | {"_meta": {"title": "The other one"}}
    content["31"] = node("ImageBatch", image1=["11", 0], image2=["30", 0])
    content["12"]["inputs"]["image"] = ["31", 0]
    error = refusal(tmp_path, content)
    assert "LoadImage (11), LoadImage (30, 'The other one')" in error.message
    assert "--map image=11.image" in error.hint
    assert places(read_workflow(written(tmp_path, content), ["image=30.image"]))["image"] == "30.image"


def test_a_field_without_a_place_must_be_given_one(tmp_path: Path) -> None:
    content = chain(10)
    content["12"] = node("ImageScale", image=["11", 0], upscale_method="area", width=64, height=64, crop="disabled")
    error = refusal(tmp_path, content)
    assert "'upscale_method' has no place" in error.message
    assert "ImageScale (12)" in error.message
    mappings = ["upscale_method=12.upscale_method", "megapixels=12.width", "resolution_steps=12.height"]
    assert places(read_workflow(written(tmp_path, content), mappings))["megapixels"] == "12.width"


@pytest.mark.parametrize(
    ("content", "mappings", "words"),
    [
        ((ROOT / "workflows" / "example.json").read_text(), [], ["format of ComfyUI's editor", "Export (API)"]),
        ("not json", [], ["is not JSON"]),
        ("[" * 100_000, [], ["is not JSON"]),
        ("[]", [], ["not in ComfyUI's API format"]),
        ("{}", [], ["not in ComfyUI's API format"]),
        ('{"1": {"inputs": {}}}', [], ["not in ComfyUI's API format"]),
        ({"1": node("LoadImage", image="x")}, [], ["saves no latent", "no EncodeToLatentFile and no SaveLatentToDisk"]),
        (chain(), ["picture=2.image"], ["'picture'", "The fields are image, vae_model_name"]),
        (chain(), ["image=2"], ["names no input", "image=12.image"]),
        (chain(), ["image=99.image"], ["no node 99", "LoadImage (2)"]),
        (chain(), ["save=2"], ["Node 2", "is a LoadImage"]),
        ({"1": encode_node("1")}, [], ["has no VAELoader"]),
    ],
)
def test_what_cannot_be_used_is_explained(tmp_path: Path, content: Any, mappings: list[str], words: list[str]) -> None:
    error = refusal(tmp_path, content, *mappings)
    assert [word for word in words if word not in str(error)] == []


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LatentEncoderError, match="cannot be read"):
        read_workflow(tmp_path / "nothing.json")


def engine_with(server: Server, folder: Path, content: Any) -> ComfyUIEngine:
    settings = Settings(comfyui_url=[server.process.url], state_dir=folder, workflow=written(folder, content))
    return ComfyUIEngine.from_settings(settings)


def test_a_chain_of_single_nodes_encodes_as_the_built_in_one_does(comfyui_server: Server, tmp_path: Path) -> None:
    wanted = job(picture(seed=60), upscale_method="bicubic", resolution_steps=16)
    latents = []
    for content in (chain(), json.loads(EXPORTED.read_text())):
        engine = engine_with(comfyui_server, tmp_path, content)
        engine.start()
        encoded = engine.encode(wanted, Call(60))
        engine.close()
        assert_is_of(encoded, wanted)
        latents.append(load(encoded.content)["latent_tensor"])
    assert latents[0].equal(latents[1])


def test_the_other_outputs_of_a_workflow_are_left_alone(comfyui_server: Server, tmp_path: Path) -> None:
    content = chain() | {"9": save(["4", 0], f"{tmp_path.name}/extra")}
    content["9"]["inputs"]["if_exists"] = "overwrite"
    settings = Settings(
        comfyui_url=[comfyui_server.process.url],
        state_dir=tmp_path,
        workflow=written(tmp_path, content),
        map=["save=5"],
    )
    engine = ComfyUIEngine.from_settings(settings)
    engine.start()
    wanted = job(picture(seed=61))
    assert_is_of(engine.encode(wanted, Call(60)), wanted)
    engine.close()
    assert (comfyui_server.output / tmp_path.name / "extra.safetensors").is_file()


def test_a_chain_on_an_old_comfyui_does_not_leave_the_rounding_out(old_server: Server, tmp_path: Path) -> None:
    engine = engine_with(old_server, tmp_path, chain())
    engine.start()
    wanted = job(vae_name=SMALL_VAE, megapixels=SMALL)
    assert_is_of(engine.encode(wanted, Call(60)), wanted)
    if not old_server.host.has_resolution_steps:
        assert failure(engine, job(resolution_steps=32)).code == "INVALID_REQUEST"
    engine.close()


def test_a_node_that_the_server_lacks_is_named_at_start(comfyui_server: Server, tmp_path: Path) -> None:
    content = chain()
    content["4"]["class_type"] = "SomebodysEncode"
    engine = engine_with(comfyui_server, tmp_path, content)
    with pytest.raises(LatentEncoderError, match="SomebodysEncode") as caught:
        engine.start()
    engine.close()
    assert caught.value.code == "NODES_MISSING"


def test_failures_inside_the_users_workflow_keep_their_codes(comfyui_server: Server, tmp_path: Path) -> None:
    engine = engine_with(comfyui_server, tmp_path, chain())
    engine.start()
    assert failure(engine, job(vae_name="nothing.safetensors")).code == "VAE_MODEL_NOT_FOUND"
    engine.close()


@pytest.mark.parametrize("mapping", ["image=11.nope", "megapixels=12.nope", "image=20.image"])
def test_a_place_that_changes_nothing_of_the_result_is_refused(tmp_path: Path, mapping: str) -> None:
    """Else the latent of another picture, the one that the workflow names, would come back."""
    content = {**chain(10), "20": node("LoadImage", image="other.png")}
    assert read_workflow(written(tmp_path, content))
    error = refusal(tmp_path, content, mapping)
    assert error.code == "INVALID_REQUEST"
    assert mapping.rpartition(".")[0].split("=")[1] in error.message
