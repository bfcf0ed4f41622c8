"""The templates as a user meets them: listed with their pictures, opened by a click, run as they stand."""

from __future__ import annotations

import io
import json
from itertools import combinations, product
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from browser.conftest import FOLDER_NAME
from browser.editor import Editor
from browser.shots import are_wanted
from comfyui.hosts import REPOSITORY
from comfyui.servers import Server
from PIL import Image
from playwright.sync_api import ConsoleMessage
from skimage.metrics import peak_signal_noise_ratio

from latent_encoder.latent_file import load_latent

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

WORKFLOWS = REPOSITORY / "workflows"
# Each template's groups that its picture shows: what makes it different, at a size that can still be read.
TEMPLATES = {
    "edit_with_qwen_image": [1, 2, 3],
    "encode_and_publish": [0, 1],
    "example": [0],
    "load_and_decode": [0, 1],
}
DEFAULT_VAE = "qwen_image_vae.safetensors"
LOADERS = {"VAELoader", "UNETLoader", "CLIPLoader"}  # they name model files that no test has
NOTES = {"MarkdownNote"}
PICTURE_SIDE = 640
LARGEST_PICTURE = 40_000
PHOTO = "cat.png"
LATENT = "cat_00001_.safetensors"


@pytest.fixture
def said(editor: Editor) -> list[str]:
    """Every warning or error of the console that names us."""
    found: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        text = f"{message.text} {message.location.get('url', '')}"
        if message.type in ("warning", "error") and ("LatentEncoder" in text or FOLDER_NAME in text):
            found.append(text)

    editor.page.on("console", listen)
    return found


def test_window_lists_every_template_and_each_opens(editor: Editor, said: list[str]) -> None:
    for name in TEMPLATES:
        show_templates(editor)
        cards = editor.page.locator("[data-testid^=template-workflow-]")
        shown = cards.evaluate_all("found => found.map(card => card.dataset.testid)")
        assert sorted(shown) == [f"template-workflow-{template}" for template in sorted(TEMPLATES)]
        for template in TEMPLATES:
            check_picture(editor, template)
        open_card(editor, name)
        check_graph(editor, name)
    assert editor.errors == []
    assert said == []


def test_encode_and_publish_runs_up_to_the_broker(
    editor: Editor, server: Server, photo: Path, said: list[str], tmp_path: Path
) -> None:
    """Without client.properties the file is made, and the node says in words what Kafka lacks."""
    open_template(editor, "encode_and_publish")
    prepare(editor, server, "EncodeToLatentFile", filename_prefix="published")
    switch_on_or_off(editor, "PublishLatentToKafka")
    run(editor, server)
    switch_on_or_off(editor, "PublishLatentToKafka")
    take_picture(editor, server, "encode_and_publish", tmp_path)

    history = server.client.wait(editor.run(), timeout=300)
    assert history["status"]["status_str"] == "error"
    (failed,) = [entry for event, entry in history["status"]["messages"] if event == "execution_error"]
    assert failed["node_type"] == "PublishLatentToKafka"
    assert failed["exception_message"].startswith("[KAFKA_UNAVAILABLE] Kafka is not set up here")
    assert all(load_latent(server.output / f"published_0000{number}_.safetensors").verified for number in (1, 2))
    editor.page.wait_for_timeout(1000)
    editor.dismiss_messages()
    check_no_node_covers_another(editor)
    assert said == []


def test_load_and_decode_runs(editor: Editor, server: Server, photo: Path, said: list[str], tmp_path: Path) -> None:
    make_latent(editor, server)
    open_template(editor, "load_and_decode")
    prepare(editor, server)
    editor.choose("LoadLatentFromDisk", "latent_file", f"{LATENT} [output]")
    history = run(editor, server)
    (shown,) = history["outputs"][str(editor.node_id("PreviewImage"))]["images"]
    decoded = Image.open(server.temp / shown["subfolder"] / shown["filename"]).convert("RGB")
    scaled = Image.open(photo).resize(decoded.size, Image.Resampling.LANCZOS)
    assert peak_signal_noise_ratio(np.asarray(scaled), np.asarray(decoded)) > 20
    check_no_node_covers_another(editor)
    take_picture(editor, server, "load_and_decode", tmp_path)
    assert editor.errors == []
    assert said == []


def test_example_shows_what_it_made(
    editor: Editor, server: Server, photo: Path, said: list[str], tmp_path: Path
) -> None:
    open_template(editor, "example")
    prepare(editor, server, "EncodeToLatentFile", "ImageScaleToTotalPixels")
    run(editor, server)
    check_no_node_covers_another(editor)
    take_picture(editor, server, "example", tmp_path)
    assert editor.errors == []
    assert said == []


def test_edit_lacks_nothing_but_the_models(
    editor: Editor, server: Server, photo: Path, said: list[str], tmp_path: Path
) -> None:
    """What the editor sends is sent to ``/prompt`` as it stands: only the names of absent models are refused."""
    make_latent(editor, server)
    open_template(editor, "edit_with_qwen_image")
    editor.choose("LoadImage", "image", PHOTO)
    editor.choose("LoadLatentFromDisk", "latent_file", f"{LATENT} [output]")
    prompt = editor.page.evaluate("async () => (await window.app.graphToPrompt()).output")
    refused = httpx.post(f"{server.process.url}/prompt", json={"prompt": prompt}).json()["node_errors"]
    assert {error["class_type"] for error in refused.values()} == LOADERS
    errors = [error for node in refused.values() for error in node["errors"]]
    assert [error["type"] for error in errors] == ["value_not_in_list"] * len(LOADERS)
    editor.dismiss_messages()
    take_picture(editor, server, "edit_with_qwen_image", tmp_path)
    assert editor.errors == []
    assert said == []


def show_templates(editor: Editor) -> None:
    """Open the Templates window at the pack's own part of it."""
    editor.command("Comfy.BrowseTemplates")
    window = editor.page.get_by_role("dialog").filter(has=editor.page.get_by_test_id("template-workflows-content"))
    window.get_by_text(FOLDER_NAME, exact=True).first.click()
    for name in TEMPLATES:
        editor.page.get_by_test_id(f"template-workflow-{name}").wait_for()


def check_picture(editor: Editor, name: str) -> None:
    """The card shows our picture, not the window's stand-in for a missing one, which has another size."""
    picture = editor.page.get_by_test_id(f"template-workflow-{name}").locator("img").first
    picture.scroll_into_view_if_needed()
    editor.page.wait_for_function(
        "([image, side]) => image.naturalWidth === side", arg=[picture.element_handle(), PICTURE_SIDE]
    )


def open_card(editor: Editor, name: str) -> None:
    editor.page.get_by_test_id(f"template-workflow-{name}").click()
    editor.page.wait_for_function("name => document.title.includes(name)", arg=name)
    editor.page.wait_for_timeout(1500)


def open_template(editor: Editor, name: str) -> None:
    """Open a template as a user does, and put away what the editor says of models that are absent."""
    show_templates(editor)
    open_card(editor, name)
    editor.dismiss_messages()


def check_graph(editor: Editor, name: str) -> None:
    """All of the file's nodes are there and known, none covers another, and only model files are missing."""
    written = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    nodes = editor.nodes()
    assert sorted(node["type"] for node in nodes) == sorted(node["type"] for node in written["nodes"])
    assert [node["type"] for node in nodes if not node["known"]] == []
    assert {node["type"] for node in nodes if node["flawed"]} <= LOADERS
    said = editor.messages()
    assert [node["type"] for node in nodes if node["type"] not in LOADERS and node["type"] in said] == []
    editor.dismiss_messages()
    assert editor.messages() == ""
    check_no_node_covers_another(editor)


def check_no_node_covers_another(editor: Editor) -> None:
    """Each node stands clear of all others, and within one group or none."""
    nodes, groups = boxes(editor, "nodes"), boxes(editor, "groups")
    assert [(a["name"], b["name"]) for a, b in combinations(nodes, 2) if overlap(a["box"], b["box"])] == []
    crossing = [(node["name"], group["name"]) for node, group in product(nodes, groups) if crosses(node, group)]
    assert crossing == []


def boxes(editor: Editor, kind: str) -> list[dict[str, Any]]:
    """Nodes, with their titles' bars, or groups: ``name`` and ``box`` (left, top, right, bottom)."""
    return editor.page.evaluate(
        """kind => window.app.graph[kind].map(item => {
            const bar = kind === "nodes" ? LiteGraph.NODE_TITLE_HEIGHT : 0;
            const [x, y] = item.pos, [width, height] = item.size;
            return { name: item.title, box: [x, y - bar, x + width, y + height] };
        })""",
        kind,
    )


def overlap(a: list[float], b: list[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def crosses(node: dict[str, Any], group: dict[str, Any]) -> bool:
    """Whether a node stands half in a group."""
    a, b = node["box"], group["box"]
    inside = b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]
    return overlap(a, b) and not inside


def prepare(editor: Editor, server: Server, *kinds: str, **widgets: str) -> None:
    """Choose the VAE that is there, the photograph and a small size."""
    editor.choose("VAELoader", "vae_name", server.host.demo_vae)
    for kind in kinds:
        editor.choose(kind, "megapixels", 0.05)
        for name, value in widgets.items():
            editor.choose(kind, name, value)
    for kind in {"EncodeToLatentFile", "LoadImage"} & {node["type"] for node in editor.nodes()}:
        editor.choose(kind, "image", PHOTO)


def switch_on_or_off(editor: Editor, kind: str) -> None:
    """Mute a node, or switch it on again."""
    editor.select([kind])
    editor.press("Control+m")


def run(editor: Editor, server: Server) -> dict[str, Any]:
    """Press Run and wait for success; returns the ``/history`` entry."""
    history = server.client.wait(editor.run(), timeout=300)
    assert history["status"]["status_str"] == "success", history["status"]
    editor.page.wait_for_timeout(1000)
    return history


def make_latent(editor: Editor, server: Server) -> None:
    """A latent file to load, once for each server; the editor reads the list of files again."""
    if not (server.output / LATENT).is_file():
        image = {"image": PHOTO, "vae": ["1", 0], "upscale_method": "lanczos", "megapixels": 0.05}
        saving = {"filename_prefix": "cat", "file_format": "safetensors", "if_exists": "number", "folder": "output"}
        inputs = {**image, "resolution_steps": 1, **saving, "preview": True}
        loader = {"class_type": "VAELoader", "inputs": {"vae_name": server.host.demo_vae}}
        prompt = {"1": loader, "2": {"class_type": "EncodeToLatentFile", "inputs": inputs}}
        answer = httpx.post(f"{server.process.url}/prompt", json={"prompt": prompt}).raise_for_status()
        server.client.wait(answer.json()["prompt_id"], timeout=300)
    editor.press("r")
    editor.page.wait_for_timeout(1500)


def take_picture(editor: Editor, server: Server, name: str, tmp_path: Path) -> None:
    """A square picture of the template's groups, small enough for the archive."""
    side = zoom_to_groups(editor, TEMPLATES[name])
    shot = Image.open(io.BytesIO(editor.page.screenshot(clip=side))).convert("RGB")
    path = (WORKFLOWS if are_wanted(server) else tmp_path) / f"{name}.jpg"
    small = shot.resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    for quality in range(88, 30, -6):
        small.save(path, quality=quality, optimize=True, progressive=True)
        if path.stat().st_size <= LARGEST_PICTURE:
            break
    assert 10_000 < path.stat().st_size <= LARGEST_PICTURE


def zoom_to_groups(editor: Editor, groups: list[int]) -> dict[str, float]:
    """Zoom so that these groups fill a square in the middle of the page, clear of the editor's bars; returns it."""
    frame = editor.page.evaluate(
        """chosen => {
            const groups = chosen.map(index => window.app.graph.groups[index]);
            const x0 = Math.min(...groups.map(g => g.pos[0])) - 20, y0 = Math.min(...groups.map(g => g.pos[1])) - 20;
            const x1 = Math.max(...groups.map(g => g.pos[0] + g.size[0])) + 20;
            const y1 = Math.max(...groups.map(g => g.pos[1] + g.size[1])) + 20;
            const side = Math.min(innerWidth - 200, innerHeight - 110);
            const left = (innerWidth - side) / 2, top = 100;
            const scale = side / Math.max(x1 - x0, y1 - y0);
            const area = window.app.canvas.canvas.getBoundingClientRect();
            const ds = window.app.canvas.ds;
            ds.scale = scale;
            ds.offset[0] = (left - area.left + (side - (x1 - x0) * scale) / 2) / scale - x0;
            ds.offset[1] = (top - area.top + (side - (y1 - y0) * scale) / 2) / scale - y0;
            window.app.canvas.deselectAll?.();
            window.app.graph.setDirtyCanvas(true, true);
            return { x: left, y: top, width: side, height: side };
        }""",
        groups,
    )
    editor.page.wait_for_timeout(4000)  # 0.33 shows for a while that the run is done
    return frame
