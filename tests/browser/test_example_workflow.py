"""``workflows/example.json`` as a newcomer meets it: opened in the editor, run, and run again with its third group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from browser.editor import MESSAGES, Editor
from browser.graphs import panel
from browser.shots import are_wanted
from comfyui.hosts import REPOSITORY
from comfyui.servers import Server
from PIL import Image
from playwright.sync_api import expect
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from latent_encoder.latent_file import load_latent

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

EXAMPLE = REPOSITORY / "workflows" / "example.json"
SCREENSHOT = REPOSITORY / "docs" / "images" / "example-workflow.png"
DEFAULT_VAE = "qwen_image_vae.safetensors"
THIRD_GROUP = ["LoadLatentFromDisk", "VAEDecode", "PreviewImage"]
ACTIVE, MUTED = 0, 2


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A photograph on the user's disk, not in ComfyUI's folders."""
    path = tmp_path / "cat.png"
    Image.fromarray(data.chelsea()).save(path)
    return path


@pytest.fixture
def screenshot(server: Server, tmp_path: Path) -> Path:
    """Where the picture of the editor goes: the README's is only replaced when asked for, by the newest ComfyUI's."""
    return SCREENSHOT if are_wanted(server) else tmp_path / SCREENSHOT.name


def test_templates_window_offers_the_example(server: Server) -> None:
    address = f"{server.process.url}/api/workflow_templates"
    assert "example" in httpx.get(address).json()["latent-encoder"]
    assert httpx.get(f"{address}/latent-encoder/example.json").text == EXAMPLE.read_text(encoding="utf-8")


def test_opens_and_runs(editor: Editor, server: Server, picture: Path, screenshot: Path) -> None:
    open_example(editor)
    set_up(editor, server, picture)

    history = run(editor, server)
    one_node, by_hand = (
        load_latent(server.output / f"{name}_00001_.safetensors") for name in ("latent", "latent_by_hand")
    )
    assert one_node.verified
    assert by_hand.verified
    assert torch.equal(one_node.latent["samples"], by_hand.latent["samples"])
    assert one_node.record["image_name"] == picture.name
    assert one_node.record["vae_name"] == server.host.demo_vae
    assert sorted(file["filename"] for output in history["outputs"].values() for file in output.get("latents", [])) == [
        "latent_00001_.safetensors",
        "latent_by_hand_00001_.safetensors",
    ]
    # The record is there to read in the editor too.
    (shown,) = [output["text"][0] for output in history["outputs"].values() if "text" in output]
    assert one_node.record["file_sha256"] in shown

    decoded = switch_third_group_on(editor, server)
    expect(panel(editor, "Chosen latent").get_by_role("img")).to_be_visible()
    expect(panel(editor, "Chosen latent")).to_contain_text(one_node.record["file_sha256"][:12])
    scaled = Image.open(picture).resize(one_node.record["scaled_size"], Image.Resampling.LANCZOS)
    assert peak_signal_noise_ratio(center(scaled, decoded.size), np.asarray(decoded.convert("RGB"))) > 31

    editor.show_all()
    editor.page.screenshot(path=screenshot)
    assert screenshot.stat().st_size > 50_000
    assert editor.errors == []


def center(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The middle of a picture: ComfyUI cuts its sides to multiples of 8 before it encodes."""
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return np.asarray(image.crop((left, top, left + size[0], top + size[1])))


def open_example(editor: Editor) -> None:
    """Open the file: every node is known, and nothing is missing but the VAE that no test has."""
    editor.open(EXAMPLE)
    nodes = editor.nodes()
    assert len(nodes) == 12
    assert {node["type"] for node in nodes if not node["known"]} == set()
    assert {node["type"] for node in nodes if node["flawed"]} <= {"VAELoader"}
    editor.page.locator(MESSAGES).filter(has_text=DEFAULT_VAE).first.wait_for()
    said = editor.messages()
    assert DEFAULT_VAE in said
    for node in nodes:
        assert node["type"] not in said
    editor.dismiss_messages()
    assert editor.messages() == ""
    assert editor.errors == []
    assert {node["type"] for node in nodes if node["mode"] == MUTED} == set(THIRD_GROUP)
    assert editor.widgets("EncodeToLatentFile") == {
        "image": "example.png",
        "upscale_method": "lanczos",
        "megapixels": 1,
        "resolution_steps": 1,
        "filename_prefix": "latent",
        "file_format": "safetensors",
        "if_exists": "number",
        "folder": "output",
        "preview": True,
        "upload": "image",
    }


def set_up(editor: Editor, server: Server, picture: Path) -> None:
    """What a user does first: choose a VAE that is there, and upload a picture."""
    assert server.host.demo_vae in editor.choices("VAELoader", "vae_name")
    editor.choose("VAELoader", "vae_name", server.host.demo_vae)
    editor.upload("EncodeToLatentFile", picture)
    editor.choose("LoadImage", "image", picture.name)
    if not are_wanted(server):  # a full-width VAE is 36 times the work
        for kind in ("EncodeToLatentFile", "ImageScaleToTotalPixels"):
            editor.choose(kind, "megapixels", 0.1)


def run(editor: Editor, server: Server) -> dict[str, Any]:
    """Press Run and wait for the end; returns the ``/history`` entry."""
    history = server.client.wait(editor.run(), timeout=300)
    assert history["status"]["status_str"] == "success", history["status"]
    editor.page.wait_for_timeout(1000)
    assert editor.messages() == ""
    assert not any(node["flawed"] for node in editor.nodes())
    assert editor.errors == []
    return history


def switch_third_group_on(editor: Editor, server: Server) -> Image.Image:
    """Do as the example's note says; returns the picture that the third group shows."""
    latent = "latent_00001_.safetensors [output]"
    editor.press("r")
    editor.page.wait_for_function(
        """([id, name]) => {
            const values = window.app.graph.getNodeById(id).widgets.find(w => w.name === "latent_file").options.values;
            return (typeof values === "function" ? values() : values).includes(name);
        }""",
        arg=[editor.node_id("LoadLatentFromDisk"), latent],
    )
    editor.select(THIRD_GROUP)
    editor.press("Control+m")
    assert {node["mode"] for node in editor.nodes()} == {ACTIVE}
    editor.choose("LoadLatentFromDisk", "latent_file", latent)
    history = run(editor, server)
    (shown,) = history["outputs"][str(editor.node_id("PreviewImage"))]["images"]
    return Image.open(server.temp / shown["subfolder"] / shown["filename"])
