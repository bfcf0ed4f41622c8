"""Runs whose tab is not open, or was closed, or knows them no more: what they tell goes to their own workflow alone."""

from __future__ import annotations

import pytest
from browser.editor import Editor
from browser.graphs import (
    SAVED,
    check_shown,
    click_beside,
    lay,
    lay_encoder,
    look_at,
    node,
    panel,
    record_of,
    save_workflow,
)
from comfyui.servers import Server
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600), pytest.mark.usefixtures("photo")]


def test_a_run_of_a_tab_in_the_background(editor: Editor, server: Server) -> None:
    """The tab gets its file when one comes back to it; another tab's node of the same number does not."""
    lay_encoder(editor, "taesd", filename_prefix="front")
    away = lay_encoder(editor, server.host.demo_vae, filename_prefix="away")
    prompt = editor.run()
    editor.command("Workspace.PreviousOpenedWorkflow")
    server.client.wait(prompt, timeout=300)
    editor.page.wait_for_timeout(2000)
    assert editor.widgets("EncodeToLatentFile")["filename_prefix"] == "front"
    expect(panel(editor, SAVED)).to_have_count(0)
    editor.command("Workspace.NextOpenedWorkflow")
    editor.page.wait_for_timeout(1000)
    look_at(editor, away["encoder"])
    check_shown(panel(editor, SAVED), record_of(server, "away_00001_.safetensors"))
    assert editor.errors == editor.ours == []


def test_a_run_of_a_closed_tab(editor: Editor, server: Server) -> None:
    """Its file goes to no other tab's node of the same number."""
    lay_slow_encoder(editor, "left")
    lay_slow_encoder(editor, "closed")
    click_beside(editor)
    save_workflow(editor, "closed")  # ComfyUI then closes it without a question
    prompt = editor.run()
    editor.command("Workspace.CloseWorkflow")
    editor.page.wait_for_timeout(1000)
    while not editor.page.evaluate("() => window.app.graph.nodes.some(n => n.widgets?.some(w => w.value === 'left'))"):
        editor.command("Workspace.NextOpenedWorkflow")  # 0.3.64 does not go to the tab of before
        editor.page.wait_for_timeout(1000)
    server.client.wait(prompt, timeout=300)
    editor.page.wait_for_timeout(2000)
    assert (server.output / "closed_00001_.safetensors").exists()
    expect(panel(editor, SAVED)).to_have_count(0)
    assert editor.errors == editor.ours == []


def test_a_list_while_one_is_in_another_tab(editor: Editor, server: Server) -> None:
    """One goes when the first are there, and comes back when all are."""
    lay_encoder(editor, "taesd", filename_prefix="front")
    saver = lay_slow_encoder(editor, "gone_a\ngone_b\ngone_c")
    prompt = editor.run()
    expect(panel(editor, SAVED)).to_be_visible(timeout=30_000)
    editor.command("Workspace.PreviousOpenedWorkflow")
    server.client.wait(prompt, timeout=300)
    editor.page.wait_for_timeout(2000)
    expect(panel(editor, SAVED)).to_have_count(0)
    editor.command("Workspace.NextOpenedWorkflow")
    editor.page.wait_for_timeout(1000)
    look_at(editor, saver)
    expect(panel(editor, SAVED)).to_contain_text("3 of 3")
    expect(panel(editor, SAVED)).to_contain_text("gone_c_00001_.safetensors")
    assert editor.ours == []  # 0.33 has errors of its own about nodes that are not in the tab that is open


def test_what_a_run_tells_after_the_page_was_loaded_again(editor: Editor, server: Server) -> None:
    """The page does not know the prompt any more; the server does, and its workflow."""
    ids = lay_encoder(editor, "taesd", filename_prefix="before_f5")
    prompt = editor.run()
    server.client.wait(prompt, timeout=300)
    editor.reload()
    look_at(editor, ids["encoder"])
    tell = """([prompt_id, node, filename]) => {
        const output = { latents: [{ filename, subfolder: "", type: "output" }] };
        window.app.api.dispatchCustomEvent("executed", { prompt_id, node, display_node: node, output });
    }"""
    editor.page.evaluate(tell, [prompt, str(ids["encoder"]), "late.safetensors"])
    expect(panel(editor, SAVED)).to_contain_text("late.safetensors")
    editor.page.evaluate(tell, ["another's", str(ids["encoder"]), "strange.safetensors"])
    editor.page.wait_for_timeout(3000)
    expect(panel(editor, SAVED)).to_contain_text("late.safetensors")
    assert editor.ours == []


def lay_slow_encoder(editor: Editor, names: str) -> int:
    """An EncodeToLatentFile that takes three seconds for each of these names, one a line."""
    ids = lay(
        editor,
        {
            "vae": node("ProbeSlowVAE", 0),
            "names": node("ProbeStrings", 0, 200, lines=names),
            "saver": node("EncodeToLatentFile", 350, image="cat.png", megapixels=0.02),
        },
        [("vae", 0, "saver", "vae"), ("names", 0, "saver", "filename_prefix")],
    )
    look_at(editor, ids["saver"])
    return ids["saver"]
