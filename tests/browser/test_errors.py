"""A failed node says its code, what happened and what to do, until it runs again; and never a traceback."""

from __future__ import annotations

import pytest
from browser.editor import Editor
from browser.graphs import (
    BOTH_RENDERINGS,
    TOAST,
    check_words,
    click_beside,
    fail,
    failure,
    lay,
    lay_encoder,
    look_at,
    node,
    run,
)
from browser.shots import take_page
from comfyui.servers import Server
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600), pytest.mark.usefixtures("photo")]


def lay_loader(editor: Editor, name: str, vae: str) -> None:
    """A LoadLatentFromDisk of that file, with a VAE to check it against and to decode it."""
    nodes = {
        "vae": node("VAELoader", 0, vae_name=vae),
        "loader": node("LoadLatentFromDisk", 350, latent_file=name),
        "decode": node("VAEDecode", 900),
        "preview": node("PreviewImage", 1200),
    }
    wires = [("vae", 0, "loader", "vae"), ("loader", 0, "decode", "samples"), ("vae", 0, "decode", "vae")]
    ids = lay(editor, nodes, [*wires, ("decode", 0, "preview", "images")])
    look_at(editor, ids["loader"])


@BOTH_RENDERINGS
def test_a_wrong_vae(editor: Editor, server: Server, rendering: str) -> None:
    """A latent of 16 channels, and a VAE that takes 4; with the right one wired in, the words go."""
    name = f"wrong_vae_{rendering}"
    lay_encoder(editor, server.host.demo_vae, filename_prefix=name)
    run(editor, server)
    lay_loader(editor, f"{name}_00001_.safetensors [output]", "taesd")
    height = node_height(editor, "LoadLatentFromDisk")
    said = fail(editor, server)
    assert said.startswith(f"[VAE_MISMATCH] This latent was made by the VAE '{server.host.demo_vae}'")
    check_words(editor, said)
    assert node_height(editor, "LoadLatentFromDisk") > height
    if rendering == "classic":
        take_page(editor, server, "failure_classic")

    editor.choose("VAELoader", "vae_name", server.host.demo_vae)
    run(editor, server)
    expect(failure(editor)).to_have_count(0)
    editor.page.wait_for_timeout(500)
    assert node_height(editor, "LoadLatentFromDisk") == height
    assert editor.errors == editor.ours == []


@BOTH_RENDERINGS
def test_a_missing_file(editor: Editor, server: Server, rendering: str) -> None:
    lay_loader(editor, "moved_away.safetensors [output]", "taesd")
    height = node_height(editor, "LoadLatentFromDisk")
    said = fail(editor, server)
    assert said.startswith("[LATENT_NOT_FOUND] There is no file 'moved_away.safetensors' in the folder 'output'.")
    check_words(editor, said)
    assert node_height(editor, "LoadLatentFromDisk") > height
    editor.choose("LoadLatentFromDisk", "latent_file", "another.safetensors [output]")
    expect(failure(editor)).to_have_count(0)
    assert editor.ours == []


def test_a_refused_name_and_then_a_good_one(editor: Editor, server: Server) -> None:
    lay_encoder(editor, "taesd", filename_prefix="a/../../b")
    check_words(editor, fail(editor, server))
    editor.choose("EncodeToLatentFile", "filename_prefix", "good")
    run(editor, server)
    expect(editor.page.get_by_role("region", name="Saved latent")).to_be_visible()
    expect(failure(editor)).to_have_count(0)
    editor.choose("EncodeToLatentFile", "filename_prefix", "a/../../b")
    check_words(editor, fail(editor, server))  # what was saved before is still shown
    expect(editor.page.get_by_role("region", name="Saved latent")).to_be_visible()
    assert editor.errors == editor.ours == []


def test_words_of_comfyui_itself(editor: Editor, server: Server) -> None:
    """A failure of one of ComfyUI's own nodes inside EncodeToLatentFile has no code: ComfyUI's words are shown."""
    nodes = {
        "vae": node("ProbeBrokenVAE", 0),
        "encoder": node("EncodeToLatentFile", 350, image="cat.png", megapixels=0.02),
    }
    look_at(editor, lay(editor, nodes, [("vae", 0, "encoder", "vae")])["encoder"])
    said = fail(editor, server)
    assert said.strip() == "the probe's VAE encodes nothing"
    expect(failure(editor).locator(".latent-encoder-code")).to_have_text("Failed")
    expect(failure(editor).locator(".latent-encoder-message")).to_have_text(said.strip())
    assert editor.ours == []


def test_a_failure_of_another_pack(editor: Editor, server: Server) -> None:
    """Its node shows nothing of ours, whatever its message looks like."""
    lay(editor, {"failing": node("ProbeFailure", 0)}, [])
    assert "[ERROR] another pack's words" in fail(editor, server)
    editor.page.wait_for_timeout(1500)
    expect(failure(editor)).to_have_count(0)
    expect(editor.page.locator(TOAST).filter(has_text="another pack's words")).to_have_count(0)


def test_failures_of_a_tab_in_the_background(editor: Editor, server: Server) -> None:
    lay_encoder(editor, "taesd", filename_prefix="front")
    lay_encoder(editor, "taesd", filename_prefix="a/../../b")
    prompt = editor.run()
    editor.command("Workspace.PreviousOpenedWorkflow")
    server.client.wait(prompt, timeout=300)
    editor.page.wait_for_timeout(2000)
    editor.dismiss_messages()
    assert editor.widgets("EncodeToLatentFile")["filename_prefix"] == "front"
    expect(failure(editor)).to_have_count(0)
    editor.command("Workspace.NextOpenedWorkflow")
    editor.page.wait_for_timeout(1000)
    look_at(editor, editor.node_id("EncodeToLatentFile"))
    expect(failure(editor)).to_contain_text("PATH_NOT_ALLOWED")
    assert editor.ours == []


def test_a_failure_is_there_again_when_one_comes_back(editor: Editor, server: Server) -> None:
    """To its tab, or from an edit that one takes back; until the node runs again."""
    lay_encoder(editor, "taesd", filename_prefix="front")
    away = lay_encoder(editor, "taesd", filename_prefix="a/../../b")
    check_words(editor, fail(editor, server))
    editor.command("Workspace.PreviousOpenedWorkflow")
    editor.page.wait_for_timeout(2500)
    assert editor.widgets("EncodeToLatentFile")["filename_prefix"] == "front"
    expect(failure(editor)).to_have_count(0)
    editor.command("Workspace.NextOpenedWorkflow")
    editor.page.wait_for_timeout(1000)
    look_at(editor, away["encoder"])
    expect(failure(editor)).to_contain_text("PATH_NOT_ALLOWED")
    editor.choose("EncodeToLatentFile", "filename_prefix", "mended_here")
    click_beside(editor)
    editor.press("Control+z")
    editor.page.wait_for_timeout(1500)
    assert editor.widgets("EncodeToLatentFile")["filename_prefix"] == "a/../../b"
    expect(failure(editor)).to_contain_text("PATH_NOT_ALLOWED")
    assert editor.page.locator(TOAST).count() == 0  # said once
    editor.choose("EncodeToLatentFile", "filename_prefix", "mended_here")
    run(editor, server)
    expect(failure(editor)).to_have_count(0)
    assert editor.ours == []


def test_a_good_run_after_a_failure_in_the_background(editor: Editor, server: Server) -> None:
    """What was mended before one comes back to the tab is not said any more."""
    lay_encoder(editor, "taesd", filename_prefix="front")
    away = lay_encoder(editor, "taesd", filename_prefix="a/../../b")
    check_words(editor, fail(editor, server))
    editor.choose("EncodeToLatentFile", "filename_prefix", "mended")
    prompt = editor.run()
    editor.command("Workspace.PreviousOpenedWorkflow")
    server.client.wait(prompt, timeout=300)
    editor.page.wait_for_timeout(2000)
    editor.dismiss_messages()
    editor.command("Workspace.NextOpenedWorkflow")
    look_at(editor, away["encoder"])
    expect(editor.page.get_by_role("region", name="Saved latent")).to_contain_text("mended_00001_.safetensors")
    expect(failure(editor)).to_have_count(0)
    assert editor.ours == []


def node_height(editor: Editor, kind: str) -> float:
    return editor.page.evaluate("id => window.app.graph.getNodeById(id).size[1]", editor.node_id(kind))
