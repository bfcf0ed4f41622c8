"""The whole way of a user: nodes dragged from the library, wired, run, looked at, saved, exported; the help pages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from browser.conftest import FOLDER_NAME
from browser.editor import Editor
from browser.graphs import lay, lay_encoder, look_at, node, panel, run
from browser.shots import take_node, take_page
from comfyui.servers import Server
from PIL import Image
from playwright.sync_api import expect
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from latent_encoder.latent_file import load_latent

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

# Where each node is dropped on the canvas, in the order in which they are dragged.
PLACES = {
    "VAELoader": ("Load VAE", 400, 120),
    "EncodeToLatentFile": ("Encode to Latent File", 700, 120),
    "LoadLatentFromDisk": ("Load Latent from Disk", 1010, 120),
    "VAEDecode": ("VAE Decode", 1010, 620),
    "PreviewImage": ("Preview Image", 1310, 120),
}
WIRES = [
    ("VAELoader", 0, "EncodeToLatentFile", "vae"),
    ("VAELoader", 0, "VAEDecode", "vae"),
    ("LoadLatentFromDisk", 0, "VAEDecode", "samples"),
    ("VAEDecode", 0, "PreviewImage", "images"),
]
OURS = {
    "EncodeToLatentFile": "Encode to Latent File",
    "LoadLatentFromDisk": "Load Latent from Disk",
    "OptimizeVAEForEncoding": "Optimize VAE for Encoding",
    "PublishLatentToKafka": "Publish Latent to Kafka",
    "SaveLatentToDisk": "Save Latent to Disk",
}
SLOT = """([id, isInput, slot]) => {
    const { canvas, graph } = window.app, { scale, offset } = canvas.ds, node = graph.getNodeById(id);
    const index = isInput ? node.inputs.findIndex(input => input.name === slot) : slot;
    const [x, y] = node.getConnectionPos(isInput, index), area = canvas.canvas.getBoundingClientRect();
    return [area.left + (x + offset[0]) * scale, area.top + (y + offset[1]) * scale];
}"""
WIDGET = """([id, name]) => {
    const { canvas, graph } = window.app, { scale, offset } = canvas.ds, node = graph.getNodeById(id);
    const widget = node.widgets.find(w => w.name === name), area = canvas.canvas.getBoundingClientRect();
    const x = node.pos[0] + node.size[0] / 2, y = node.pos[1] + (widget.y ?? widget.last_y) + 10;
    return [area.left + (x + offset[0]) * scale, area.top + (y + offset[1]) * scale];
}"""


def test_the_whole_way(editor: Editor, server: Server, tmp_path: Path) -> None:
    picture = tmp_path / "walk.png"
    Image.fromarray(data.chelsea()).save(picture)
    editor.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    drag_and_wire(editor)
    editor.choose("VAELoader", "vae_name", server.host.demo_vae)
    type_into(editor, "EncodeToLatentFile", "filename_prefix", "walk")
    type_into(editor, "EncodeToLatentFile", "megapixels", "0.1")
    editor.upload("EncodeToLatentFile", picture)
    editor.select(["LoadLatentFromDisk", "VAEDecode", "PreviewImage"])
    editor.press("Control+m")  # there is no latent to load yet
    run(editor, server)

    saved = panel(editor, "Saved latent")
    expect(saved.get_by_role("img")).to_be_visible()
    saved.get_by_role("button", name="Copy path").click()
    expect(saved.get_by_role("button", name="Copied")).to_be_visible()
    path = Path(editor.page.evaluate("() => navigator.clipboard.readText()"))
    assert path == server.output / "walk_00001_.safetensors"
    assert load_latent(path).verified

    editor.page.wait_for_timeout(1000)
    editor.reload()
    expect(panel(editor, "Saved latent")).to_contain_text(path.name)
    editor.select(["LoadLatentFromDisk", "VAEDecode", "PreviewImage"])
    editor.press("Control+m")
    panel(editor, "Chosen latent").get_by_role("button", name="Choose a latent").click()
    picker = editor.page.get_by_role("dialog", name="Choose a latent")
    picker.get_by_role("button", name=path.name).locator("img").wait_for()
    take_page(editor, server, "picker")
    picker.get_by_role("button", name=path.name).click()
    expect(panel(editor, "Chosen latent")).to_contain_text(path.name)
    check_decoded(server, run(editor, server), editor, picture)
    editor.page.wait_for_timeout(4000)  # 0.33 shows for a while that the run is done
    take_page(editor, server, "walk")

    workflow = save_and_reopen(editor, server, tmp_path)
    assert {entry["type"] for entry in workflow["nodes"]} == set(PLACES)
    exported = export_api(editor)
    answer = httpx.post(f"{server.process.url}/prompt", json={"prompt": exported}).raise_for_status().json()
    assert answer["node_errors"] == {}
    history = server.client.wait(answer["prompt_id"], timeout=300)
    assert history["status"]["status_str"] == "success"
    assert load_latent(server.output / "walk_00003_.safetensors").verified
    assert editor.errors == editor.ours == []


def drag_and_wire(editor: Editor) -> None:
    """Drag each node from the library to its place, and draw the wires."""
    editor.command("Comfy.NewBlankWorkflow")
    editor.page.wait_for_timeout(1000)
    editor.command("Workspace.ToggleSidebarTab.node-library")
    search = editor.page.locator("input[placeholder*=earch]:visible").first
    canvas = editor.page.locator("#graph-canvas")
    for kind, (title, x, y) in PLACES.items():
        search.fill(title)
        entry = editor.page.get_by_role("treeitem").get_by_text(re.compile(f"^{title}$")).first
        entry.drag_to(canvas, target_position={"x": x, "y": y})
        editor.page.wait_for_function("kind => window.app.graph.nodes.at(-1)?.type === kind", arg=kind)
    editor.command("Workspace.ToggleSidebarTab.node-library")
    editor.page.wait_for_timeout(1000)
    for source, output, target, name in WIRES:
        start = editor.page.evaluate(SLOT, [editor.node_id(source), False, output])
        end = editor.page.evaluate(SLOT, [editor.node_id(target), True, name])
        editor.page.mouse.move(*start)
        editor.page.mouse.down()
        editor.page.mouse.move(*end, steps=8)
        editor.page.mouse.up()
    links = editor.page.evaluate(
        """() => [...window.app.graph.links.values()].map(link => [window.app.graph.getNodeById(link.origin_id).type,
            link.origin_slot, window.app.graph.getNodeById(link.target_id).type,
            window.app.graph.getNodeById(link.target_id).inputs[link.target_slot].name])"""
    )
    assert sorted(map(tuple, links)) == sorted(WIRES)


def type_into(editor: Editor, kind: str, widget: str, words: str) -> None:
    """Click on a widget and type its value."""
    editor.page.mouse.click(*editor.page.evaluate(WIDGET, [editor.node_id(kind), widget]))
    field = editor.page.locator(".graphdialog .value")
    field.fill(words)
    field.press("Enter")
    expect(field).to_have_count(0)
    assert str(editor.widgets(kind)[widget]) == words


def check_decoded(server: Server, history: dict[str, Any], editor: Editor, picture: Path) -> None:
    """The picture that comes back is the one that went in."""
    (shown,) = history["outputs"][str(editor.node_id("PreviewImage"))]["images"]
    decoded = Image.open(server.temp / shown["subfolder"] / shown["filename"]).convert("RGB")
    scaled = Image.open(picture).resize(decoded.size, Image.Resampling.LANCZOS)
    assert peak_signal_noise_ratio(np.asarray(scaled), np.asarray(decoded)) > 20


def save_and_reopen(editor: Editor, server: Server, tmp_path: Path) -> dict[str, Any]:
    """Save under a name and open that file in another tab; returns the workflow."""
    editor.command("Comfy.SaveWorkflow")
    field = editor.page.get_by_role("dialog").get_by_role("textbox")
    field.fill("walk")
    field.press("Enter")
    editor.page.wait_for_function("() => document.title.includes('walk')")
    editor.page.wait_for_timeout(1000)
    (file,) = server.folder.glob("user/*/workflows/walk.json")
    copy = tmp_path / "reopened.json"
    copy.write_bytes(file.read_bytes())
    editor.open(copy)
    look_at(editor, editor.node_id("EncodeToLatentFile"))
    expect(panel(editor, "Saved latent")).to_contain_text("walk_00002_.safetensors")
    assert not any(entry["flawed"] for entry in editor.nodes())
    return json.loads(copy.read_text(encoding="utf-8"))


def export_api(editor: Editor) -> dict[str, Any]:
    """The editor's own "Export (API)"."""
    with editor.page.expect_download() as download:
        editor.command("Comfy.ExportWorkflowAPI")
        field = editor.page.get_by_role("dialog").get_by_role("textbox")
        field.fill("walk_api")
        field.press("Enter")
    return json.loads(Path(download.value.path()).read_text(encoding="utf-8"))


def test_pictures_of_the_help_pages(photo: Path, editor: Editor, server: Server) -> None:
    """That of PublishLatentToKafka is taken where there is a broker. The editor asks once which photos there are."""
    lay_encoder(editor, server.host.demo_vae, filename_prefix="cat")
    run(editor, server)
    panel(editor, "Saved latent").wait_for()
    take_node(editor, server, "EncodeToLatentFile")
    nodes = {"source": node("ProbeLatent", 0, kind="plain"), "saver": node("SaveLatentToDisk", 350)}
    look_at(editor, lay(editor, nodes, [("source", 0, "saver", "samples")])["saver"])
    run(editor, server)
    panel(editor, "Saved latent").wait_for()
    take_node(editor, server, "SaveLatentToDisk")
    chosen = {"loader": node("LoadLatentFromDisk", 0, latent_file="cat_00001_.safetensors [output]")}
    look_at(editor, lay(editor, chosen, [])["loader"])
    panel(editor, "Chosen latent").get_by_role("img").wait_for()
    take_node(editor, server, "LoadLatentFromDisk")
    assert editor.errors == editor.ours == []


@pytest.mark.parametrize("kind", OURS)
def test_help_page_opens(editor: Editor, server: Server, kind: str) -> None:
    """By the button above a selected node; its picture is there."""
    lay(editor, {"node": node(kind, 0)}, [])
    look_at(editor, editor.node_id(kind))
    editor.select([kind])
    editor.page.wait_for_timeout(800)
    editor.page.get_by_test_id("info-button").or_(editor.page.locator(".help-button")).first.click()
    page = editor.page.locator(".node-help-content").first
    expect(page.get_by_role("heading", name=OURS[kind], exact=True).first).to_be_visible()
    expect(page).to_contain_text("Inputs")
    picture = page.locator(f"img[src*='{FOLDER_NAME}/docs/']").first
    editor.page.wait_for_function("image => image.naturalWidth > 0", arg=picture.element_handle())
    assert editor.errors == editor.ours == []
