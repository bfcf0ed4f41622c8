"""Graphs for tests that look at something else than how a user lays them, and what nodes of ours show in them."""

from __future__ import annotations

from typing import Any

import pytest
from browser.editor import Editor
from comfyui.servers import Server
from playwright.sync_api import Locator, expect

from latent_encoder.latent_file import load_latent

SAVED = "Saved latent"
TOAST = ".p-toast-message"
BOTH_RENDERINGS = pytest.mark.parametrize("rendering", ["classic", "vue"], indirect=True)

LAY = """async ([nodes, links]) => {
    const made = {};
    for (const [name, { type, pos, widgets }] of Object.entries(nodes)) {
        const node = LiteGraph.createNode(type);
        node.pos = pos;
        window.app.graph.add(node);
        for (const [key, value] of Object.entries(widgets)) {
            const widget = node.widgets.find(w => w.name === key);
            widget.value = value;
            widget.callback?.(value);
        }
        made[name] = node;
    }
    for (const [from, slot, to, input] of links)
        made[from].connect(slot, made[to], made[to].inputs.findIndex(found => found.name === input));
    const { changeTracker } = window.app.extensionManager.workflow.activeWorkflow;  // as after a user's click
    changeTracker.captureCanvasState ? changeTracker.captureCanvasState() : changeTracker.checkState();
    return Object.fromEntries(Object.entries(made).map(([name, node]) => [name, node.id]));
}"""


def lay(editor: Editor, nodes: dict[str, dict[str, Any]], links: list[tuple[str, int, str, str]]) -> dict[str, int]:
    """Lay nodes (``type, pos, widgets`` by a name) and links (name, output, name, input) into a new tab.

    Returns:
        the nodes' ids by name.
    """
    editor.command("Comfy.NewBlankWorkflow")
    editor.page.wait_for_function("() => window.app.graph.nodes.length === 0")
    editor.page.wait_for_timeout(1000)
    return editor.page.evaluate(LAY, [nodes, links])


def node(kind: str, x: int, y: int = 0, /, **widgets: Any) -> dict[str, Any]:
    """A node for ``lay``."""
    return {"type": kind, "pos": [x, y], "widgets": widgets}


def lay_encoder(editor: Editor, vae: str, **widgets: Any) -> dict[str, int]:
    """A VAELoader and an EncodeToLatentFile of the picture ``cat.png`` at a small size."""
    encoder = {"image": "cat.png", "megapixels": 0.02, **widgets}
    nodes = {"vae": node("VAELoader", 0, vae_name=vae), "encoder": node("EncodeToLatentFile", 350, **encoder)}
    ids = lay(editor, nodes, [("vae", 0, "encoder", "vae")])
    look_at(editor, ids["encoder"])
    return ids


def look_at(editor: Editor, node_id: int) -> None:
    """Move the canvas so that a node stands in the middle of the page at three quarters of its size."""
    editor.page.evaluate(
        """id => {
            const { ds } = window.app.canvas;
            const { pos } = window.app.canvas.graph.getNodeById(id);  // of the subgraph that is open
            ds.scale = 0.75;
            ds.offset[0] = 500 / ds.scale - pos[0];
            ds.offset[1] = 130 / ds.scale - pos[1];
            window.app.graph.setDirtyCanvas(true, true);
        }""",
        node_id,
    )
    editor.page.wait_for_timeout(500)


def click_beside(editor: Editor) -> None:
    """Click on an empty place: ComfyUI compares the graph with what it was after each click."""
    editor.page.wait_for_timeout(1000)
    editor.page.mouse.click(1300, 900)
    editor.page.wait_for_timeout(1000)


def run(editor: Editor, server: Server) -> dict[str, Any]:
    """Press Run and wait for success; returns the ``/history`` entry."""
    history = server.client.wait(editor.run(), timeout=300)
    assert history["status"]["status_str"] == "success", history["status"]
    return history


def fail(editor: Editor, server: Server) -> str:
    """Press Run and wait for the failure; returns what the failed node said to ComfyUI."""
    history = server.client.wait(editor.run(), timeout=300)
    (failed,) = [entry for event, entry in history["status"]["messages"] if event == "execution_error"]
    return failed["exception_message"]


def panel(editor: Editor, name: str) -> Locator:
    """What a node of ours shows under that name; wait for it as for any locator."""
    return editor.page.get_by_role("region", name=name)


def failure(editor: Editor) -> Locator:
    """What the failed node shows."""
    return editor.page.locator(".latent-encoder-failure[role=alert]")


def check_words(editor: Editor, said: str) -> None:
    """The node shows the code and both sentences, and nothing of Python's."""
    code, words = said.strip().removeprefix("[").split("] ", 1)
    message, hint = words.split("\n")
    expect(failure(editor).locator(".latent-encoder-code")).to_have_text(code)
    expect(failure(editor).locator(".latent-encoder-message")).to_have_text(message)
    expect(failure(editor).locator(".latent-encoder-hint")).to_have_text(hint)
    expect(failure(editor)).to_be_visible()
    assert "Traceback" not in failure(editor).inner_text()
    check_also_said_elsewhere(editor, message)


def check_also_said_elsewhere(editor: Editor, message: str) -> None:
    """The words stand in ComfyUI's own dialog, or else in a message of ours in the corner; not in both."""
    editor.page.wait_for_timeout(1500)
    said = [editor.page.locator(place).filter(has_text=message).count() for place in ("[role=dialog]", TOAST)]
    assert sorted(said) == [0, 1]
    assert "Traceback" not in editor.messages()
    editor.dismiss_messages()


def size_of(editor: Editor, node_id: int) -> list[float]:
    return editor.page.evaluate("id => [...window.app.graph.getNodeById(id).size]", node_id)


def prompt_of(editor: Editor) -> dict[str, Any]:
    """The open graph in API format, as the editor exports and sends it."""
    return editor.page.evaluate("async () => (await window.app.graphToPrompt()).output")


def save_workflow(editor: Editor, name: str) -> None:
    """Save the open workflow under a name, as Ctrl+S does."""
    editor.command("Comfy.SaveWorkflow")
    dialog = editor.page.get_by_role("dialog")
    dialog.get_by_role("textbox").fill(name)
    dialog.get_by_role("textbox").press("Enter")
    editor.page.wait_for_function("name => document.title.includes(name)", arg=name)
    editor.page.wait_for_timeout(1000)


def record_of(server: Server, name: str) -> dict[str, Any]:
    return load_latent(server.output / name).record


def check_shown(saved: Locator, record: dict[str, Any]) -> None:
    """The panel says what the record says."""
    expect(saved.locator(".latent-encoder-name")).to_have_text(record["filename"])
    expect(saved.locator("[data-field=size]")).to_have_text(f"{record['file_bytes'] / 1000:.1f} kB")
    expect(saved.locator("[data-field=shape]")).to_have_text(" × ".join(map(str, record["latent_shape"])))
    expect(saved.locator("[data-field=dtype]")).to_have_text(record["latent_dtype"])
    expect(saved.locator("[data-field=vae]")).to_have_text(record["vae_name"])
    expect(saved.locator("[data-field=checksum]")).to_have_text(record["file_sha256"][:12])
    expect(saved.locator("[data-field=checksum]")).to_have_attribute("title", record["file_sha256"])
