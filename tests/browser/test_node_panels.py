"""What the saving nodes show of their files: after a run, after a reload, from a saved workflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from browser.editor import Editor
from browser.graphs import (
    BOTH_RENDERINGS,
    SAVED,
    check_shown,
    click_beside,
    lay,
    lay_encoder,
    look_at,
    node,
    panel,
    prompt_of,
    record_of,
    run,
    save_workflow,
    size_of,
)
from browser.shots import take_node
from comfyui.servers import Server
from playwright.sync_api import Locator, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600), pytest.mark.usefixtures("photo")]

PICTURE_LOADED = "image => image.complete && image.naturalWidth > 0"


@BOTH_RENDERINGS
def test_shows_what_was_saved(editor: Editor, server: Server, rendering: str) -> None:
    prefix = f"shown_{rendering}"
    ids = lay_encoder(editor, server.host.demo_vae, filename_prefix=prefix)
    before = size_of(editor, ids["encoder"])
    values, prompt = widgets_values(editor, ids["encoder"]), prompt_of(editor)
    history = run(editor, server)
    saved = panel(editor, SAVED)
    check_shown(saved, record_of(server, f"{prefix}_00001_.safetensors"))
    check_thumbnail(editor, saved)

    editor.page.wait_for_timeout(1000)
    assert size_of(editor, ids["encoder"])[1] > before[1]
    check_panel_fits(editor, ids["encoder"], rendering)
    # It is no widget of the node's: the saved workflow and the API format know nothing of it.
    assert widgets_values(editor, ids["encoder"]) == values
    assert prompt_of(editor) == prompt == {**prompt, **history["prompt"][2]}
    assert editor.errors == editor.ours == []


@BOTH_RENDERINGS
def test_buttons(editor: Editor, server: Server, rendering: str) -> None:
    prefix = f"sub/buttons_{rendering}"
    path = server.output / f"{prefix}_00001_.safetensors"
    editor.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ids = lay_encoder(editor, "taesd", filename_prefix=prefix)
    run(editor, server)
    saved = panel(editor, SAVED)

    saved.get_by_role("button", name="Copy path").click()
    expect(saved.get_by_role("button", name="Copied")).to_be_visible()
    assert editor.page.evaluate("() => navigator.clipboard.readText()") == str(path)

    with editor.page.expect_download() as download:
        saved.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == path.name
    assert Path(download.value.path()).read_bytes() == path.read_bytes()

    for count in (1, 2):
        saved.get_by_role("button", name="Load this latent").click()
        editor.page.wait_for_function(
            "count => window.app.graph.nodes.filter(n => n.type === 'LoadLatentFromDisk').length === count", arg=count
        )
    loaders = added_loaders(editor)
    assert [loader["value"] for loader in loaders] == [f"{prefix}_00001_.safetensors [output]"] * 2
    assert all(loader["value"] in loader["choices"] for loader in loaders)
    assert [loader["selected"] for loader in loaders] == [False, True]
    encoder_right = editor.page.evaluate(
        "id => { const n = window.app.graph.getNodeById(id); return n.pos[0] + n.size[0]; }", ids["encoder"]
    )
    assert all(loader["pos"][0] > encoder_right for loader in loaders)
    assert loaders[1]["pos"][1] > loaders[0]["pos"][1]  # the second stands clear of the first
    assert editor.errors == editor.ours == []


def added_loaders(editor: Editor) -> list[dict[str, Any]]:
    return editor.page.evaluate(
        """() => window.app.graph.nodes.filter(n => n.type === "LoadLatentFromDisk").map(n => {
            const widget = n.widgets.find(w => w.name === "latent_file");
            const { values } = widget.options;
            return { value: widget.value, choices: typeof values === "function" ? values() : [...values],
                     selected: n.id in window.app.canvas.selected_nodes, pos: [...n.pos] };
        })"""
    )


def test_path_without_a_clipboard(editor: Editor, server: Server) -> None:
    """Over plain http from another machine the browser has no clipboard for pages: the path can be selected."""
    editor.page.evaluate("() => Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    lay_encoder(editor, "taesd", filename_prefix="no_clipboard")
    run(editor, server)
    saved = panel(editor, SAVED)
    saved.get_by_role("button", name="Copy path").click()
    field = saved.get_by_role("textbox", name="Copy path")
    path = str(server.output / "no_clipboard_00001_.safetensors")
    expect(field).to_have_value(path)
    assert field.evaluate("f => f.value.slice(f.selectionStart, f.selectionEnd)") == path
    assert editor.errors == editor.ours == []


@BOTH_RENDERINGS
def test_survives_a_reload_and_the_saved_workflow(editor: Editor, server: Server, rendering: str) -> None:
    name = f"kept_{rendering}"
    path = server.output / f"{name}_00001_.safetensors"
    lay_encoder(editor, "taesd", filename_prefix=name)
    run(editor, server)
    panel(editor, SAVED).wait_for()
    editor.page.wait_for_timeout(1000)
    save_workflow(editor, name)
    (file,) = server.folder.glob(f"user/*/workflows/{name}.json")
    assert str(server.folder.parent) not in file.read_text(encoding="utf-8")
    kept = [entry["properties"].get("latent_encoder_files") for entry in json.loads(file.read_text())["nodes"]]
    assert [{"filename": path.name, "subfolder": "", "type": "output", "preview": True}] in kept

    editor.reload()
    look_at(editor, editor.node_id("EncodeToLatentFile"))
    check_shown(panel(editor, SAVED), record_of(server, path.name))
    check_thumbnail(editor, panel(editor, SAVED))

    editor.command("Comfy.NewBlankWorkflow")
    expect(panel(editor, SAVED)).to_have_count(0)
    path.unlink()
    editor.open(file)
    look_at(editor, editor.node_id("EncodeToLatentFile"))
    expect(panel(editor, SAVED)).to_contain_text(f"{path.name} [output] is gone")
    expect(panel(editor, SAVED).get_by_role("button")).to_have_count(0)
    assert editor.ours == []


def test_run_on_change_does_not_run_for_what_a_run_has_shown(editor: Editor, server: Server) -> None:
    """ComfyUI queues a prompt whenever the graph changes; what a node shows of its run is no such change."""
    lay_encoder(editor, server.host.demo_vae, filename_prefix="on_change")
    click_beside(editor)  # the picture that is loaded has made the node taller
    mode = "mode => { window.app.extensionManager.queueSettings.mode = mode; }"
    editor.page.evaluate(mode, "change")
    run(editor, server)
    expect(panel(editor, SAVED)).to_be_visible()
    editor.page.wait_for_timeout(3000)
    click_beside(editor)
    editor.page.wait_for_timeout(3000)
    assert [path.name for path in server.output.glob("on_change*.safetensors")] == ["on_change_00001_.safetensors"]
    editor.page.evaluate(mode, "disabled")
    assert editor.errors == editor.ours == []


@BOTH_RENDERINGS
def test_a_run_is_no_edit(editor: Editor, server: Server, rendering: str) -> None:
    """It does not mark the saved workflow as modified, and to undo means the user's edit: files are still shown."""
    name = f"no_edit_{rendering}"
    lay_encoder(editor, "taesd", filename_prefix=name)
    click_beside(editor)  # the picture that is loaded has made the node taller
    save_workflow(editor, name)
    run(editor, server)
    panel(editor, SAVED).wait_for()
    click_beside(editor)
    assert not is_modified(editor)

    editor.choose("EncodeToLatentFile", "filename_prefix", f"{name}_changed")
    click_beside(editor)
    assert is_modified(editor)
    run(editor, server)
    expect(panel(editor, SAVED)).to_contain_text(f"{name}_changed_00001_.safetensors")
    click_beside(editor)
    editor.press("Control+z")
    editor.page.wait_for_timeout(1500)
    assert editor.widgets("EncodeToLatentFile")["filename_prefix"] == name
    expect(panel(editor, SAVED)).to_contain_text(f"{name}_changed_00001_.safetensors")
    assert not is_modified(editor)
    editor.press("Control+y")
    editor.page.wait_for_timeout(1500)
    assert editor.widgets("EncodeToLatentFile")["filename_prefix"] == f"{name}_changed"
    assert editor.errors == editor.ours == []


def is_modified(editor: Editor) -> bool:
    return editor.page.evaluate("() => window.app.extensionManager.workflow.activeWorkflow.isModified")


@pytest.mark.parametrize("kind", ["EncodeToLatentFile", "SaveLatentToDisk"])
def test_every_file_of_a_list(editor: Editor, server: Server, kind: str) -> None:
    """A list of three names makes three files in one run; all can be looked at."""
    prefix = f"list_{kind[:4]}"
    source = node("ProbeLatent", 0, kind="plain") if kind[0] == "S" else node("VAELoader", 0, vae_name="taesd")
    widgets = {} if kind[0] == "S" else {"image": "cat.png", "megapixels": 0.02}
    ids = lay(
        editor,
        {
            "source": source,
            "names": node("ProbeStrings", 0, 200, lines="\n".join(f"{prefix}_{letter}" for letter in "abc")),
            "saver": node(kind, 350, **widgets),
        },
        [
            ("source", 0, "saver", "samples" if kind[0] == "S" else "vae"),
            ("names", 0, "saver", "filename_prefix"),
        ],
    )
    look_at(editor, ids["saver"])
    run(editor, server)
    saved = panel(editor, SAVED)
    expect(saved).to_contain_text("3 of 3")
    shown = []
    for place in ("1 of 3", "2 of 3", "3 of 3"):
        saved.get_by_role("button", name="Next file").click()
        expect(saved).to_contain_text(place)
        shown.append(saved.locator(".latent-encoder-name").inner_text())
    assert shown == [f"{prefix}_{letter}_00001_.safetensors" for letter in "abc"]
    saved.get_by_role("button", name="Previous file").click()
    expect(saved).to_contain_text("2 of 3")
    run(editor, server)  # another run shows its own files alone
    expect(saved.locator(".latent-encoder-name")).to_have_text(f"{prefix}_c_00002_.safetensors")
    expect(saved).to_contain_text("3 of 3")
    assert editor.errors == editor.ours == []


def test_in_a_subgraph(editor: Editor, server: Server) -> None:
    ids = lay_encoder(editor, "taesd", filename_prefix="subgraph")
    editor.page.evaluate(
        """id => {
            const made = window.app.graph.convertToSubgraph(new Set([window.app.graph.getNodeById(id)]));
            window.inside = made.subgraph;
        }""",
        ids["encoder"],
    )
    run(editor, server)
    editor.page.wait_for_timeout(500)
    editor.page.evaluate("() => window.app.canvas.setGraph(window.inside)")
    look_at_inside = "() => window.inside.nodes.find(n => n.type === 'EncodeToLatentFile').id"
    look_at(editor, editor.page.evaluate(look_at_inside))
    check_shown(panel(editor, SAVED), record_of(server, "subgraph_00001_.safetensors"))
    assert editor.ours == []


def check_thumbnail(editor: Editor, saved: Locator) -> None:
    picture = saved.get_by_role("img")
    expect(picture).to_be_visible()
    editor.page.wait_for_function(PICTURE_LOADED, arg=picture.element_handle())


def check_panel_fits(editor: Editor, node_id: int, rendering: str) -> None:
    """All of the panel can be seen, and it lies within its node."""
    found = editor.page.evaluate(
        """id => {
            const node = window.app.graph.getNodeById(id);
            const { element } = node.latentEncoderPanel;
            const box = element.getBoundingClientRect(), { ds } = window.app.canvas;
            const area = window.app.canvas.canvas.getBoundingClientRect();
            const top = area.top + (node.pos[1] + ds.offset[1]) * ds.scale;
            return { needed: element.firstChild.offsetHeight, height: element.clientHeight, box: [box.top, box.bottom],
                     node: [top, top + node.size[1] * ds.scale] };
        }""",
        node_id,
    )
    assert found["needed"] > 200
    assert found["needed"] <= found["height"] + 1
    assert found["node"][0] < found["box"][0] < found["box"][1] <= found["node"][1] + 1
    if rendering == "classic":
        assert found["height"] <= found["needed"] + 20  # no more room than it needs


def widgets_values(editor: Editor, node_id: int) -> list[Any]:
    return editor.page.evaluate("id => window.app.graph.getNodeById(id).serialize().widgets_values", node_id)


def test_an_optimized_vae(editor: Editor, server: Server) -> None:
    nodes = {
        "vae": node("VAELoader", 0, vae_name=server.host.demo_vae),
        "faster": node("OptimizeVAEForEncoding", 350),
        "encoder": node("EncodeToLatentFile", 700, image="cat.png", megapixels=0.02, filename_prefix="faster"),
    }
    ids = lay(editor, nodes, [("vae", 0, "faster", "vae"), ("faster", 0, "encoder", "vae")])
    look_at(editor, ids["faster"])
    run(editor, server)
    expect(panel(editor, SAVED)).to_be_visible()
    assert record_of(server, "faster_00001_.safetensors")["optimized"] is True
    take_node(editor, server, "OptimizeVAEForEncoding")
    assert editor.errors == editor.ours == []
