"""LoadLatentFromDisk in the editor: what it shows of its file, the picker, and files that are dropped."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from browser.editor import Editor
from browser.graphs import BOTH_RENDERINGS, lay, lay_encoder, look_at, node, panel, run
from comfyui.servers import Server
from playwright.sync_api import Locator, expect

from latent_encoder.latent_file import load_latent, save_latent

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600), pytest.mark.usefixtures("photo")]

CHOSEN = "Chosen latent"
PLACE = [900, 600]  # of the page: an empty one
DROP = """async ([x, y, files]) => {
    const transfer = new DataTransfer();
    for (const [name, bytes] of files) transfer.items.add(new File([Uint8Array.from(bytes)], name));
    const target = document.elementFromPoint(x, y);
    const at = { bubbles: true, cancelable: true, composed: true, clientX: x, clientY: y, dataTransfer: transfer };
    target.dispatchEvent(new DragEvent("dragover", at));
    await new Promise(done => setTimeout(done, 300));
    target.dispatchEvent(new DragEvent("drop", at));
    setTimeout(() => transfer.items.clear());  // as a browser does once the event has been handled
}"""


def lay_loader(editor: Editor) -> int:
    loader = lay(editor, {"loader": node("LoadLatentFromDisk", 0)}, [])["loader"]
    look_at(editor, loader)
    return loader


def chosen_value(editor: Editor) -> Any:
    return editor.widgets("LoadLatentFromDisk")["latent_file"]


def picker(editor: Editor) -> Locator:
    return editor.page.get_by_role("dialog", name="Choose a latent")


def save(folder: Path, stem: str, file_format: str = "safetensors") -> Path:
    """A latent of our own without a sidecar, as one that comes from elsewhere."""
    latent = {"samples": torch.rand(1, 4, 8, 8)}
    path = save_latent(latent, folder, stem, file_format=file_format, if_exists="overwrite").path
    Path(f"{path}.json").unlink()
    return path


@BOTH_RENDERINGS
def test_a_file_that_the_graph_itself_makes(editor: Editor, server: Server, rendering: str) -> None:
    """As in the example workflow: it is not there yet, and is shown once a run has made it."""
    name, told = f"later_{rendering}_00001_.safetensors", "it was moved, deleted or not made yet."
    encoder = {"image": "cat.png", "megapixels": 0.02, "filename_prefix": f"later_{rendering}"}
    nodes = {
        "vae": node("VAELoader", 0, vae_name="taesd"),
        "encoder": node("EncodeToLatentFile", 0, 300, **encoder),
        "loader": node("LoadLatentFromDisk", 500, latent_file=f"{name} [output]"),
    }
    look_at(editor, lay(editor, nodes, [("vae", 0, "encoder", "vae")])["loader"])
    expect(panel(editor, CHOSEN)).to_contain_text(f"{name} [output] is not there: {told}")
    run(editor, server)
    expect(panel(editor, CHOSEN).locator(".latent-encoder-name")).to_have_text(name)
    expect(panel(editor, CHOSEN).get_by_role("img")).to_be_visible()
    assert editor.errors == editor.ours == []


@BOTH_RENDERINGS
def test_picker_shows_searches_and_chooses(editor: Editor, server: Server, rendering: str) -> None:
    prefix = f"picked_{rendering}"
    lay_encoder(editor, "taesd", filename_prefix=f"{prefix}/old")
    run(editor, server)
    editor.choose("EncodeToLatentFile", "filename_prefix", f"{prefix}/new")
    run(editor, server)
    lay_loader(editor)
    panel(editor, CHOSEN).get_by_role("button", name="Choose a latent").click()
    shown = picker(editor).get_by_role("listitem")
    expect(shown.first).to_have_text(f"{prefix}/new_00001_.safetensors [output]")
    expect(shown.nth(1)).to_have_text(f"{prefix}/old_00001_.safetensors [output]")
    editor.page.wait_for_function("image => image.naturalWidth > 0", arg=shown.first.locator("img").element_handle())

    picker(editor).get_by_role("searchbox").fill(f"OLD {prefix}")
    expect(shown).to_have_count(1)
    editor.page.keyboard.press("Enter")
    expect(picker(editor)).to_have_count(0)
    name = f"{prefix}/old_00001_.safetensors"
    chosen = panel(editor, CHOSEN)
    expect(chosen.locator(".latent-encoder-name")).to_have_text(Path(name).name)
    assert chosen_value(editor) == f"{name} [output]"
    record = load_latent(server.output / name).record
    expect(chosen.locator("[data-field=checksum]")).to_have_text(record["file_sha256"][:12])
    expect(chosen.locator("[data-field=vae]")).to_have_text("taesd")
    editor.page.wait_for_function("image => image.naturalWidth > 0", arg=chosen.get_by_role("img").element_handle())

    editor.page.wait_for_timeout(1000)
    editor.reload()
    look_at(editor, editor.node_id("LoadLatentFromDisk"))
    expect(panel(editor, CHOSEN).locator("[data-field=checksum]")).to_have_text(record["file_sha256"][:12])
    assert editor.errors == editor.ours == []


def test_picker_by_keyboard(editor: Editor, server: Server) -> None:
    for index in range(5):
        path = save(server.output, f"keys_{index}")
        os.utime(path, ns=(time.time_ns(), time.time_ns() + index * 10**9))  # the last is the newest
    lay_loader(editor)
    panel(editor, CHOSEN).get_by_role("button", name="Choose a latent").focus()
    editor.page.keyboard.press("Enter")
    expect(picker(editor).get_by_role("searchbox")).to_be_focused()
    editor.page.keyboard.type("keys_")
    expect(picker(editor).get_by_role("listitem")).to_have_count(5)
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft", "Space"):
        editor.page.keyboard.press(key)
    expect(panel(editor, CHOSEN).locator(".latent-encoder-name")).to_have_text("keys_3.safetensors")
    assert chosen_value(editor) == "keys_3.safetensors [output]"
    expect(panel(editor, CHOSEN).get_by_role("button", name="Choose a latent")).to_be_focused()
    editor.page.keyboard.press("Enter")
    picker(editor).wait_for()
    editor.page.keyboard.press("Escape")
    expect(picker(editor)).to_have_count(0)
    assert chosen_value(editor) == "keys_3.safetensors [output]"
    assert editor.errors == editor.ours == []


def test_picker_of_a_thousand_files(editor: Editor, server: Server) -> None:
    folder = server.output / "many"
    folder.mkdir()
    latent = save(server.output, "one_of_many").read_bytes()
    for index in range(1000):
        (folder / f"{index:04}.safetensors").write_bytes(latent)
    try:
        lay_loader(editor)
        panel(editor, CHOSEN).get_by_role("button", name="Choose a latent").click()
        shown = picker(editor).get_by_role("listitem")
        picker(editor).get_by_role("searchbox").fill("many/")
        expect(picker(editor)).to_contain_text("1000 of ")
        first = shown.count()
        assert first < 400
        shown.last.scroll_into_view_if_needed()
        editor.page.wait_for_function(
            "before => document.querySelectorAll('.latent-encoder-files li').length > before", arg=first
        )
        picker(editor).get_by_role("searchbox").fill("many/0777")
        shown.get_by_role("button").click()
        expect(panel(editor, CHOSEN).locator(".latent-encoder-name")).to_have_text("0777.safetensors")
        assert chosen_value(editor) == "many/0777.safetensors [output]"
    finally:
        for path in folder.iterdir():
            path.unlink()
    assert editor.errors == editor.ours == []


def test_upload_from_the_picker(editor: Editor, server: Server, tmp_path: Path) -> None:
    path = save(tmp_path, "from_disk")
    lay_loader(editor)
    panel(editor, CHOSEN).get_by_role("button", name="Choose a latent").click()
    with editor.page.expect_file_chooser() as chooser:
        picker(editor).get_by_role("button", name="Upload").click()
    chooser.value.set_files(path)
    expect(panel(editor, CHOSEN).locator(".latent-encoder-name")).to_have_text(path.name)
    assert chosen_value(editor) == f"{path.name} [input]"
    assert (server.input / path.name).read_bytes() == path.read_bytes()
    # It has no sidecar: what its own header says is shown.
    expect(panel(editor, CHOSEN).locator("[data-field=shape]")).to_have_text("1 × 4 × 8 × 8")
    assert editor.errors == editor.ours == []


@BOTH_RENDERINGS
@pytest.mark.parametrize("file_format", ["safetensors", "latent", "pt", "npy"])
def test_drop_on_the_node(editor: Editor, server: Server, tmp_path: Path, rendering: str, file_format: str) -> None:
    path = save(tmp_path, f"dropped_{rendering}", file_format)
    loader = lay_loader(editor)
    drop(editor, path, on_node=loader)
    expect(panel(editor, CHOSEN).locator(".latent-encoder-name")).to_have_text(path.name)
    assert chosen_value(editor) == f"{path.name} [input]"
    assert (server.input / path.name).read_bytes() == path.read_bytes()
    assert len(editor.nodes()) == 1
    assert editor.errors == editor.ours == []


@pytest.mark.parametrize("file_format", ["safetensors", "latent", "npy"])
def test_drop_on_the_canvas_adds_a_node(editor: Editor, server: Server, tmp_path: Path, file_format: str) -> None:
    path = save(tmp_path, "on_canvas", file_format)
    editor.command("Comfy.NewBlankWorkflow")
    editor.page.wait_for_timeout(1000)
    drop(editor, path)
    editor.page.wait_for_function("() => window.app.graph.nodes.length === 1")
    assert chosen_value(editor) == f"{path.name} [input]"
    assert places(editor) == [pytest.approx(on_canvas(editor, PLACE), abs=1)]
    assert editor.errors == editor.ours == []


def test_several_are_dropped_at_once(editor: Editor, server: Server, tmp_path: Path) -> None:
    """0.33 takes all of them, 0.3.64 the first: each node can be seen."""
    paths = [save(tmp_path, f"several_{index}") for index in range(3)]
    editor.command("Comfy.NewBlankWorkflow")
    editor.page.wait_for_timeout(1000)
    drop(editor, *paths)
    editor.page.wait_for_timeout(2000)
    found = places(editor)
    assert len(found) == (1 if server.host.release < (0, 33) else 3)
    assert len({tuple(place) for place in found}) == len(found)
    assert editor.errors == editor.ours == []


def test_one_that_is_opened_stands_in_the_middle(editor: Editor, server: Server, tmp_path: Path) -> None:
    path = save(tmp_path, "opened")
    editor.command("Comfy.NewBlankWorkflow")
    editor.page.wait_for_timeout(1000)
    with editor.page.expect_file_chooser() as chooser:
        editor.command("Comfy.OpenWorkflow")
    chooser.value.set_files(path)
    editor.page.wait_for_function("() => window.app.graph.nodes.length === 1")
    middle = editor.page.evaluate(
        """() => {
            const { left, top, width, height } = window.app.canvas.canvas.getBoundingClientRect();
            return [left + width / 2, top + height / 2];
        }"""
    )
    assert places(editor) == [pytest.approx(on_canvas(editor, middle), abs=1)]
    assert editor.errors == editor.ours == []


def places(editor: Editor) -> list[list[float]]:
    return editor.page.evaluate("() => window.app.graph.nodes.map(node => [...node.pos])")


def on_canvas(editor: Editor, place: list[float]) -> list[float]:
    """That place of the page, in the graph's own measure."""
    return editor.page.evaluate(
        """([x, y]) => {
            const { left, top } = window.app.canvas.canvas.getBoundingClientRect();
            const { scale, offset } = window.app.canvas.ds;
            return [(x - left) / scale - offset[0], (y - top) / scale - offset[1]];
        }""",
        place,
    )


def test_drop_of_one_with_a_workflow_opens_it(editor: Editor, server: Server, tmp_path: Path) -> None:
    lay_encoder(editor, "taesd", filename_prefix="with_workflow")
    run(editor, server)
    made = server.output / "with_workflow_00001_.safetensors"
    editor.command("Comfy.NewBlankWorkflow")
    editor.page.wait_for_timeout(1000)
    drop(editor, made)
    editor.page.wait_for_function("() => window.app.graph.nodes.some(n => n.type === 'EncodeToLatentFile')")
    assert not (server.input / made.name).exists()
    assert editor.ours == []


def test_other_files_stay_comfyuis(editor: Editor, server: Server, tmp_path: Path) -> None:
    """A safetensors file that is no latent, such as a LoRA, is not taken in, on the node neither: ComfyUI opens it."""
    from safetensors.torch import save_file

    path = tmp_path / "lora.safetensors"
    lay_encoder(editor, "taesd")
    workflow = editor.page.evaluate("() => JSON.stringify(window.app.graph.serialize())")
    save_file({"weight": torch.zeros(2, 2)}, path, {"workflow": workflow})
    loader = lay_loader(editor)
    before = chosen_value(editor)
    drop(editor, path, on_node=loader)
    editor.page.wait_for_function("() => window.app.graph.nodes.some(n => n.type === 'EncodeToLatentFile')")
    editor.command("Workspace.PreviousOpenedWorkflow")
    editor.page.wait_for_timeout(1000)
    assert chosen_value(editor) == before
    assert not (server.input / path.name).exists()
    assert editor.ours == []


def drop(editor: Editor, *paths: Path, on_node: int | None = None) -> None:
    """Drop files of the user's on a node, else on an empty place."""
    place = PLACE
    if on_node is not None:
        place = editor.page.evaluate(
            """id => {
                const { canvas, graph } = window.app, { pos } = graph.getNodeById(id), { scale, offset } = canvas.ds;
                const area = canvas.canvas.getBoundingClientRect();
                return [area.left + (pos[0] + 40 + offset[0]) * scale, area.top + (pos[1] - 12 + offset[1]) * scale];
            }""",
            on_node,
        )
    editor.page.mouse.move(700, 300)  # while one drags a file the mouse says nothing
    editor.page.evaluate(DROP, [*place, [[path.name, list(path.read_bytes())] for path in paths]])
    editor.page.wait_for_timeout(1000)
